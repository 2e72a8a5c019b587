//! What a bundle asks of the agent that is to run it: version, execution provider, memory, time; and how
//! long it may be used.

use serde::Deserialize;

use crate::types::Time;

/// Execution providers there are here.
const PROVIDERS: [&str; 1] = ["cpu"];
/// The newest ONNX operator set that is read here.
const MAX_OPSET: u32 = 21;

/// `compat` in `model.json`; what is absent is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Compat {
    /// Versions of andon, such as `>=0.3` or `>=0.3, <2`.
    #[serde(default)]
    pub agent: Option<String>,
    /// Execution providers of which one has to be here.
    #[serde(default)]
    pub ep: Vec<String>,
    /// The newest operator set that the graph uses.
    #[serde(default)]
    pub max_opset: Option<u32>,
    /// Memory it may take when loaded and run, in MiB.
    #[serde(default)]
    pub max_ram_mb: Option<f64>,
    /// The longest that 99 of 100 windows may take, one at a time, in ms.
    #[serde(default)]
    pub p99_ms: Option<f64>,
}

impl Compat {
    /// Whether this agent can run it.
    ///
    /// # Errors
    /// What it asks for that is not here.
    pub fn check(&self, own_version: &str) -> Result<(), String> {
        if let Some(wanted) = &self.agent
            && !fits(wanted, own_version)?
        {
            return Err(format!("it is for andon {wanted}, and this is {own_version}"));
        }
        if !self.ep.is_empty() && !self.ep.iter().any(|ep| PROVIDERS.contains(&ep.as_str())) {
            return Err(format!("it runs on {} only, and here is {}", self.ep.join(", "), PROVIDERS.join(", ")));
        }
        if self.max_opset.is_some_and(|n| n > MAX_OPSET) {
            let n = self.max_opset.unwrap_or_default();
            return Err(format!("it uses the ONNX operator set {n}, and {MAX_OPSET} is the newest here"));
        }
        let positive = |n: Option<f64>| n.is_none_or(|n| n.is_finite() && n > 0.0);
        if !positive(self.max_ram_mb) || !positive(self.p99_ms) {
            return Err("compat.max_ram_mb and compat.p99_ms have to be above 0".into());
        }
        Ok(())
    }
}

/// Whether it may still be used.
///
/// # Errors
/// Since when it may not.
pub fn check_expiry(expires: Option<Time>, now: Time) -> Result<(), String> {
    match expires.filter(|e| *e <= now) {
        Some(expired) => Err(format!("it expired at {expired}")),
        None => Ok(()),
    }
}

/// Whether a version fits a list of comparisons, all of which have to hold.
fn fits(wanted: &str, own: &str) -> Result<bool, String> {
    let unknown = || format!("compat.agent: {wanted:?} is not a list of comparisons such as \">=0.3, <2\"");
    let own = numbers(own).ok_or_else(unknown)?;
    let mut all = true;
    for part in wanted.split(',').map(str::trim) {
        let at = part.find(|c: char| c.is_ascii_digit()).ok_or_else(unknown)?;
        let (operator, version) = (part[..at].trim(), numbers(&part[at..]).ok_or_else(unknown)?);
        all &= match operator {
            ">=" => own >= version,
            ">" => own > version,
            "<=" => own <= version,
            "<" => own < version,
            "=" | "==" | "" => own == version,
            _ => return Err(unknown()),
        };
    }
    Ok(all)
}

/// Up to three numbers between dots; what is not there is 0.
fn numbers(version: &str) -> Option<[u32; 3]> {
    let mut out = [0; 3];
    for (i, part) in version.trim().split('.').enumerate() {
        *out.get_mut(i)? = part.parse().ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared() {
        for (wanted, own, holds) in [
            (">=0.3", "0.1.0", false),
            (">=0.1", "0.1.0", true),
            (">0.1", "0.1.0", false),
            (">=0.1, <2", "1.9.9", true),
            (">=0.1,<2", "2.0", false),
            ("1.2.3", "1.2.3", true),
            ("<=1.10", "1.9", true),
        ] {
            assert_eq!(fits(wanted, own), Ok(holds), "{wanted} {own}");
        }
        for bad in ["", "latest", "^1.0", ">=1.x", ">=1.2.3.4"] {
            assert!(fits(bad, "1.0").is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_here_is_named() {
        let refused =
            |text: &str| serde_json::from_str::<Compat>(text).expect("JSON").check("0.1.0").expect_err("refused");
        assert!(refused(r#"{"agent": ">=9"}"#).contains("it is for andon >=9"));
        assert!(refused(r#"{"ep": ["cuda"]}"#).contains("cuda only"));
        assert!(refused(r#"{"max_opset": 99}"#).contains("operator set 99"));
        assert!(refused(r#"{"p99_ms": 0}"#).contains("above 0"));
        Compat::default().check("0.1.0").expect("asks for nothing");
        assert!(check_expiry(Some(Time(5)), Time(5)).expect_err("over").contains("expired"));
        check_expiry(Some(Time(6)), Time(5)).and(check_expiry(None, Time(5))).expect("good");
    }
}
