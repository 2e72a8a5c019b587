//! What is written to and read from an inference server.

use proptest::prelude::*;

use super::*;
use crate::types::{Asking, RecordId, Time};

fn ask(window: &[f32], steps: usize) -> Ask {
    Ask {
        id: RecordId([7; 16]),
        machine: "pump-1".into(),
        at: Time(0),
        reason: Asking::Uncertain,
        steps,
        channels: window.len() / steps,
        window: window.into(),
    }
}

fn model(shape: &str) -> Metadata {
    let text = format!(r#"{{"name":"m","inputs":[{{"name":"x","datatype":"FP32","shape":{shape}}}]}}"#);
    metadata(false, text.as_bytes()).expect("metadata")
}

fn read(body: &str) -> Result<f64, Wrong> {
    reply(body.as_bytes(), None, &ask(&[1.0], 1), None).map(|f| f.score)
}

fn answer(shape: &str, data: &str) -> String {
    format!(r#"{{"model_name":"m","outputs":[{{"name":"y","datatype":"FP32","shape":{shape},"data":{data}}}]}}"#)
}

#[test]
fn a_window_is_sent_in_the_shape_the_model_takes() {
    let window = ask(&[1.0, 2.5, 3.0, 4.0, 5.0, 6.0], 3);
    for (shape, sent) in
        [("[-1,3,2]", json!([1, 3, 2])), ("[1,6]", json!([1, 6])), ("[-1,-1]", json!([1, 6])), ("[3,2]", json!([3, 2]))]
    {
        let (body, head) = request(&window, &model(shape), None).expect("a request");
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let id = "07070707070707070707070707070707";
        let input = json!({"name": "x", "datatype": "FP32", "shape": sent, "data": [1.0, 2.5, 3.0, 4.0, 5.0, 6.0]});
        assert_eq!((body, head), (json!({"id": id, "inputs": [input]}), None), "{shape}");
    }
    for shape in ["[-1,4,2]", "[-1,5]", "[6]", "[]"] {
        assert_eq!(request(&window, &model(shape), None).map_err(|e| e.0), Err(Outcome::Misfit), "{shape}");
    }
    let silent = metadata(false, b"{\"name\":\"m\"}").expect("metadata");
    assert_eq!(silent.input_for(3, 2), Ok(("window", "FP32", vec![1, 3, 2])));
    let nan = request(&ask(&[f32::NAN], 1), &silent, None);
    assert_eq!(nan.map_err(|e| e.0), Err(Outcome::NotFinite));
}

#[test]
fn binary_tensors_go_both_ways() {
    assert!(speaks_binary(br#"{"name":"andon","extensions":["binary_tensor_data"]}"#));
    assert!(!speaks_binary(br#"{"name":"mlserver","extensions":[]}"#) && !speaks_binary(b"hello"));
    let meta = Metadata { binary: true, ..model("[-1,1,2]") };
    let (body, head) = request(&ask(&[1.5, -2.0], 1), &meta, Some("y")).expect("a request");
    let (text, tail) = body.split_at(head.expect("binary"));
    assert_eq!(tail, [1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat());
    let text: Value = serde_json::from_slice(text).expect("JSON");
    assert_eq!(
        (&text["inputs"][0]["parameters"]["binary_data_size"], &text["outputs"][0]["name"]),
        (&json!(8), &json!("y"))
    );
    let head = br#"{"model_version":"3","outputs":[{"name":"a","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}},{"name":"score","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}"#;
    let body = [&head[..], &[0; 8], &0.75_f32.to_le_bytes()].concat();
    let found = reply(&body, Some(head.len()), &ask(&[1.0], 1), None);
    assert_eq!(found, Ok(Found { score: 0.75, version: Some("3".into()) }));
    let short = reply(&body[..body.len() - 1], Some(head.len()), &ask(&[1.0], 1), None);
    assert_eq!(short.map_err(|e| e.0), Err(Outcome::Misfit));
    assert_eq!(reply(b"{}", Some(9), &ask(&[1.0], 1), None).map_err(|e| e.0), Err(Outcome::Malformed));
}

#[test]
fn one_number_is_read_however_it_is_wrapped() {
    for (shape, data, score) in [
        ("[1]", "[0.25]", 0.25),
        ("[1,1]", "[[0.25]]", 0.25),
        ("[1,1]", "[3]", 3.0),
        ("[1]", "[true]", 1.0),
        ("[]", "0.5", 0.5),
    ] {
        assert_eq!(read(&answer(shape, data)), Ok(score), "{shape} {data}");
    }
}

#[test]
fn what_is_no_answer_is_told_apart() {
    for (body, outcome) in [
        ("Internal Server Error".into(), Outcome::Malformed),
        ("{\"outputs\":[".into(), Outcome::Malformed),
        (answer("[1]", "[NaN]"), Outcome::NotFinite),
        (answer("[1]", "[null]"), Outcome::NotFinite),
        (answer("[1]", "[-Infinity]"), Outcome::NotFinite),
        (answer("[2]", "[1,2]"), Outcome::Misfit),
        (answer("[1]", "[1,2]"), Outcome::Misfit),
        (answer("[1]", "[\"x\"]"), Outcome::Misfit),
        (answer("[-1]", "[1]"), Outcome::Misfit),
        (r#"{"outputs":[]}"#.into(), Outcome::Misfit),
        (
            r#"{"id":"another","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[1]}]}"#.into(),
            Outcome::Misfit,
        ),
    ] {
        assert_eq!(read(&body).map_err(|e| e.0), Err(outcome), "{body}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(body: Vec<u8>, head in proptest::option::of(0_usize..300)) {
        let _ = reply(&body, head, &ask(&[1.0], 1), None);
        let _ = metadata(speaks_binary(&body), &body);
    }

    #[test]
    fn any_sizes_are_survived(sizes in prop::collection::vec(any::<u64>(), 1..4), tail: Vec<u8>, shape: Vec<i64>) {
        let one = |n: &u64| json!({"name": "score", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": n}});
        let head = json!({"outputs": sizes.iter().map(one).collect::<Vec<_>>()}).to_string();
        let body = [head.as_bytes(), &tail].concat();
        let _ = reply(&body, Some(head.len()), &ask(&[1.0], 1), None);
    }
}
