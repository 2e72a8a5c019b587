//! Limits on the texts of a manifest. They end up in records, on dashboards and in topics: bounded here,
//! no verdict and no alarm becomes larger than the store's `MAX_RECORD_BYTES`.

use super::bundle::{Advice, Channel, Tensor};

/// Channels of a model. A verdict lists each of them with its signal.
pub const MAX_CHANNELS: usize = 1024;
/// Classes of a model.
pub const MAX_CLASSES: usize = 1024;
/// Bytes of a name: of the model, a channel, a class, a tensor; and of the version.
pub const MAX_NAME_BYTES: usize = 256;
/// Bytes of a unit.
pub const MAX_UNIT_BYTES: usize = 64;
/// Bytes of all advice together, in all languages.
pub const MAX_ADVICE_BYTES: usize = 64 << 10;

/// What of a manifest has a limit.
pub(super) struct Texts<'a> {
    pub name: &'a str,
    pub version: &'a str,
    pub channels: &'a [Channel],
    pub classes: &'a [String],
    pub tensors: &'a mut dyn Iterator<Item = &'a Tensor>,
    pub advice: &'a Advice,
}

/// The first text that is beyond a limit: what it is, where, and the limit.
pub(super) fn check(texts: Texts<'_>) -> Result<(), String> {
    let Texts { name, version, channels, classes, tensors, advice } = texts;
    text("`name`", name, MAX_NAME_BYTES)?;
    text("`version`", version, MAX_NAME_BYTES)?;
    count("`channels`", channels.len(), MAX_CHANNELS)?;
    for (i, channel) in channels.iter().enumerate() {
        text(&format!("`channels[{i}].name`"), &channel.name, MAX_NAME_BYTES)?;
        text(&format!("`channels[{i}].unit`"), &channel.unit, MAX_UNIT_BYTES)?;
    }
    count("`classes`", classes.len(), MAX_CLASSES)?;
    for (i, class) in classes.iter().enumerate() {
        text(&format!("`classes[{i}]`"), class, MAX_NAME_BYTES)?;
    }
    for tensor in tensors {
        text("the name of an input or output", &tensor.name, MAX_NAME_BYTES)?;
    }
    let in_languages = |of: &std::collections::BTreeMap<String, Vec<String>>| -> usize {
        of.iter().map(|(language, lines)| language.len() + lines.iter().map(String::len).sum::<usize>()).sum()
    };
    bytes("`advice`", advice.iter().map(|(topic, of)| topic.len() + in_languages(of)).sum(), MAX_ADVICE_BYTES)?;
    let lines = advice.iter().flat_map(|(topic, of)| of.values().flatten().map(move |line| (topic, line)));
    for (topic, line) in lines {
        text(&format!("`advice` for {topic:?}"), line, MAX_ADVICE_BYTES)?;
    }
    Ok(())
}

fn text(what: &str, text: &str, most: usize) -> Result<(), String> {
    if text.chars().any(char::is_control) {
        return Err(format!("{what} has a control character"));
    }
    bytes(what, text.len(), most)
}

fn bytes(what: &str, found: usize, most: usize) -> Result<(), String> {
    if found <= most { Ok(()) } else { Err(format!("{what} takes {found} bytes; the limit is {most}")) }
}

fn count(what: &str, found: usize, most: usize) -> Result<(), String> {
    if found <= most { Ok(()) } else { Err(format!("{what} has {found} members; the limit is {most}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(name: &str, unit: &str) -> Channel {
        Channel { name: name.into(), unit: unit.into(), mean: 0.0, std: 1.0, min: None, max: None }
    }

    fn checked(channels: &[Channel], classes: &[String], advice: &Advice) -> Result<(), String> {
        check(Texts { name: "m", version: "1", channels, classes, tensors: &mut std::iter::empty(), advice })
    }

    #[test]
    fn texts_beyond_their_limits_are_refused_by_name() {
        let refused = |channels: &[Channel], advice: &Advice| checked(channels, &[], advice).unwrap_err();
        let none = Advice::new();
        assert_eq!(checked(&[channel("flow", "m³/h")], &["good".into()], &none), Ok(()));
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        assert_eq!(
            refused(&[channel("a", ""), channel(&long, "")], &none),
            "`channels[1].name` takes 257 bytes; the limit is 256"
        );
        assert_eq!(
            refused(&[channel("a", &"u".repeat(65))], &none),
            "`channels[0].unit` takes 65 bytes; the limit is 64"
        );
        assert_eq!(refused(&[channel("a\nb", "")], &none), "`channels[0].name` has a control character");
        let too_many: Vec<Channel> = (0..=MAX_CHANNELS).map(|i| channel(&i.to_string(), "")).collect();
        assert_eq!(refused(&too_many, &none), "`channels` has 1025 members; the limit is 1024");
        let lines = vec!["x".repeat(1000); 1200];
        let advice = Advice::from([("*".into(), [("en".into(), lines)].into())]);
        assert_eq!(refused(&[channel("a", "")], &advice), "`advice` takes 1200003 bytes; the limit is 65536");
    }
}
