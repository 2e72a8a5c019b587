//! Values and times found in payloads of every format, and in what is none.

use proptest::prelude::*;

use super::*;
use crate::settings::{Document, Surroundings};

fn config(text: &str, has_signal: bool) -> (Config, Vec<String>) {
    let document = Document::parse(text, Surroundings::default());
    let config = Config::read(&document.root(), has_signal);
    (config, document.into_problems().into_iter().map(|p| p.message).collect())
}

/// Each value as `name=number@time`; then `!` and the complaint.
fn decode(settings: &str, payload: &str) -> Result<String, String> {
    let (config, problems) = config(settings, true);
    assert_eq!(problems, [""; 0]);
    let mut found = Found::default();
    config.decode(payload.as_bytes(), &mut found)?;
    let mut out: Vec<String> = Vec::new();
    for (name, value, at) in found.values() {
        let value = value.map_or("none".to_owned(), |v| v.to_string());
        out.push(format!("{name}={value}{}", at.map_or(String::new(), |t| format!("@{t}"))));
    }
    out.extend(found.complaint().map(|c| format!("!{c}")));
    Ok(out.join(" "))
}

#[test]
fn json_with_pointers() {
    let settings = "value = \"/value\"\ntime = \"/ts\"\ntime_format = \"unix_ms\"";
    let good = "=23.5@2023-11-14T22:13:20.123Z";
    assert_eq!(decode(settings, r#"{"value":23.5,"ts":1700000000123}"#).as_deref(), Ok(good));
    assert_eq!(decode(settings, r#"{"ts":1700000000123,"x":{"value":9},"value":23.5}"#).as_deref(), Ok(good));
    assert_eq!(decode(settings, r#"{"ts":"1700000000123","value":23.5}"#).as_deref(), Ok(good));
    assert_eq!(
        decode(settings, r#"{"ts":1700000000123,"value":null}"#).as_deref(),
        Ok("=none@2023-11-14T22:13:20.123Z")
    );
    for (payload, reason) in [
        (r#"{"value":23.5}"#, "there is no time at /ts"),
        (r#"{"ts":1700000000123}"#, "there is nothing at /value"),
        (r#"{"value":"23.5","ts":1}"#, "/value is a text, not a number"),
        (r#"{"value":[1,2],"ts":1}"#, "/value is an array, not a number"),
        (r#"{"value":1,"ts":"soon"}"#, "the time \"soon\" is not a number"),
        (r#"{"value":1,"ts":9223372036854775807}"#, "the time is out of range"),
        (r#"{"value":1,"ts":1}x"#, "not valid JSON: trailing characters at line 1 column 19"),
        (r#"{"value":NaN,"ts":1}"#, "not valid JSON: expected value at line 1 column 10"),
        (r#"{"value":1e999,"ts":1}"#, "not valid JSON: number out of range at line 1 column 14"),
        ("", "not valid JSON: EOF while parsing a value at line 1 column 0"),
    ] {
        assert_eq!(decode(settings, payload), Err(reason.to_owned()), "{payload}");
    }
}

#[test]
fn json_arrays_of_samples() {
    let settings = "samples = \"/data/0\"\nvalue = \"/v\"\ntime = \"/t\"\ntime_format = \"unix_s\"";
    let two = r#"{"id":7,"data":[[{"t":1700000000,"v":1.5},{"v":2,"t":1700000001}]]}"#;
    assert_eq!(decode(settings, two).as_deref(), Ok("=1.5@2023-11-14T22:13:20.000Z =2@2023-11-14T22:13:21.000Z"));
    let members = "samples = \"\"\ntime = \"/t\"\ntime_format = \"unix_s\"";
    assert_eq!(
        decode(members, r#"[{"t":1700000000,"a":1,"b":2},{"t":1700000001,"a":3}]"#).as_deref(),
        Ok("a=1@2023-11-14T22:13:20.000Z b=2@2023-11-14T22:13:20.000Z a=3@2023-11-14T22:13:21.000Z")
    );
    assert_eq!(
        decode(settings, r#"{"data":[[{"v":1},{"t":1700000001,"v":2},5]]}"#).as_deref(),
        Ok("=2@2023-11-14T22:13:21.000Z !sample 0: there is no time at /t"),
        "one bad sample hides no other"
    );
    for (payload, reason) in [
        (r#"{"data":[]}"#, "there is nothing at /data/0"),
        (r#"{"data":[5]}"#, "/data/0 is not an array of samples"),
        (r#"{"data":[[]]}"#, "there is no number in it"),
        (r#"{"data":"#, "not valid JSON: EOF while parsing a value at line 1 column 8"),
    ] {
        assert_eq!(decode(settings, payload), Err(reason.to_owned()), "{payload}");
    }
    let (_, problems) = config("samples = \"/data\"", true);
    assert_eq!(problems, ["samples: needs `time`: where each sample has its own, counted from the sample"]);
}

#[test]
fn json_pointers_of_any_depth() {
    assert_eq!(
        decode("value = \"/a/b~1c/1\"", r#"{"a":{"b/c":[1,{"x":1},3]}}"#),
        Err("/a/b~1c/1 is an object, not a number".into())
    );
    assert_eq!(decode("value = \"/a/1\"", r#"{"a":[1,2,3]}"#).as_deref(), Ok("=2"));
    assert_eq!(decode("value = \"\"", "true").as_deref(), Ok("=1"));
    assert_eq!(
        decode("value = \"/v\"\ntime = \"/m/t\"", r#"{"m":{"t":"2026-11-22T10:15:30.25Z"},"v":-1e3}"#).as_deref(),
        Ok("=-1000@2026-11-22T10:15:30.250Z")
    );
}

#[test]
fn json_without_a_pointer_takes_every_number() {
    let payload = r#"{"temp":21.5,"on":true,"unit":"C","axis":{"x":1,"y":{"z":-2}},"list":[1,2],"gone":null}"#;
    assert_eq!(decode("", payload).as_deref(), Ok("temp=21.5 on=1 axis.x=1 axis.y.z=-2"));
    assert_eq!(decode("", "42").as_deref(), Ok("=42"));
    assert_eq!(
        decode("time = \"/t\"\ntime_format = \"unix_s\"", r#"{"a":1,"t":1700000000}"#).as_deref(),
        Ok("a=1@2023-11-14T22:13:20.000Z")
    );
    assert_eq!(decode("", r#"{"unit":"C"}"#), Err("there is no number in it".into()));
    assert_eq!(decode("", "[1,2]"), Err("there is no number in it".into()));
}

#[test]
fn the_good_members_are_taken_and_the_rest_is_told() {
    let long = "x".repeat(300);
    assert_eq!(
        decode("", &format!(r#"{{"a":1,"{long}":2,"b":3}}"#)).as_deref(),
        Ok("a=1 b=3 !a name of more than 256 bytes")
    );
    let many: Vec<String> = (0..5000).map(|i| format!("\"s{i}\":{i}")).collect();
    let out = decode("", &format!("{{{}}}", many.join(","))).expect("good ones");
    assert!(out.ends_with("s4095=4095 !more than 4096 values in one payload"), "{out}");
}

#[test]
fn deep_nesting_is_refused_without_harm() {
    let payload = "{\"a\":".repeat(100_000 / 5) + "1";
    assert!(decode("", &payload).is_err_and(|e| e.contains("recursion limit")));
    assert!(decode("value = \"/x\"", &format!("{{\"y\":{}", "[".repeat(200_000))).is_err());
    assert!(decode("", &"1".repeat(MAX_PAYLOAD + 1)).is_err_and(|e| e.contains("larger than")));
}

#[test]
fn numbers() {
    let settings = "payload = \"number\"";
    assert_eq!(decode(settings, " 23.5\n").as_deref(), Ok("=23.5"));
    assert_eq!(decode(settings, "false").as_deref(), Ok("=0"));
    for bad in ["", "NaN", "inf", "1e999", "on", "1,5", "0x10"] {
        assert!(decode(settings, bad).is_err(), "{bad}");
    }
}

#[test]
fn csv_lines() {
    assert_eq!(decode("payload = \"csv\"", "1.5\n2\n").as_deref(), Ok("=1.5 =2"));
    let settings = "payload = \"csv\"\ntime = \"1\"\nvalue = \"2\"\ntime_format = \"unix_s\"";
    assert_eq!(decode(settings, "1700000000;1,5;x").as_deref(), Ok("=1.5@2023-11-14T22:13:20.000Z"));
    let half = decode(settings, "1700000000,1\n1700000001").expect("the first line");
    assert_eq!(half, "=1@2023-11-14T22:13:20.000Z !there is no column 2 in the line \"1700000001\"");
}

#[test]
fn influx_lines() {
    let settings = "payload = \"influx\"";
    let line = "motor,line=3\\ b,site=x current=1.5,rpm=1480i,ok=t,name=\"a, b\" 1700000000000000001";
    let at = "@2023-11-14T22:13:20.000000001Z";
    assert_eq!(decode(settings, line), Ok(format!("current=1.5{at} rpm=1480{at} ok=1{at}")));
    assert_eq!(decode(settings, "m a=1").as_deref(), Ok("a=1"));
    assert_eq!(decode(settings, "m a=x,b=2").as_deref(), Ok("b=2 !\"x\" is not a number in the line \"m a=x,b=2\""));
    assert!(decode(settings, "m").is_err());
}

#[test]
fn mistakes_in_the_config() {
    let problems = |text, has_signal| config(text, has_signal).1.join("\n");
    insta::assert_snapshot!(problems("payload = \"jsn\"\nvalue = \"value\"\ntime = \"ts\"\ntime_format = \"ms\"", true), @r#"
    payload: "jsn" is not one of json, number, csv, influx, sparkplug_b; did you mean `json`?
    value: "value" is not a JSON pointer such as "/value" or "/data/0"
    time: "ts" is not a JSON pointer such as "/value" or "/data/0"
    time_format: "ms" is not one of rfc3339, unix_s, unix_ms, unix_us, unix_ns
    "#);
    insta::assert_snapshot!(problems("value = \"/value\"", false), @r#"value: finds one number: name its signal by {signal} in `topic`, or by `signal`"#);
    insta::assert_snapshot!(problems("payload = \"number\"\nvalue = \"/v\"\ntime_format = \"unix_s\"", false), @r#"
    payload: a bare number needs {signal} in `topic`, or `signal`
    value: does not go with payload = "number"
    time_format: is not used without `time`
    "#);
    insta::assert_snapshot!(problems("payload = \"sparkplug_b\"\nvalue = \"/x\"", true), @r#"value: does not go with payload = "sparkplug_b""#);
    insta::assert_snapshot!(problems("payload = \"csv\"\nvalue = \"0\"", true), @r#"value: is the number of the column for CSV, "1" being the first"#);
}

proptest! {
    #[test]
    fn agrees_with_a_parsed_tree(values in prop::collection::btree_map("[a-z/~ é\\\\\"]{0,6}", -1e9..1e9f64, 0..8), pick in any::<prop::sample::Index>()) {
        let payload = serde_json::json!(values).to_string();
        let tree: serde_json::Value = serde_json::from_str(&payload).expect("JSON");
        if !values.is_empty() {
            let key = pick.get(&values.keys().collect::<Vec<_>>()).to_string();
            let pointer = format!("/{}", key.replace('~', "~0").replace('/', "~1"));
            let config = Config { value: Pointer::parse(&pointer), ..Config::default() };
            let mut found = Found::default();
            config.decode(payload.as_bytes(), &mut found).expect("a number");
            let expected = tree.pointer(&pointer).and_then(serde_json::Value::as_f64);
            prop_assert_eq!(found.values().map(|v| v.1).collect::<Vec<_>>(), vec![expected]);
        }
    }

    #[test]
    fn any_bytes_are_survived(payload in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut found = Found::default();
        for format in [Format::Json, Format::Number, Format::Csv, Format::Influx] {
            let config = Config { format, ..Config::default() };
            if config.decode(&payload, &mut found).is_ok() {
                prop_assert!(found.values().all(|v| v.1.is_none_or(f64::is_finite)));
            }
        }
    }

    #[test]
    fn any_json_is_survived(payload in "[\\[\\]{}\",:0-9a-z.e+-]{0,60}") {
        let mut found = Found::default();
        let config = Config { time: Pointer::parse("/a"), ..Config::default() };
        let samples = Config { samples: Pointer::parse("/b"), ..config.clone() };
        let _ = samples.decode(payload.as_bytes(), &mut found);
        let _ = config.decode(payload.as_bytes(), &mut found);
        prop_assert!(found.values().all(|v| v.1.is_none_or(f64::is_finite)));
    }
}
