//! What stands in plots, in the language of the page.

use serde::Deserialize;

/// A language of the page.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// English.
    #[default]
    En,
    /// Chinese.
    Zh,
}

/// Titles and notes; names of signals are nobody's words and stay as they are.
const ZH: [(&str, &str); 11] = [
    ("anomaly score", "异常分数"),
    ("p-value", "p 值"),
    ("health", "健康度"),
    ("useful life left", "剩余寿命"),
    ("records waiting", "待发送记录"),
    ("readings per second", "每秒读数"),
    ("records sent per second", "每秒发送记录"),
    ("good", "良好"),
    ("stale", "过期"),
    ("bad", "坏值"),
    ("uncertain", "不确定"),
];

impl Language {
    /// This text in the language, or as it is.
    pub fn say(self, text: &str) -> &str {
        let found = (self == Language::Zh).then(|| ZH.iter().find(|(english, _)| *english == text)).flatten();
        found.map_or(text, |(_, chinese)| chinese)
    }

    /// So many seconds before the end.
    pub fn ago(self, seconds: f64) -> String {
        let (number, unit) = match seconds.round() as u64 {
            s if s < 120 => (s.to_string(), "s"),
            s if s < 7_200 => (format!("{}:{:02}", s / 60, s % 60), "min"),
            s if s < 172_800 => ((s / 3_600).to_string(), "h"),
            s => ((s / 86_400).to_string(), "d"),
        };
        match self {
            Language::En => format!("{number} {unit} earlier"),
            Language::Zh => format!("{number} {unit} 前"),
        }
    }

    /// `-log10 p` as people say it.
    pub fn rarity(self, surprise: f64) -> String {
        let one_in = 10f64.powf(surprise.clamp(0.0, 12.0));
        let many = match one_in {
            n if n < 1.05 => return if self == Language::Zh { "总是" } else { "always" }.into(),
            n if n < 10.0 => format!("{n:.1}"),
            n if n < 1e3 => format!("{n:.0}"),
            n if n < 1e6 => format!("{:.0} k", n / 1e3),
            n if n < 1e9 => format!("{:.0} M", n / 1e6),
            n => format!("{:.0} G", n / 1e9),
        };
        match self {
            Language::En => format!("1 in {many}"),
            Language::Zh => format!("1/{many}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_languages() {
        assert_eq!([0.0, 1.0, 3.0, 6.0].map(|s| Language::En.rarity(s)), ["always", "1 in 10", "1 in 1 k", "1 in 1 M"]);
        assert_eq!(Language::Zh.rarity(3.0), "1/1 k");
        assert_eq!((Language::En.say("health"), Language::Zh.say("health")), ("health", "健康度"));
        assert_eq!(Language::Zh.say("vib_x"), "vib_x");
        assert_eq!(
            [5.0, 600.0, 90_000.0, 9e5].map(|s| Language::En.ago(s)),
            ["5 s earlier", "10:00 min earlier", "25 h earlier", "10 d earlier"]
        );
    }
}
