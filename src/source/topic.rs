//! Topic patterns: which topics to subscribe to, and what their levels say. A pattern such as
//! `factory/{line}/{machine}/{signal}` names one level by each pair of braces; `{rest...}` at the
//! end takes the tail; plain `+` and `#` match without a name.

use std::collections::HashMap;
use std::sync::Arc;

use crate::types::{Name, Origin};

/// Topics remembered with their meaning. A plant has some thousands; when a storm of made-up
/// topics fills the table it starts afresh.
const MAX_TOPICS: usize = 65_536;
/// Longer topics are worked out each time.
const MAX_REMEMBERED: usize = 512;
/// Longest level that may become the name of a machine or signal, in bytes.
pub const MAX_NAME: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    Exactly(String),
    Any,
    Machine,
    Signal,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Tail {
    None,
    Any,
    Signal,
    Machine,
}

/// A parsed topic pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    share: String,
    levels: Vec<Level>,
    tail: Tail,
}

/// See [`Pattern::shape`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Shape<'p> {
    /// The first level, where it is written out.
    pub first: Option<&'p str>,
    /// Whether the third level is left open.
    pub third_is_open: bool,
    /// Which level names the machine, from 0; the number of levels where the tail does.
    pub machine: Option<usize>,
    /// Levels before the tail.
    pub levels: usize,
    /// Whether there is a tail.
    pub tail: bool,
    /// Whether the subscription is shared.
    pub shared: bool,
}

/// What a topic says, borrowed from it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Named<'t> {
    /// The machine's level.
    pub machine: Option<&'t str>,
    /// The signal's level, or levels where it is the tail.
    pub signal: Option<&'t str>,
}

impl Pattern {
    /// Reads a pattern; the error is for a person.
    pub fn parse(text: &str) -> Result<Pattern, String> {
        let (share, topic) = split_share(text)?;
        if topic.is_empty() || topic.contains('\0') {
            return Err("the topic is empty".into());
        }
        let mut pattern = Pattern { share: share.to_owned(), levels: Vec::new(), tail: Tail::None };
        let mut names: Vec<&str> = Vec::new();
        let mut levels = topic.split('/').peekable();
        while let Some(level) = levels.next() {
            let last = levels.peek().is_none();
            let name = level.strip_prefix('{').and_then(|l| l.strip_suffix('}'));
            if let Some(name) = name {
                let bare = name.strip_suffix("...").unwrap_or(name);
                if names.contains(&bare) {
                    return Err(format!("{{{bare}}} stands there twice"));
                }
                names.push(bare);
            }
            pattern.add(level, name, last)?;
        }
        Ok(pattern)
    }

    fn add(&mut self, level: &str, name: Option<&str>, last: bool) -> Result<(), String> {
        if let Some(name) = name {
            let bare = name.strip_suffix("...").unwrap_or(name);
            if bare.is_empty() || !bare.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
                return Err(format!("{level} is not a name of letters, digits and underscores in braces"));
            }
            if bare.len() < name.len() {
                self.tail = match bare {
                    _ if !last => return Err(format!("{level} can only be the last level")),
                    "machine" => Tail::Machine,
                    "signal" => Tail::Signal,
                    _ => Tail::Any,
                };
                return Ok(());
            }
            self.levels.push(match name {
                "machine" => Level::Machine,
                "signal" => Level::Signal,
                _ => Level::Any,
            });
            return Ok(());
        }
        match level {
            "+" => self.levels.push(Level::Any),
            "#" if last => self.tail = Tail::Any,
            "#" => return Err("# can only be the last level".into()),
            text if text.contains(['+', '#']) => return Err(format!("{text:?}: + and # have to be a whole level")),
            text if text.contains(['{', '}']) => {
                return Err(format!("{text:?}: a name in braces has to be a whole level"));
            }
            text => self.levels.push(Level::Exactly(text.to_owned())),
        }
        Ok(())
    }

    /// The MQTT topic filter to subscribe to.
    pub fn filter(&self) -> String {
        let level = |l: &Level| match l {
            Level::Exactly(text) => text.clone(),
            _ => "+".to_owned(),
        };
        let mut levels: Vec<String> = self.levels.iter().map(level).collect();
        if self.tail != Tail::None {
            levels.push("#".to_owned());
        }
        format!("{}{}", self.share, levels.join("/"))
    }

    /// Whether topics name their machine.
    pub fn names_machine(&self) -> bool {
        self.tail == Tail::Machine || self.levels.contains(&Level::Machine)
    }

    /// Whether topics name their signal.
    pub fn names_signal(&self) -> bool {
        self.tail == Tail::Signal || self.levels.contains(&Level::Signal)
    }

    /// How it is built, for payloads that fix the meaning of each level.
    pub fn shape(&self) -> Shape<'_> {
        let machine = match self.tail {
            Tail::Machine => Some(self.levels.len()),
            _ => self.levels.iter().position(|l| *l == Level::Machine),
        };
        let first = match self.levels.first() {
            Some(Level::Exactly(text)) => Some(text.as_str()),
            _ => None,
        };
        let third_is_open = !matches!(self.levels.get(2), Some(Level::Exactly(_)));
        Shape {
            first,
            third_is_open,
            machine,
            levels: self.levels.len(),
            tail: self.tail != Tail::None,
            shared: !self.share.is_empty(),
        }
    }

    /// The names in a topic, or `None` when the pattern does not match it. As in MQTT, a tail also
    /// matches nothing at all, and wildcards do not match `$` topics at the first level.
    pub fn matches<'t>(&self, topic: &'t str) -> Option<Named<'t>> {
        let mut named = Named::default();
        if topic.starts_with('$') && !matches!(self.levels.first(), Some(Level::Exactly(_))) {
            return None;
        }
        let mut rest = Some(topic);
        for level in &self.levels {
            let text = rest?;
            let (here, after) = match text.split_once('/') {
                Some((here, after)) => (here, Some(after)),
                None => (text, None),
            };
            match level {
                Level::Exactly(wanted) if wanted != here => return None,
                Level::Exactly(_) | Level::Any => {}
                Level::Machine => named.machine = Some(here),
                Level::Signal => named.signal = Some(here),
            }
            rest = after;
        }
        match (self.tail, rest) {
            (Tail::None, Some(_)) => return None,
            (Tail::Machine, tail) => named.machine = Some(tail.unwrap_or_default()),
            (Tail::Signal, tail) => named.signal = Some(tail.unwrap_or_default()),
            _ => {}
        }
        Some(named)
    }
}

/// Splits `$share/group/` off.
fn split_share(text: &str) -> Result<(&str, &str), String> {
    let Some(after) = text.strip_prefix("$share/") else { return Ok(("", text)) };
    match after.split_once('/') {
        Some((group, topic)) if !group.is_empty() && !group.contains(['+', '#', '{', '}']) => {
            Ok((&text[..text.len() - topic.len()], topic))
        }
        _ => Err("a shared subscription is $share/GROUP/TOPIC".into()),
    }
}

/// What a topic means: which subscription it came by, and whose signal it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the subscription.
    pub subscription: usize,
    /// The machine.
    pub machine: Name,
    /// The signal, where the topic or the config names it.
    pub signal: Option<Name>,
    /// The topic, as the origin of readings.
    pub origin: Origin,
}

/// Remembers the meaning of topics, because they repeat, and hands out names without copying them.
#[derive(Default)]
pub struct Topics {
    places: HashMap<String, Result<Arc<Place>, String>>,
    names: HashMap<String, Name>,
}

impl Topics {
    /// The topic's meaning, worked out by `find` when it is new.
    pub fn place(
        &mut self,
        topic: &str,
        find: impl FnOnce(&mut Topics) -> Result<Place, String>,
    ) -> Result<Arc<Place>, String> {
        if let Some(known) = self.places.get(topic) {
            return known.clone();
        }
        if self.places.len() >= MAX_TOPICS {
            self.places.clear();
        }
        let place = find(self).map(Arc::new);
        if topic.len() > MAX_REMEMBERED {
            return place;
        }
        self.places.insert(topic.to_owned(), place.clone());
        place
    }

    /// The name as one that is cheap to clone.
    pub fn name(&mut self, text: &str) -> Name {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        if self.names.len() >= MAX_TOPICS {
            self.names.clear();
        }
        let name: Name = text.into();
        if text.len() > MAX_REMEMBERED {
            return name;
        }
        self.names.insert(text.to_owned(), name.clone());
        name
    }
}

/// Whether a level can be the name of a machine or signal.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).expect(text)
    }

    fn named<'t>(p: &str, topic: &'t str) -> Option<(Option<&'t str>, Option<&'t str>)> {
        pattern(p).matches(topic).map(|n| (n.machine, n.signal))
    }

    #[test]
    fn filters() {
        for (text, filter) in [
            ("factory/{line}/{machine}/{signal}", "factory/+/+/+"),
            ("a/{machine}/{signal...}", "a/+/#"),
            ("$share/gw/a/{machine}/#", "$share/gw/a/+/#"),
            ("{machine}/+/x", "+/+/x"),
            ("/a//b", "/a//b"),
            ("#", "#"),
        ] {
            assert_eq!(pattern(text).filter(), filter);
        }
    }

    #[test]
    fn names_are_found() {
        let p = "factory/{line}/{machine}/{signal}";
        assert_eq!(named(p, "factory/3/press-04/temp"), Some((Some("press-04"), Some("temp"))));
        assert_eq!(named(p, "factory/3/press-04"), None);
        assert_eq!(named(p, "factory/3/press-04/temp/x"), None);
        assert_eq!(named(p, "plant/3/press-04/temp"), None);
        assert_eq!(named("a/{machine}/{signal...}", "a/m/x/y"), Some((Some("m"), Some("x/y"))));
        assert_eq!(named("a/{machine}/{signal...}", "a/m"), Some((Some("m"), Some(""))));
        assert_eq!(named("$share/g/a/{machine}", "a/m"), Some((Some("m"), None)));
        assert_eq!(named("{machine}/#", "$SYS/uptime"), None);
    }

    #[test]
    fn bad_patterns() {
        for bad in
            ["", "a/#/b", "a/b+", "a/{x", "a/x{y}", "{a...}/b", "{machine}/{machine}", "a/{}", "$share/g", "{a b}"]
        {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_storm_of_topics_does_not_grow_memory() {
        let mut topics = Topics::default();
        for i in 0..MAX_TOPICS * 2 + 5 {
            topics.name(&i.to_string());
            let place = |t: &mut Topics| {
                Ok(Place { subscription: 0, machine: t.name("m"), signal: None, origin: Origin::default() })
            };
            topics.place(&i.to_string(), place).expect("a place");
            assert!(topics.places.len() <= MAX_TOPICS && topics.names.len() <= MAX_TOPICS);
        }
    }

    /// The plain reading of the standard, to hold the pattern against.
    fn filter_matches(filter: &[&str], topic: &[&str]) -> bool {
        match (filter.first(), topic.first()) {
            (Some(&"#"), _) => true,
            (Some(&"+"), Some(_)) => filter_matches(&filter[1..], &topic[1..]),
            (Some(f), Some(t)) => f == t && filter_matches(&filter[1..], &topic[1..]),
            (None, None) => true,
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matches_as_its_filter_does(
            levels in prop::collection::vec(prop::sample::select(vec!["a", "b", "", "+", "{x}", "{machine}"]), 1..5),
            tail in prop::sample::select(vec!["", "/#", "/{rest...}"]),
            topic in prop::collection::vec(prop::sample::select(vec!["a", "b", "c", ""]), 1..6),
        ) {
            let text = format!("{}{tail}", levels.join("/"));
            if let Ok(p) = Pattern::parse(&text) {
                let filter = p.filter();
                let topic_text = topic.join("/");
                if !topic_text.is_empty() {
                    let expected = filter_matches(&filter.split('/').collect::<Vec<_>>(), &topic);
                    prop_assert_eq!(p.matches(&topic_text).is_some(), expected, "{} {}", filter, topic_text);
                }
            }
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}", topic in ".{0,40}") {
            if let Ok(p) = Pattern::parse(&text) {
                p.matches(&topic);
            }
        }
    }
}
