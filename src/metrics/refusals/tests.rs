//! Shares, log lines and examples of what a source sends and is not used.

use super::*;

const REFUSAL: Refusal<'static> = Refusal {
    kind: "rejected",
    place: "factory/{machine}/{signal}",
    topic: "factory/press/speed",
    reason: "\"abc\" is not a number",
    payload: b"abc",
    count: 1,
};

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// `refused` of `received` at one moment.
fn some(refusals: &mut Refusals, refused: u64, received: u64, now: Instant) {
    refusals.received(received, now);
    for _ in 0..refused {
        refusals.refuse(&REFUSAL, now);
    }
}

/// Whether the kind stands after a review: `None` when the review says nothing of it.
fn review(refusals: &mut Refusals, now: Instant) -> Option<bool> {
    refusals.review(now).first().map(|(_, detail)| detail.is_some())
}

#[test]
fn more_than_a_share_degrades_until_a_minute_passes_with_less() {
    let begin = Instant::now();
    let mut refusals = Refusals::new("payloads");
    some(&mut refusals, 4, 20, begin);
    assert_eq!(review(&mut refusals, begin), None, "four are too few");
    some(&mut refusals, 1, 30, begin + seconds(1));
    assert_eq!(review(&mut refusals, begin + seconds(1)), None, "five of fifty are tolerated");
    some(&mut refusals, 14, 0, begin + seconds(2));
    let changes = refusals.review(begin + seconds(2));
    assert_eq!(
        changes,
        [(
            "rejected",
            Some(
                "19 of 50 payloads in the last minute are rejected; newest: factory/press/speed: \"abc\" is not a \
                 number, for example abc"
                    .to_owned()
            )
        )]
    );
    some(&mut refusals, 0, 100, begin + seconds(61));
    assert_eq!(review(&mut refusals, begin + seconds(61)), Some(true), "14 of 100 within the minute");
    assert_eq!(review(&mut refusals, begin + seconds(62)), Some(false));
    assert!(!refusals.is_watching());
    assert_eq!(review(&mut refusals, begin + seconds(63)), None, "said once");
}

#[test]
fn a_source_of_which_everything_is_refused_stays_degraded_until_something_is_used() {
    let begin = Instant::now();
    let mut refusals = Refusals::new("payloads");
    some(&mut refusals, 1, 1, begin);
    assert_eq!(review(&mut refusals, begin + seconds(1)), Some(true), "one of one");
    assert_eq!(review(&mut refusals, begin + seconds(300)), None, "it stands though nothing comes");
    assert!(refusals.is_watching());
    some(&mut refusals, 0, 1, begin + seconds(301));
    assert_eq!(review(&mut refusals, begin + seconds(301)), Some(false));
}

#[test]
fn one_line_for_each_place_then_ever_fewer_with_the_count() {
    let begin = Instant::now();
    let mut refusals = Refusals::new("payloads");
    let mut lines = Vec::new();
    for second in 0..10 * 3600 {
        if let Some(line) = refusals.refuse(&REFUSAL, begin + seconds(second)) {
            lines.push((second, line.count));
        }
    }
    assert_eq!(lines[..4], [(0, 1), (60, 60), (180, 120), (420, 240)]);
    assert_eq!(lines.last().map(|l| l.1), Some(3600));
    assert!(lines.len() < 20, "{lines:?}");
    let elsewhere = Refusal { place: "line/#", ..REFUSAL };
    let line = refusals.refuse(&elsewhere, begin + seconds(36_000)).expect("another place has its own line");
    assert_eq!((line.place.as_str(), line.count), ("line/#", 1));
    let other = Refusal { reason: "there is no number in it", ..REFUSAL };
    assert!(refusals.refuse(&other, begin + seconds(36_000)).is_some(), "and so has another reason");
    let same = Refusal { reason: "\"xyz\" is not a number", ..REFUSAL };
    assert!(refusals.refuse(&same, begin + seconds(36_001)).is_none(), "what is quoted makes no other reason");
}

#[test]
fn places_are_bounded_and_quiet_ones_make_room() {
    let begin = Instant::now();
    let mut refusals = Refusals::new("payloads");
    let mut flood = |from: usize, now: Instant| {
        let places = (from..from + 10_000).map(|i| format!("machine-{i}"));
        let lines = places.filter_map(|place| refusals.refuse(&Refusal { place: &place, ..REFUSAL }, now));
        (lines.count(), refusals.places.len())
    };
    assert_eq!(flood(0, begin), (MAX_PLACES + 1, MAX_PLACES + 1));
    assert_eq!(flood(20_000, begin + seconds(1)), (0, MAX_PLACES + 1));
    let (lines, places) = flood(40_000, begin + seconds(4000));
    assert!(lines <= MAX_PLACES + 1 && places <= MAX_PLACES + 1, "{lines} lines, {places} places");
    assert!(lines > 100, "the old ones are forgotten");
}

#[test]
fn secrets_and_forged_lines_are_not_shown() {
    let mut refusals = Refusals::new("payloads");
    let now = Instant::now();
    let refusal = Refusal {
        topic: "factory/a\nERROR all is lost",
        reason: "\"hunter2\" is not a number",
        payload: b"{\"password\":\"hunter2\"}",
        ..REFUSAL
    };
    let line = refusals.refuse(&refusal, now).expect("the first");
    assert_eq!(line.reason, "… is not a number");
    assert_eq!(line.example, "{\"passw[hidden]");
    assert_eq!(line.topic, "factory/a\\nERROR all is lost");
    refusals.received(1, now);
    let all = format!("{:?}", refusals.review(now));
    assert!(!all.contains("hunter2") && all.contains("is not a number"), "{all}");
    let refusal = Refusal { topic: "factory/token", payload: b"eyJhbGciOi", place: "token", ..REFUSAL };
    let line = refusals.refuse(&refusal, now).expect("another place");
    assert_eq!(line.example, "[hidden]");
}

#[test]
fn a_clock_that_stands_still_or_rests_for_long_does_no_harm() {
    let begin = Instant::now();
    let mut refusals = Refusals::new("readings");
    for now in [begin + seconds(10), begin, begin + seconds(1_000_000_000)] {
        some(&mut refusals, 9, 10, now);
        assert_eq!(review(&mut refusals, now), Some(true));
    }
}
