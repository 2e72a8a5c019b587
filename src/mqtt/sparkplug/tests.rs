//! The Sparkplug B codec: round trips, known bytes, and bytes that mean no good.

use proptest::prelude::*;

use super::datatype::*;
use super::wire::MAX_METRICS;
use super::*;

#[test]
fn topics_are_taken_apart_and_written() {
    let t = Topic::parse("spBv1.0/plant 1/DDATA/edge/press").expect("a topic");
    assert_eq!((t.group, t.verb, t.node, t.device), ("plant 1", Verb::DData, "edge", Some("press")));
    assert_eq!(Topic::write(t.group, t.verb, t.node, t.device), "spBv1.0/plant 1/DDATA/edge/press");
    assert_eq!(Topic::parse("spBv1.0/g/NDEATH/e").map(|t| (t.verb, t.device)), Some((Verb::NDeath, None)));
    for other in [
        "spBv1.0/STATE/host",
        "spAv1.0/g/NDATA/e",
        "spBv1.0/g/NDATA",
        "spBv1.0/g/NDATA/e/d",
        "spBv1.0/g/DDATA/e",
        "spBv1.0/g/DDATA/e/",
        "spBv1.0/g/DDATA/e/d/x",
        "spBv1.0/g/ndata/e",
        "spBv1.0//NDATA/e",
        "",
    ] {
        assert_eq!(Topic::parse(other), None, "{other}");
    }
}

/// Each numeric datatype at its ends, as the specification puts it on the wire (6.4.16), and as
/// other clients do.
#[test]
fn numbers_of_every_datatype() {
    let is = |datatype, value: Value<'_>, wanted: f64| assert_eq!(value.number(Some(datatype)), Number::Is(wanted));
    is(INT8, Value::Int(-128_i32 as u32), -128.0);
    is(INT8, Value::Int(0x80), -128.0);
    is(INT8, Value::Int(127), 127.0);
    is(INT16, Value::Int(-32_768_i32 as u32), -32_768.0);
    is(INT16, Value::Int(0xffff), -1.0);
    is(INT32, Value::Int(i32::MIN as u32), f64::from(i32::MIN));
    is(INT32, Value::Long(-5_i64 as u64), -5.0);
    is(INT64, Value::Long(i64::MIN as u64), i64::MIN as f64);
    is(UINT8, Value::Int(255), 255.0);
    is(UINT16, Value::Int(65_535), 65_535.0);
    is(UINT32, Value::Int(u32::MAX), f64::from(u32::MAX));
    is(UINT32, Value::Long(u64::from(u32::MAX)), f64::from(u32::MAX));
    is(UINT64, Value::Long(u64::MAX), u64::MAX as f64);
    is(FLOAT, Value::Float(1.5), 1.5);
    is(DOUBLE, Value::Double(-2.25), -2.25);
    is(BOOLEAN, Value::Boolean(true), 1.0);
    for (datatype, value) in [
        (UINT8, Value::Int(256)),
        (INT8, Value::Int(256)),
        (INT16, Value::Int(-40_000_i32 as u32)),
        (UINT32, Value::Long(1 << 32)),
        (DOUBLE, Value::Int(3)),
        (INT32, Value::Double(3.0)),
    ] {
        assert_eq!(value.number(Some(datatype)), Number::Wrong, "{datatype} {value:?}");
    }
    assert_eq!(Value::Int(3).number(None), Number::NeedsType);
    assert_eq!(Value::Double(3.0).number(None), Number::Is(3.0));
    assert_eq!(Value::Text("x").number(Some(STRING)), Number::IsNone);
    assert_eq!(Value::Long(1).number(Some(13)), Number::IsNone, "a DateTime is no measurement");
}

#[test]
fn bytes_as_another_implementation_writes_them() {
    // Made with Eclipse Tahu's schema: timestamp 1000, one metric `a` (alias 3, Int32 -1), seq 2.
    let bytes = b"\x08\xe8\x07\x12\x0d\x0a\x01a\x10\x03\x20\x03\x50\xff\xff\xff\xff\x0f\x18\x02";
    let payload = decode(bytes).expect("a payload");
    assert_eq!((payload.timestamp, payload.seq), (Some(1000), Some(2)));
    let m = &payload.metrics[0];
    assert_eq!((m.name, m.alias, m.datatype), (Some("a"), Some(3), Some(INT32)));
    assert_eq!(m.value.number(m.datatype), Number::Is(-1.0));
    assert_eq!(encode(&payload), bytes);
}

#[test]
fn what_is_too_much_is_refused() {
    let many = Payload { metrics: vec![Metric::default(); MAX_METRICS + 1], ..Payload::default() };
    assert_eq!(decode(&encode(&many)), Err(Unreadable::TooMany));
    let mut deep = Metric::default();
    for _ in 0..6 {
        deep = Metric { value: Value::Template(vec![deep]), ..Metric::default() };
    }
    let deep = Payload { metrics: vec![deep], ..Payload::default() };
    assert_eq!(decode(&encode(&deep)), Err(Unreadable::TooDeep));
    assert_eq!(decode(b"\x12\xff\xff\xff\xff\x7f"), Err(Unreadable::Truncated));
    assert_eq!(decode(b"\x0b"), Err(Unreadable::Malformed), "groups are not used");
    assert_eq!(decode(b"\x12\x03\x0a\x01\xff"), Err(Unreadable::NotText));
}

fn value() -> impl Strategy<Value = Value<'static>> {
    let leaf = prop_oneof![
        Just(Value::None),
        any::<u32>().prop_map(Value::Int),
        any::<u64>().prop_map(Value::Long),
        (-1e30_f32..1e30).prop_map(Value::Float),
        (-1e300..1e300).prop_map(Value::Double),
        any::<bool>().prop_map(Value::Boolean),
        prop::sample::select(vec!["", "x", "Größe"]).prop_map(Value::Text),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop::collection::vec(inner.prop_map(|value| Metric { value, ..Metric::default() }), 0..4)
            .prop_map(Value::Template)
    })
}

prop_compose! {
    fn metric()(
        name in prop::option::of(prop::sample::select(vec!["a", "Node Control/Rebirth", "Drehzahl °"])),
        alias in any::<Option<u64>>(),
        timestamp in any::<Option<u64>>(),
        datatype in any::<Option<u32>>(),
        is_historical in any::<bool>(),
        is_null in any::<bool>(),
        quality in prop::option::of(0..1000),
        value in value(),
    ) -> Metric<'static> {
        Metric { name, alias, timestamp, datatype, is_historical, is_null, quality, value }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        timestamp in any::<Option<u64>>(),
        seq in any::<Option<u64>>(),
        metrics in prop::collection::vec(metric(), 0..6),
    ) {
        let payload = Payload { timestamp, seq, uuid: None, metrics };
        let bytes = encode(&payload);
        prop_assert_eq!(decode(&bytes), Ok(payload));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(payload) = decode(&bytes) {
            for m in &payload.metrics {
                m.value.number(m.datatype);
            }
        }
    }

    #[test]
    fn damage_never_panics(m in metric(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut bytes = encode(&Payload { metrics: vec![m], timestamp: Some(1), seq: Some(1), uuid: None });
        let i = at.index(bytes.len());
        bytes[i] = byte;
        bytes.truncate(cut.index(bytes.len() + 1));
        let _ = decode(&bytes);
    }
}
