//! Modbus settings and what is said of the wrong ones.

use super::*;
use crate::settings::{Document, Surroundings};
use crate::source::modbus::registers::Table;

/// The first `[[modbus]]` of a file, and its problems.
fn read(text: &str) -> (Config, Vec<String>) {
    let document = Document::parse(text, Surroundings::default());
    let config = Config::read(&document.root().sections("modbus")[0]);
    let problems = document.into_problems().into_iter().map(|p| format!("{}: {}", p.line, p.message)).collect();
    (config, problems)
}

const GOOD: &str = r#"[[modbus]]
name = "press-plc"
url = "tcp://192.168.1.50:1502"
unit = 3
poll = "500ms"
timeout = "2s"
max_registers = 100
gap = 4
pause = "20ms"
address_base = 1
machine = "press-04"

[[modbus.signal]]
name = "motor_current"
at = "holding:101"
type = "f32"
order = "CDAB"
scale = 0.1
offset = 2
poll = "100ms"

[[modbus.signal]]
name = "door"
machine = "cell-1"
at = "40013.3"

[[modbus.signal]]
name = "running"
at = "coil:1"
"#;

#[test]
fn everything_can_be_said() {
    let (config, problems) = read(GOOD);
    assert_eq!(problems, [] as [String; 0]);
    let span = |table, start, count| Span { table, start, count };
    let current = Decoder {
        order: Order::parse("CDAB", 2).expect("an order"),
        scale: 0.1,
        offset: 2.0,
        ..Decoder::plain(Type::F32)
    };
    let signal = |machine: &str, name: &str, span, decoder, poll| {
        let poll = Duration::from_millis(poll);
        Signal { machine: machine.into(), name: name.into(), span, decoder, poll }
    };
    let bool = Decoder::plain(Type::Bool);
    let expected = Config {
        name: "press-plc".into(),
        url: Url::Tcp(Host { host: "192.168.1.50".into(), port: 1502 }),
        unit: 3,
        timeout: Duration::from_secs(2),
        limits: Limits { max_registers: 100, gap: 4 },
        pause: Duration::from_millis(20),
        signals: vec![
            signal("press-04", "motor_current", span(Table::Holding, 100, 2), current, 100),
            signal("cell-1", "door", span(Table::Holding, 12, 1), Decoder { bit: Some(3), ..bool }, 500),
            signal("press-04", "running", span(Table::Coil, 0, 1), bool, 500),
        ],
        learnt: None,
    };
    assert_eq!(config, expected);
    let delivers: Vec<String> = config.delivers().map(|(machine, signal)| format!("{machine}/{signal}")).collect();
    assert_eq!(delivers, ["press-04/motor_current", "cell-1/door", "press-04/running"]);
}

#[test]
fn little_needs_to_be_said() {
    let (config, problems) = read(
        "[[modbus]]\nname = \"a\"\nurl = \"tcp://plc\"\nmachine = \"m\"\nsignal = [{ name = \"s\", at = \"input:0\", type = \"u16\" }]\n",
    );
    assert_eq!(problems, [] as [String; 0]);
    assert_eq!(config.url, Url::Tcp(Host { host: "plc".into(), port: 502 }));
    assert_eq!(config.limits, Limits { max_registers: 125, gap: 8 });
    let second = Duration::from_secs(1);
    assert_eq!((config.unit, config.timeout, config.pause), (1, second, Duration::ZERO));
    assert_eq!(config.signals[0].poll, second);
}

/// The problems of one signal.
fn signal(text: &str) -> Vec<String> {
    let head = "[[modbus]]\nname = \"a\"\nurl = \"tcp://plc\"\nmachine = \"m\"\nmax_registers = 3\n[[modbus.signal]]\n";
    let (_, problems) = read(&format!("{head}{text}"));
    problems.into_iter().map(|p| p.replace("modbus.signal.", "")).collect()
}

#[test]
fn mistakes_in_a_signal() {
    for (text, problem) in [
        (r#"at = "coil:1", type = "f32""#, "9: type: a coil is a single bit and cannot be read as f32"),
        (r#"at = "holding:1.2", type = "u16""#, "9: type: holding:1.2 is a single bit and cannot be read as u16"),
        (
            r#"at = "holding:1", type = "bool""#,
            "8: at: a bool in a register needs its bit: \"holding:1.0\" to \"holding:1.15\"",
        ),
        (r#"at = "holding:1""#, "6: type: is missing: how is holding:1 to be read, as u16, i16, f32 …?"),
        (
            r#"at = "holding:1", type = "string(8)""#,
            "9: type: a signal is a number; strings can be looked at with `andon modbus read`",
        ),
        (
            r#"at = "holding:1", type = "f23""#,
            "9: type: \"f23\" is not one of bool, u16, i16, u32, i32, u64, i64, f32, f64; did you mean `f32`?",
        ),
        (r#"at = "holding:1", type = "f32", order = "AB""#, "10: order: \"AB\" should have 4 letters, such as ABCD"),
        (
            r#"at = "holding:1", type = "f32", order = "ABCC""#,
            "10: order: \"ABCC\" should hold each of the letters ABCD once",
        ),
        (r#"at = "coil:1", order = "AB""#, "9: order: a single bit has no byte order"),
        (r#"at = "holding:65535", type = "f32""#, "8: at: holding:65535 leaves no room for the 2 registers of a f32"),
        (r#"at = "holding:65536", type = "u16""#, "8: at: \"holding:65536\" is not between 0 and 65535"),
        (r#"at = "holding:0", type = "f64""#, "9: type: a f64 takes 4 registers, but max_registers is 3"),
        (r#"at = "coil:1", poll = "0s""#, "9: poll: should be 1ms or longer"),
        (r#"at = "coil:1", scale = 0"#, "9: scale: 0 would make every value the same"),
        (r#"at = "coil:1", ofset = 1"#, "9: unknown key `ofset`; did you mean `offset`?"),
        (r#"type = "u16""#, "6: at: is missing"),
    ] {
        assert_eq!(signal(&format!("name = \"s\"\n{}", text.replace(", ", "\n"))), [problem], "{text}");
    }
    assert_eq!(signal("at = \"coil:1\""), ["6: name: is missing"]);
}

#[test]
fn mistakes_in_a_source() {
    let (_, problems) = read(
        "[[modbus]]\nname = \"\"\nurl = \"rtu://ttyUSB0\"\nunit = 256\ntimeout = \"0s\"\npoll = \"0s\"\nmax_registers = 4\ngap = 5\naddress_base = 2\n",
    );
    assert_eq!(
        problems,
        [
            "1: modbus.signal: nothing to read: add a [[source.modbus.signal]] or name a profile",
            "2: modbus.name: is empty",
            "3: modbus.url: \"rtu://ttyUSB0\" does not name a device such as \"rtu:///dev/ttyUSB0\"",
            "4: modbus.unit: 256 is not between 0 and 255",
            "5: modbus.timeout: should be 1ms or longer",
            "6: modbus.poll: should be 1ms or longer",
            "8: modbus.gap: 5 is more than max_registers, which is 4",
            "9: modbus.address_base: 2 is not between 0 and 1",
        ]
    );
}

#[test]
fn a_machine_is_needed_and_names_are_unique_within_it() {
    let (_, problems) = read(
        "[[modbus]]\nname = \"a\"\nurl = \"tcp://plc\"\n[[modbus.signal]]\nname = \"s\"\nat = \"coil:1\"\n\
         [[modbus.signal]]\nname = \"t\"\nat = \"coil:1\"\nmachine = \"m\"\n\
         [[modbus.signal]]\nname = \"t\"\nat = \"coil:2\"\nmachine = \"n\"\n\
         [[modbus.signal]]\nname = \"t\"\nat = \"coil:2\"\nmachine = \"m\"\n",
    );
    assert_eq!(
        problems,
        [
            "4: modbus.signal.machine: is missing: give it here or for the whole source",
            "16: modbus.signal.name: \"t\" is there twice for machine \"m\"",
        ]
    );
}

#[test]
fn urls() {
    let tcp = |host: &str, port| Ok(Url::Tcp(Host { host: host.into(), port }));
    assert_eq!(Url::parse("tcp://10.0.0.1:503"), tcp("10.0.0.1", 503));
    assert_eq!(Url::parse("tcp://plc.line3/"), tcp("plc.line3", 502));
    assert_eq!(Url::parse("tcp://[::1]"), tcp("::1", 502));
    assert_eq!(Url::parse("tcp://[::1]:1502"), tcp("::1", 1502));
    assert_eq!(Url::parse("tcp://[::1]:1502").expect("a URL").to_string(), "tcp://[::1]:1502");
    for text in [
        "",
        "plc:502",
        "tcp://",
        "tcp://:502",
        "tcp://a:0",
        "tcp://a:70000",
        "tcp://a:b",
        "tcp://::1",
        "tcp://a/b",
        "tcp://[::1",
    ] {
        assert!(Url::parse(text).expect_err(text).contains("is not a URL such as"), "{text}");
    }
    assert_eq!(Url::parse("tpc://a").expect_err("a typo"), "\"tpc\" is not tcp, rtu or rtu-tcp; did you mean `tcp`?");
}

#[test]
fn a_line_has_one_setting() {
    let source = |name: &str, url: &str| {
        format!(
            "[[modbus]]\nname = \"{name}\"\nurl = \"{url}\"\nsignal = [{{ name = \"s\", at = \"coil:1\", machine = \"m\" }}]\n"
        )
    };
    let problems = |urls: [&str; 2]| {
        let text = source("a", urls[0]) + &source("b", urls[1]);
        let document = Document::parse(&text, Surroundings::default());
        assert_eq!(Config::read_all(&document.root()).len(), 2);
        document.into_problems().into_iter().map(|p| p.message).collect::<Vec<_>>()
    };
    assert_eq!(problems(["rtu:///dev/x?baud=9600", "rtu:///dev/y"]), [] as [String; 0]);
    assert_eq!(problems(["rtu:///dev/x?baud=9600", "rtu:///dev/x?parity=even&baud=9600"]), [] as [String; 0]);
    assert_eq!(problems(["rtu-tcp://gateway", "rtu-tcp://gateway:502"]), [] as [String; 0]);
    assert_eq!(
        problems(["rtu:///dev/y\"\nunit = 0\nmachine = \"m", "tcp://plc\"\nunit = 0\nmachine = \"m"]),
        ["modbus.unit: 0 is every unit of a serial line at once, and none of them answers to it"]
    );
    assert_eq!(
        problems(["rtu:///dev/x?baud=9600", "rtu:///dev/x"]),
        ["modbus.url: \"a\" uses it as rtu:///dev/x?baud=9600&parity=even&stop=1, and a line has one setting"]
    );
}
