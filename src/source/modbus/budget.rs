//! How much of a serial line's time the configured polling takes: worked out before the line shows
//! it by falling behind. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::config::Config;
use super::frame::answer_bytes;
use super::plan::{Memory, Span, plan};
use super::url::{Serial, Url};

/// How long a device is taken to think before it answers. Most need 2 to 20 ms.
pub const TURN_ROUND: Duration = Duration::from_millis(5);
/// Unit, function, address, count, checksum.
const REQUEST_BYTES: u32 = 8;
/// Unit, function, count, checksum.
const ANSWER_BYTES: u32 = 5;
/// Speeds to suggest.
const USUAL_BAUD: [u32; 7] = [2400, 4800, 9600, 19_200, 38_400, 57_600, 115_200];

/// What one unit takes of its line.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// The unit.
    pub unit: u8,
    /// The fastest poll period of its signals.
    pub period: Duration,
    /// How long its requests keep the line, on average, in each such period.
    pub busy: Duration,
}

/// What all units take of one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    /// The device file.
    pub path: String,
    /// Bits per second.
    pub baud: u32,
    /// In the order of the config.
    pub shares: Vec<Share>,
    /// The lowest usual speed at which everything would fit, if there is one.
    pub enough: Option<u32>,
}

impl Load {
    /// The part of the line's time that is taken; above 1 polling falls behind.
    pub fn part(&self) -> f64 {
        self.shares.iter().map(Share::part).sum()
    }

    /// A sentence for each unit, or one for all, when there is more than the line can carry.
    pub fn problems(&self) -> Vec<String> {
        if self.part() <= 1.0 {
            return Vec::new();
        }
        let way_out = match self.enough {
            Some(baud) => format!("raise its poll, or baud to {baud}"),
            None => "raise its poll; no usual baud is enough".into(),
        };
        let alone = |s: &Share| {
            let (busy, period) = (s.busy.as_secs_f64(), s.period.as_secs_f64());
            format!("unit {} needs {busy:.2} s in every {period} s at {} baud; {way_out}", s.unit, self.baud)
        };
        let over: Vec<String> = self.shares.iter().filter(|s| s.part() > 1.0).map(alone).collect();
        if !over.is_empty() {
            return over;
        }
        let parts = self.shares.iter().map(|s| format!("unit {} {:.0} %", s.unit, s.part() * 100.0));
        let parts = parts.collect::<Vec<_>>().join(", ");
        vec![format!(
            "the units need {:.0} % of the line's time at {} baud ({parts}); {}",
            self.part() * 100.0,
            self.baud,
            way_out.replace("its poll", "poll")
        )]
    }
}

impl Share {
    /// The part of the line's time that it takes.
    pub fn part(&self) -> f64 {
        self.busy.as_secs_f64() / self.period.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// The load of each serial line in use, in the order of the config.
pub fn loads(configs: &[Config]) -> Vec<Load> {
    let mut lines: Vec<(&Serial, Vec<&Config>)> = Vec::new();
    for config in configs {
        let Url::Rtu(serial) = &config.url else { continue };
        match lines.iter_mut().find(|(line, _)| line.path == serial.path) {
            Some((_, users)) => users.push(config),
            None => lines.push((serial, vec![config])),
        }
    }
    lines.into_iter().map(|(serial, users)| load(serial, &users)).collect()
}

fn load(serial: &Serial, users: &[&Config]) -> Load {
    let shares = |serial: &Serial| users.iter().map(|c| share(serial, c)).collect::<Vec<_>>();
    let fits = |baud: &u32| {
        let faster = Serial { baud: *baud, ..serial.clone() };
        shares(&faster).iter().map(Share::part).sum::<f64>() <= 1.0
    };
    let enough = USUAL_BAUD.into_iter().filter(|b| *b > serial.baud).find(fits);
    Load { path: serial.path.clone(), baud: serial.baud, shares: shares(serial), enough }
}

fn share(serial: &Serial, config: &Config) -> Share {
    let mut beats: BTreeMap<Duration, Vec<usize>> = BTreeMap::new();
    for (i, signal) in config.signals.iter().enumerate() {
        beats.entry(signal.poll).or_default().push(i);
    }
    let period = beats.keys().next().copied().unwrap_or(Duration::from_secs(1));
    let spans: Vec<Span> = config.signals.iter().map(|s| s.span).collect();
    // Signals of different periods that fall due together may share requests: this is the most.
    let part: f64 = (beats.iter())
        .map(|(poll, due)| {
            let requests = plan(&spans, due, config.limits, &Memory::default(), Instant::now());
            let busy: Duration = requests.iter().map(|r| exchange(serial, r.span)).sum();
            let rests = config.pause * u32::try_from(requests.len().saturating_sub(1)).unwrap_or(u32::MAX);
            (busy + rests).as_secs_f64() / poll.as_secs_f64()
        })
        .sum();
    Share { unit: config.unit, period, busy: period.mul_f64(part) }
}

/// How long one request and its answer keep the line: both frames, the rest after each, and the time
/// a device is taken to think.
pub fn exchange(serial: &Serial, span: Span) -> Duration {
    let characters = REQUEST_BYTES + ANSWER_BYTES + u32::try_from(answer_bytes(span)).unwrap_or(u32::MAX);
    serial.character() * characters + serial.gap() * 2 + TURN_ROUND
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Document, Surroundings};
    use crate::source::modbus::registers::Table;

    fn read(text: &str) -> Vec<Config> {
        let document = Document::parse(text, Surroundings::default());
        let all: Vec<Config> = document.root().sections("modbus").iter().map(Config::read).collect();
        assert_eq!(document.into_problems(), []);
        all
    }

    fn source(url: &str, unit: u8, poll: &str, registers: std::ops::Range<u16>) -> String {
        let signals: String = registers
            .map(|at| format!("[[modbus.signal]]\nname = \"r{at}\"\nat = \"holding:{at}\"\ntype = \"u16\"\n"))
            .collect();
        format!(
            "[[modbus]]\nname = \"n{unit}\"\nurl = \"{url}\"\nunit = {unit}\npoll = \"{poll}\"\nmachine = \"m\"\n{signals}"
        )
    }

    #[test]
    fn one_exchange_by_hand() {
        // 9600 baud, 8E1: 11 bits, 1.1458 ms a character. 8 + 5 + 20 characters, 7 of rest.
        let Ok(Url::Rtu(serial)) = Url::parse("rtu:///dev/x?baud=9600") else { panic!("a serial line") };
        let took = exchange(&serial, Span { table: Table::Holding, start: 0, count: 10 });
        let expected = Duration::from_secs_f64(40.0 * 11.0 / 9600.0) + TURN_ROUND;
        assert!(took.abs_diff(expected) < Duration::from_micros(1), "{took:?}, not {expected:?}");
    }

    #[test]
    fn what_fits_is_no_problem() {
        let text = source("rtu:///dev/x?baud=9600", 1, "1s", 0..100) + &source("tcp://plc", 2, "1ms", 0..100);
        let loads = loads(&read(&text));
        assert_eq!(loads.len(), 1, "TCP has no budget");
        assert!((0.2..0.4).contains(&loads[0].part()), "{loads:?}");
        assert_eq!(loads[0].problems(), [] as [String; 0]);
    }

    #[test]
    fn a_unit_that_needs_too_much_is_named_with_a_way_out() {
        let loads = loads(&read(&source("rtu:///dev/x?baud=2400", 7, "1s", 0..125)));
        assert_eq!(
            loads[0].problems(),
            ["unit 7 needs 1.24 s in every 1 s at 2400 baud; raise its poll, or baud to 4800"]
        );
        let loads = self::loads(&read(&source("rtu:///dev/x?baud=9600", 7, "10ms", 0..125)));
        assert_eq!(
            loads[0].problems(),
            ["unit 7 needs 0.31 s in every 0.01 s at 9600 baud; raise its poll; no usual baud is enough"]
        );
    }

    #[test]
    fn units_that_fit_alone_may_not_fit_together() {
        let text: String = (1..=4).map(|u| source("rtu:///dev/x?baud=9600", u, "1s", 0..125)).collect();
        let loads = loads(&read(&text));
        assert_eq!(
            loads[0].problems(),
            [
                "the units need 126 % of the line's time at 9600 baud (unit 1 31 %, unit 2 31 %, unit 3 31 %, unit 4 31 %); raise poll, or baud to 19200"
            ]
        );
    }

    #[test]
    fn the_pause_and_faster_signals_count() {
        let base = source("rtu:///dev/x?baud=9600", 1, "1s", 0..10);
        let one = loads(&read(&base))[0].part();
        let apart =
            base.replace("at = \"holding:9\"", "at = \"holding:900\"").replace("poll", "pause = \"100ms\"\npoll");
        let more = loads(&read(&apart))[0].part();
        assert!(more > one + 0.1, "{one} and {more}");
        let faster = base.replacen("type = \"u16\"", "type = \"u16\"\npoll = \"100ms\"", 1);
        let load = &loads(&read(&faster))[0];
        assert!(load.part() > one * 3.0, "{one} and {load:?}");
        assert_eq!(load.shares[0].period, Duration::from_millis(100));
    }
}
