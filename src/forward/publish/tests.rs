//! Topics and messages for dashboards, and what is remembered while the broker is away.

use super::messages::{flat, level, levels};
use super::standing::MAX_MACHINES;
use super::*;
use crate::settings::{Document, Surroundings};
use crate::types::{Alarm, AlarmState, Condition, MachineState, RecordId, Time};

fn standing(home_assistant: bool) -> Standing {
    Standing::new(Topics::new("andon", "lyon/line3", "gw-07"), home_assistant)
}

fn alarm(machine: &Name, condition: Condition, state: AlarmState, severity: u16) -> Alarm {
    Alarm {
        id: RecordId([0; 16]),
        machine: machine.clone(),
        condition,
        state,
        severity,
        since: Time(0),
        at: Time(1),
        message: String::new(),
        top_channel: None,
        acknowledged_by: None,
        care: Default::default(),
    }
}

fn drain(standing: &mut Standing) -> Vec<String> {
    let mut out = Vec::new();
    while let Some(m) = standing.due() {
        assert!(m.retain && m.qos == Qos::AtLeastOnce);
        out.push(format!("{} {}", m.topic, String::from_utf8_lossy(&m.payload)));
        standing.sent();
    }
    out
}

#[test]
fn topics_hold_no_wildcards() {
    assert_eq!(level("a/b+c#$ d"), "a_b_c___d");
    assert_eq!(levels("/lyon//line 3/"), "lyon/line_3");
    let topics = Topics::new("andon", "lyon/line3", "gw/07");
    assert_eq!(topics.of("press/04", "verdict"), "andon/lyon/line3/gw_07/press_04/verdict");
    assert_eq!(Topics::new("andon", "", "gw").status("online").topic, "andon/gw/status");
}

#[test]
fn verdicts_are_flat_with_fixed_types() {
    let data = r#"{"timestamp":"2026-11-22T10:15:30.250Z","machine":"press-04","prediction":1,"anomaly_score":1,
        "p_value":0.0007,"rul":{"low":1,"median":2.5,"high":4},"class":null,"quality":"good","top_channel":"vib_x",
        "diagnostics":[{"name":"vib_x","value":0.41}]}"#;
    insta::assert_snapshot!(flat(data).expect("an object"), @r#"{"anomaly_score":1.0,"machine":"press-04","p_value":0.0007,"prediction":1,"quality":"good","rul_high":4.0,"rul_low":1.0,"rul_median":2.5,"timestamp":"2026-11-22T10:15:30.250Z","top_channel":"vib_x"}"#);
    assert_eq!(flat("[1]"), None);
    assert_eq!(flat("nonsense"), None);
}

#[test]
fn only_the_latest_is_due_and_all_of_it_again_after_a_reconnect() {
    let mut s = standing(false);
    let machine: Name = "press-04".into();
    assert!(s.meet(&machine));
    s.state(&machine, MachineState::Amber, Time(0), "warming up");
    s.state(&machine, MachineState::Green, Time(0), "well");
    s.alarm(&alarm(&machine, Condition::Anomaly, AlarmState::Unacknowledged, 700), r#"{"x":"anomaly"}"#.into());
    s.alarm(&alarm(&machine, Condition::Input, AlarmState::Normal, 900), r#"{"x":"input"}"#.into());
    let first = drain(&mut s);
    assert_eq!(
        first,
        [
            r#"andon/lyon/line3/gw-07/press-04/state {"since":"1970-01-01T00:00:00.000Z","state":"green","why":"well"}"#,
            r#"andon/lyon/line3/gw-07/press-04/alarm {"x":"anomaly"}"#,
        ]
    );
    assert!(!s.is_due());
    s.all_again();
    assert_eq!(drain(&mut s), first);
}

#[test]
fn the_present_state_corrects_what_was_missed_and_sends_nothing_else() {
    let mut s = standing(false);
    let [press, pump]: [Name; 2] = ["press".into(), "pump".into()];
    for machine in [&press, &pump] {
        s.meet(machine);
        s.state(machine, MachineState::Red, Time(0), "anomaly");
        s.alarm(
            &alarm(machine, Condition::Anomaly, AlarmState::Unacknowledged, 700),
            r#"{"state":"unacknowledged","active":true,"shown_state":"shelved","severity":700}"#.into(),
        );
    }
    drain(&mut s);
    // The press is as it was. The pump's return to normal was missed.
    s.present_state(&press, MachineState::Red, Time(5_000_000_000), "anomaly");
    let standing_alarm = alarm(&press, Condition::Anomaly, AlarmState::Unacknowledged, 700);
    s.present_alarm(&standing_alarm, &"{}".into());
    s.present_state(&pump, MachineState::Green, Time(5_000_000_000), "normal");
    assert_eq!(
        drain(&mut s),
        [r#"andon/lyon/line3/gw-07/pump/state {"since":"1970-01-01T00:00:05.000Z","state":"green","why":"normal"}"#]
    );
    s.end_alarms_but(&HashSet::from([RecordId([1; 16])]));
    assert_eq!(
        drain(&mut s),
        [
            r#"andon/lyon/line3/gw-07/press/alarm {"active":false,"severity":700,"state":"normal"}"#,
            r#"andon/lyon/line3/gw-07/pump/alarm {"active":false,"severity":700,"state":"normal"}"#,
        ],
        "neither stands any more"
    );
    assert!(!s.is_due());
}

#[test]
fn machines_without_end_do_not_grow_memory() {
    let mut s = standing(true);
    let met = (0..MAX_MACHINES + 10).filter(|i| s.meet(&i.to_string().into())).count();
    assert_eq!(met, MAX_MACHINES);
}

#[test]
fn home_assistant_hears_of_each_machine() {
    let mut s = standing(true);
    s.meet(&"press 04".into());
    let announced = drain(&mut s);
    let (topic, payload) = announced[0].split_once(' ').expect("topic and payload");
    assert_eq!(topic, "homeassistant/device/andon_gw-07_press_04/config");
    let pretty: serde_json::Value = serde_json::from_str(payload).expect("JSON");
    insta::assert_snapshot!(serde_json::to_string_pretty(&pretty).expect("JSON"), @r#"
    {
      "availability_topic": "andon/lyon/line3/gw-07/status",
      "cmps": {
        "andon_gw-07_press_04_health": {
          "name": "Health",
          "p": "sensor",
          "state_class": "measurement",
          "state_topic": "andon/lyon/line3/gw-07/press_04/verdict",
          "unique_id": "andon_gw-07_press_04_health",
          "unit_of_measurement": "%",
          "value_template": "{{ (value_json.health * 100) | round(1) if value_json.health is defined else none }}"
        },
        "andon_gw-07_press_04_problem": {
          "device_class": "problem",
          "json_attributes_topic": "andon/lyon/line3/gw-07/press_04/alarm",
          "name": "Problem",
          "p": "binary_sensor",
          "state_topic": "andon/lyon/line3/gw-07/press_04/state",
          "unique_id": "andon_gw-07_press_04_problem",
          "value_template": "{{ 'ON' if value_json.state == 'red' else 'OFF' }}"
        },
        "andon_gw-07_press_04_score": {
          "name": "Anomaly score",
          "p": "sensor",
          "state_class": "measurement",
          "state_topic": "andon/lyon/line3/gw-07/press_04/verdict",
          "unique_id": "andon_gw-07_press_04_score",
          "value_template": "{{ value_json.anomaly_score | default(none) }}"
        },
        "andon_gw-07_press_04_state": {
          "device_class": "enum",
          "json_attributes_topic": "andon/lyon/line3/gw-07/press_04/state",
          "name": "State",
          "options": [
            "red",
            "amber",
            "white",
            "green",
            "off"
          ],
          "p": "sensor",
          "state_topic": "andon/lyon/line3/gw-07/press_04/state",
          "unique_id": "andon_gw-07_press_04_state",
          "value_template": "{{ value_json.state }}"
        }
      },
      "dev": {
        "ids": "andon_gw-07_press_04",
        "mdl": "monitored machine",
        "mf": "andon",
        "name": "press 04"
      },
      "o": {
        "name": "andon",
        "sw": "0.1.0"
      },
      "qos": 1
    }
    "#);
    s.announce_again();
    assert_eq!(drain(&mut s), announced);
}

#[test]
fn the_config() {
    let read = |text: &str| {
        let document = Document::parse(text, Surroundings::default());
        let config = Config::read(&document.root(), "lyon/line3");
        (config, document.into_problems().into_iter().map(|p| p.message).collect::<Vec<_>>().join("\n"))
    };
    let (config, problems) = read("source = \"shop\"");
    assert_eq!((config.prefix.as_str(), config.home_assistant, problems.as_str()), ("andon", false, ""));
    insta::assert_snapshot!(read("prefix = \"a/#\"").1, @r#"
    prefix: "a/#" is not a topic: levels of plain text, joined by /
    source: is missing
    "#);
}

#[test]
fn while_the_engine_is_silent_only_red_is_known() {
    let [press, pump] = ["press", "pump"].map(Name::from);
    let mut s = standing(false);
    for (machine, light) in [(&press, MachineState::Red), (&pump, MachineState::Green)] {
        s.meet(machine);
        s.state(machine, light, Time(0), "before");
    }
    drain(&mut s);
    s.engine_is_silent(Time(0));
    let told = drain(&mut s);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains(r#"pump/state {"since":"1970-01-01T00:00:00.000Z","state":"amber""#), "{told:?}");
    s.present_state(&pump, MachineState::Green, Time(7), "normal");
    assert!(drain(&mut s)[0].contains(r#""state":"green""#));
}
