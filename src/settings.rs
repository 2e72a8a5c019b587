//! Reading TOML settings so that every mistake is told at once, with its line and a suggestion.
//! Each component reads its own [`Section`]; a key nobody asked for is an unknown key.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

mod units;
pub use units::{parse_duration, parse_rate, parse_size, plain_period};

/// One mistake in a config file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, where it is another than the one that was read: one that it names.
    pub file: Option<PathBuf>,
    /// 1-based line in the file.
    pub line: usize,
    /// What is wrong and what to do.
    pub message: String,
}

impl Problem {
    /// In the file that was read.
    pub fn new(line: usize, message: String) -> Problem {
        Problem { file: None, line, message }
    }
}

/// A value that must never be shown. `Debug` and `Display` print asterisks.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(value: String) -> Secret {
        Secret(value)
    }

    /// The value itself: for the wire only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where the things named in a config are looked up.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The config file's directory: relative paths start here.
    pub base: PathBuf,
    /// systemd's credentials directory, which is searched first for secret files.
    pub credentials: Option<PathBuf>,
}

impl Surroundings {
    /// For a config file on this machine, with `$CREDENTIALS_DIRECTORY` when systemd set it.
    pub fn of(config: &Path) -> Surroundings {
        Surroundings {
            base: config.parent().map(Path::to_path_buf).unwrap_or_default(),
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        }
    }

    /// The credential of that name if there is one, else the path taken from the config's directory.
    pub fn locate(&self, name: &str) -> PathBuf {
        let credential = self.credentials.as_ref().map(|d| d.join(name)).filter(|p| p.is_file());
        credential.unwrap_or_else(|| self.base.join(name))
    }
}

/// A parsed file and the mistakes found in it so far.
pub struct Document<'t> {
    text: &'t str,
    root: Spanned<DeTable<'t>>,
    around: Surroundings,
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Document<'t> {
    /// Parses what it can; syntax errors become problems.
    pub fn parse(text: &'t str, around: Surroundings) -> Document<'t> {
        let (root, errors) = DeTable::parse_recoverable(text);
        let document = Document { text, root, around, problems: RefCell::default() };
        for e in errors {
            document.report(e.span().map_or(0, |s| s.start), format!("not valid TOML: {}", e.message()));
        }
        document
    }

    /// The top of the file.
    pub fn root(&self) -> Section<'_> {
        Section {
            document: self,
            table: self.root.get_ref(),
            path: String::new(),
            at: self.root.span().start,
            asked: RefCell::default(),
        }
    }

    /// All mistakes, in line order; those of other files last.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort();
        problems.dedup();
        problems
    }

    fn report(&self, offset: usize, message: String) {
        self.problems.borrow_mut().push(Problem::new(self.line_of(offset), message));
    }

    fn line_of(&self, offset: usize) -> usize {
        self.text[..offset.min(self.text.len())].matches('\n').count() + 1
    }
}

/// One table of the file. When it is dropped, keys that were never asked for are reported.
pub struct Section<'d> {
    document: &'d Document<'d>,
    table: &'d DeTable<'d>,
    path: String,
    at: usize,
    asked: RefCell<BTreeSet<String>>,
}

impl<'d> Section<'d> {
    /// The dotted name of this table, for messages.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The 1-based line at which this table begins.
    pub fn line(&self) -> usize {
        self.document.line_of(self.at)
    }

    /// Where files named here are looked up.
    pub fn surroundings(&self) -> &Surroundings {
        &self.document.around
    }

    /// Reports a mistake at `key`, or at the table's head where the key is absent.
    pub fn problem(&self, key: &str, message: impl fmt::Display) {
        let at = self.entry(key).map_or(self.at, |(at, _)| at);
        self.document.report(at, format!("{}: {message}", self.name(key)));
    }

    /// Takes over the mistakes found in a file that is named here.
    pub fn adopt(&self, file: &Path, problems: Vec<Problem>) {
        let of = |p: Problem| Problem { file: Some(p.file.unwrap_or_else(|| file.to_path_buf())), ..p };
        self.document.problems.borrow_mut().extend(problems.into_iter().map(of));
    }

    /// Whether the key is there. Counts as asking for it.
    pub fn has(&self, key: &str) -> bool {
        self.ask(key).is_some()
    }

    /// Whether the key is there and holds a table.
    pub fn is_table(&self, key: &str) -> bool {
        self.ask(key).is_some_and(|v| v.as_table().is_some())
    }

    /// A string with `${ENV}` filled in.
    pub fn string(&self, key: &str) -> Option<String> {
        let value = self.ask(key)?;
        match value.as_str() {
            Some(s) => self.fill(key, s),
            None => self.wrong(key, value, "a string in quotes"),
        }
    }

    /// A string that has to be there; an empty one stands in after the problem is reported.
    pub fn required_string(&self, key: &str) -> String {
        if !self.has(key) {
            self.problem(key, "is missing");
        }
        self.string(key).unwrap_or_default()
    }

    /// A list of strings; a single string is a list of one.
    pub fn strings(&self, key: &str) -> Option<Vec<String>> {
        let value = self.ask(key)?;
        if let Some(s) = value.as_str() {
            return Some(vec![self.fill(key, s)?]);
        }
        let Some(list) = value.as_array() else { return self.wrong(key, value, "a string or a list of strings") };
        let mut out = Vec::new();
        for item in list.iter() {
            match item.get_ref().as_str() {
                Some(s) => out.push(self.fill(key, s)?),
                None => return self.wrong(key, item.get_ref(), "a list of strings"),
            }
        }
        Some(out)
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        let value = self.ask(key)?;
        value.as_bool().or_else(|| self.wrong(key, value, "true or false"))
    }

    /// A whole number within bounds.
    pub fn integer(&self, key: &str, bounds: RangeInclusive<i64>) -> Option<i64> {
        let value = self.ask(key)?;
        let number = value.as_integer().and_then(|i| i64::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok());
        let Some(n) = number else { return self.wrong(key, value, "a whole number") };
        if !bounds.contains(&n) {
            self.problem(key, format_args!("{n} is not between {} and {}", bounds.start(), bounds.end()));
            return None;
        }
        Some(n)
    }

    /// A finite number.
    pub fn float(&self, key: &str) -> Option<f64> {
        let value = self.ask(key)?;
        self.number(value).or_else(|| self.wrong(key, value, "a number"))
    }

    /// A list of finite numbers of this length.
    pub fn floats<const N: usize>(&self, key: &str) -> Option<[f64; N]> {
        let value = self.ask(key)?;
        let numbers: Option<Vec<f64>> =
            value.as_array().and_then(|list| list.iter().map(|v| self.number(v.get_ref())).collect());
        match numbers.and_then(|n| n.try_into().ok()) {
            Some(n) => Some(n),
            None => self.wrong(key, value, &format!("a list of {N} numbers")),
        }
    }

    /// A duration such as `"500ms"`.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        self.parsed(key, "a duration such as \"500ms\", \"10s\" or \"7d\"", parse_duration)
    }

    /// A size such as `"2GiB"`, in bytes.
    pub fn size(&self, key: &str) -> Option<u64> {
        self.parsed(key, "a size such as \"512MiB\" or \"2GB\"", parse_size)
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, key: &str, options: &[(&str, T)]) -> Option<T> {
        let word = self.string(key)?;
        let found = options.iter().find(|(name, _)| *name == word).map(|(_, v)| *v);
        if found.is_none() {
            let names: Vec<&str> = options.iter().map(|(n, _)| *n).collect();
            self.problem(key, format_args!("{word:?} is not one of {}{}", names.join(", "), hint(&word, &names)));
        }
        found
    }

    /// A file path, taken from the config's directory or from systemd's credentials.
    pub fn path_of(&self, key: &str) -> Option<PathBuf> {
        self.string(key).map(|s| self.document.around.locate(&s))
    }

    /// A path or a list of paths, each as [`Section::path_of`].
    pub fn paths_of(&self, key: &str) -> Option<Vec<PathBuf>> {
        self.strings(key).map(|all| all.iter().map(|s| self.document.around.locate(s)).collect())
    }

    /// A secret: `key` holds the value (better as `${ENV}`) or `key_file` names a file or credential.
    pub fn secret(&self, key: &str) -> Option<Secret> {
        let file_key = format!("{key}_file");
        let inline = self.ask(key).and_then(|value| match value.as_str() {
            Some(s) => self.fill(key, s).map(Secret::new),
            None => {
                // Whatever it is, it may be the secret, and is not shown.
                let kind = value.type_str();
                self.problem(key, format_args!("a value of type {kind} is not a string in quotes"));
                None
            }
        });
        let Some(path) = self.path_of(&file_key) else { return inline };
        if inline.is_some() {
            self.problem(&file_key, format_args!("give either `{key}` or `{file_key}`, not both"));
        }
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned())),
            Err(e) => {
                self.problem(&file_key, format_args!("cannot read {}: {e}", path.display()));
                None
            }
        }
    }

    /// A table below this one.
    pub fn section(&self, key: &str) -> Option<Section<'d>> {
        let value = self.ask(key)?;
        match value.as_table() {
            Some(table) => Some(self.below(key, table, self.entry(key).map_or(self.at, |(at, _)| at))),
            None => self.wrong(key, value, &format!("a table: [{}]", self.name(key))),
        }
    }

    /// All `[[key]]` tables below this one.
    pub fn sections(&self, key: &str) -> Vec<Section<'d>> {
        let Some(value) = self.ask(key) else { return Vec::new() };
        let Some(list) = value.as_array() else {
            self.wrong::<()>(key, value, &format!("a list of tables: [[{}]]", self.name(key)));
            return Vec::new();
        };
        let mut out = Vec::new();
        for item in list.iter() {
            match item.get_ref().as_table() {
                Some(table) => out.push(self.below(key, table, item.span().start)),
                None => {
                    self.wrong::<()>(key, item.get_ref(), "a table");
                }
            }
        }
        out
    }

    /// All keys, for tables whose keys are the user's own names. They still have to be asked for.
    pub fn keys(&self) -> Vec<String> {
        self.table.keys().map(|k| k.get_ref().to_string()).collect()
    }

    fn below(&self, key: &str, table: &'d DeTable<'d>, at: usize) -> Section<'d> {
        Section { document: self.document, table, path: self.name(key), at, asked: RefCell::default() }
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn entry(&self, key: &str) -> Option<(usize, &'d DeValue<'d>)> {
        self.table.iter().find(|(k, _)| k.get_ref() == key).map(|(k, v)| (k.span().start, v.get_ref()))
    }

    fn ask(&self, key: &str) -> Option<&'d DeValue<'d>> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.entry(key).map(|(_, v)| v)
    }

    fn parsed<T>(&self, key: &str, wanted: &str, parse: fn(&str) -> Option<T>) -> Option<T> {
        let value = self.ask(key)?;
        let text = value.as_str().and_then(|s| self.fill(key, s));
        text.and_then(|s| parse(&s)).or_else(|| self.wrong(key, value, wanted))
    }

    fn number(&self, value: &DeValue<'_>) -> Option<f64> {
        let text = match value {
            DeValue::Float(f) => f.as_str(),
            DeValue::Integer(i) if i.radix() == 10 => i.as_str(),
            _ => return None,
        };
        text.replace('_', "").parse().ok().filter(|n: &f64| n.is_finite())
    }

    fn wrong<T>(&self, key: &str, value: &DeValue<'_>, wanted: &str) -> Option<T> {
        let shown = match value {
            DeValue::String(s) => format!("{s:?}"),
            DeValue::Integer(i) => i.to_string(),
            DeValue::Float(f) => f.to_string(),
            DeValue::Boolean(b) => b.to_string(),
            other => format!("a value of type {}", other.type_str()),
        };
        self.problem(key, format_args!("{shown} is not {wanted}"));
        None
    }

    /// Fills in `${NAME}` from the environment.
    fn fill(&self, key: &str, text: &str) -> Option<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            out.push_str(before);
            let Some((name, tail)) = after.split_once('}') else {
                self.problem(key, "a `${` without its `}`");
                return None;
            };
            match std::env::var(name) {
                Ok(value) => out.push_str(&value),
                Err(_) => {
                    self.problem(key, format_args!("the environment variable {name} is not set"));
                    return None;
                }
            }
            rest = tail;
        }
        Some(out + rest)
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        let known: Vec<&str> = asked.iter().map(String::as_str).collect();
        for key in self.table.keys().filter(|k| !asked.contains(k.get_ref().as_ref())) {
            let name = key.get_ref();
            self.document.report(key.span().start, format!("unknown key `{}`{}", self.name(name), hint(name, &known)));
        }
    }
}

/// "; did you mean `x`?" for the nearest known name, where one is near.
pub fn hint(word: &str, known: &[&str]) -> String {
    let near = known.iter().map(|k| (strsim::damerau_levenshtein(word, k), k)).min();
    match near {
        Some((distance, k)) if distance <= 2.max(word.len() / 3) => format!("; did you mean `{k}`?"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests;
