//! The condition under which a machine counts as running: `speed > 0.2 and not (valve < 5)`.

use std::collections::BTreeSet;

/// How deep parentheses and `not` may nest.
const MAX_DEPTH: usize = 32;

/// A condition over a machine's signals.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// A signal against a number.
    Compare(String, Op, f64),
    /// The opposite.
    Not(Box<Condition>),
    /// Both.
    And(Box<Condition>, Box<Condition>),
    /// Either.
    Or(Box<Condition>, Box<Condition>),
}

/// How a signal is compared.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
}

impl Condition {
    /// Reads a condition; `and` binds closer than `or`.
    pub fn parse(text: &str) -> Result<Condition, String> {
        let tokens = tokens(text)?;
        let mut rest = Tokens { all: &tokens, at: 0 };
        let condition = rest.or(0)?;
        match rest.peek() {
            None => Ok(condition),
            Some(t) => Err(format!("{t:?} is not expected here; write e.g. \"speed > 0.2 and load >= 10\"")),
        }
    }

    /// Whether it holds; `None` when a signal it needs cannot be told.
    pub fn holds(&self, value: &impl Fn(&str) -> Option<f64>) -> Option<bool> {
        match self {
            Condition::Compare(signal, op, limit) => value(signal).map(|v| op.holds(v, *limit)),
            Condition::Not(a) => a.holds(value).map(|b| !b),
            Condition::And(a, b) => match (a.holds(value), b.holds(value)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Condition::Or(a, b) => match (a.holds(value), b.holds(value)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
        }
    }

    /// Whether it needs this signal.
    pub fn names(&self, signal: &str) -> bool {
        match self {
            Condition::Compare(own, ..) => own == signal,
            Condition::Not(a) => a.names(signal),
            Condition::And(a, b) | Condition::Or(a, b) => a.names(signal) || b.names(signal),
        }
    }

    /// The signals it needs.
    pub fn signals(&self) -> BTreeSet<&str> {
        match self {
            Condition::Compare(signal, ..) => BTreeSet::from([signal.as_str()]),
            Condition::Not(a) => a.signals(),
            Condition::And(a, b) | Condition::Or(a, b) => a.signals().union(&b.signals()).copied().collect(),
        }
    }
}

impl Op {
    fn holds(self, a: f64, b: f64) -> bool {
        match self {
            Op::Less => a < b,
            Op::AtMost => a <= b,
            Op::More => a > b,
            Op::AtLeast => a >= b,
            Op::Equal => a == b,
            Op::NotEqual => a != b,
        }
    }

    fn parse(text: &str) -> Option<Op> {
        Some(match text {
            "<" => Op::Less,
            "<=" => Op::AtMost,
            ">" => Op::More,
            ">=" => Op::AtLeast,
            "==" | "=" => Op::Equal,
            "!=" => Op::NotEqual,
            _ => return None,
        })
    }
}

struct Tokens<'t> {
    all: &'t [String],
    at: usize,
}

impl Tokens<'_> {
    fn peek(&self) -> Option<&str> {
        self.all.get(self.at).map(String::as_str)
    }

    fn next(&mut self) -> Option<&str> {
        let token = self.all.get(self.at)?;
        self.at += 1;
        Some(token)
    }

    fn or(&mut self, depth: usize) -> Result<Condition, String> {
        let mut left = self.and(depth)?;
        while self.peek() == Some("or") {
            self.at += 1;
            left = Condition::Or(Box::new(left), Box::new(self.and(depth)?));
        }
        Ok(left)
    }

    fn and(&mut self, depth: usize) -> Result<Condition, String> {
        let mut left = self.term(depth)?;
        while self.peek() == Some("and") {
            self.at += 1;
            left = Condition::And(Box::new(left), Box::new(self.term(depth)?));
        }
        Ok(left)
    }

    fn term(&mut self, depth: usize) -> Result<Condition, String> {
        if depth > MAX_DEPTH {
            return Err("the condition is nested too deeply".into());
        }
        match self.peek() {
            Some("not") => {
                self.at += 1;
                Ok(Condition::Not(Box::new(self.term(depth + 1)?)))
            }
            Some("(") => {
                self.at += 1;
                let inner = self.or(depth + 1)?;
                match self.next() {
                    Some(")") => Ok(inner),
                    _ => Err("a `(` without its `)`".into()),
                }
            }
            _ => self.comparison(),
        }
    }

    fn comparison(&mut self) -> Result<Condition, String> {
        let form = "a comparison such as \"motor_current > 0.2\" is expected";
        let signal = self.next().ok_or(form)?.to_owned();
        let op = self.next().and_then(Op::parse).ok_or_else(|| format!("after {signal:?}: {form}"))?;
        match self.next().and_then(|t| t.parse::<f64>().ok()).filter(|n| n.is_finite()) {
            Some(number) => Ok(Condition::Compare(signal, op, number)),
            None => Err(format!("{signal:?} is compared with no number: {form}")),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<String>, String> {
    let mut out: Vec<String> = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&c) = chars.peek() {
        let mut take = |belongs: &dyn Fn(char) -> bool| {
            let mut token = String::new();
            while let Some(c) = chars.next_if(|c| belongs(*c)) {
                token.push(c);
            }
            token
        };
        match c {
            ' ' | '\t' => drop(take(&|c| c == ' ' || c == '\t')),
            '(' | ')' => {
                chars.next();
                out.push(c.to_string());
            }
            '<' | '>' | '=' | '!' => out.push(take(&|c| "<>=!".contains(c))),
            c if is_word(c) => out.push(take(&is_word)),
            other => return Err(format!("{other:?} is not part of a condition")),
        }
    }
    if out.is_empty() { Err("the condition is empty".into()) } else { Ok(out) }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || "_-.+/:".contains(c)
}
