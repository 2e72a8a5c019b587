//! The tracker held against a plain model of ISA-18.2's state diagram, written from the standard's
//! states A to I and from nothing of the tracker; and against itself after a kill at every step.

use proptest::prelude::*;

use super::*;

/// The nine states' two halves: what the process and the operator have made of the alarm (A to F)
/// and what keeps it from being announced (G, H, I), which the standard lets come from any of them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plain {
    /// The condition holds, after its delays.
    condition: bool,
    /// Somebody has seen it.
    acknowledged: bool,
    /// It is in alarm or owed: not in A.
    standing: bool,
    latch: bool,
    shelved_until: Option<i64>,
    suppressed: bool,
    out_of_service: bool,
}

/// What comes before the diagram: when the process counts as in alarm, with on-delay, off-delay (seconds)
/// and deadband. The two halves never run at once.
#[derive(Clone, Debug, Default)]
struct Delayed {
    on: i64,
    off: i64,
    deadband: f64,
    in_alarm: bool,
    /// Since when all looks have spoken against how it stands.
    against: Option<i64>,
}

impl Delayed {
    fn sees(&mut self, strength: f64, now: i64) -> bool {
        let speaks_against = if self.in_alarm { strength < 1.0 - self.deadband } else { strength >= 1.0 };
        if !speaks_against {
            self.against = None;
            return self.in_alarm;
        }
        let long_enough = if self.in_alarm { self.off } else { self.on };
        if now - *self.against.get_or_insert(now) >= long_enough {
            (self.in_alarm, self.against) = (!self.in_alarm, None);
        }
        self.in_alarm
    }
}

impl Plain {
    fn quiet(&self) -> bool {
        self.shelved_until.is_some() || self.suppressed || self.out_of_service
    }

    fn letter(&self) -> char {
        match (self.standing, self.condition, self.acknowledged, self.latch) {
            (false, ..) => 'A',
            (true, true, false, _) => 'B',
            (true, true, true, _) => 'C',
            (true, false, false, false) => 'D',
            (true, false, false, true) => 'E',
            (true, false, true, true) => 'F',
            (true, false, true, false) => unreachable!("acknowledged and over is normal"),
        }
    }

    /// The condition comes or goes.
    fn process(&mut self, holds: bool) {
        if holds && !self.condition {
            (self.standing, self.acknowledged) = (true, false);
        }
        if !holds && self.condition && self.acknowledged && !self.latch {
            self.standing = false;
        }
        self.condition = holds;
    }

    /// Leaving G, H or I with the condition there is to B.
    fn returned(&mut self, was_quiet: bool) {
        if was_quiet && !self.quiet() && self.condition {
            self.acknowledged = false;
        }
    }

    fn time(&mut self, now: i64) {
        let quiet = self.quiet();
        if self.shelved_until.is_some_and(|t| t <= now) {
            self.shelved_until = None;
        }
        self.returned(quiet);
    }

    /// Whether the standard allows it; if so it is done.
    fn act(&mut self, action: Action, now: i64, critical: bool) -> bool {
        let quiet = self.quiet();
        let allowed = match action {
            Action::Acknowledge => matches!(self.letter(), 'B' | 'D' | 'E'),
            Action::Reset => self.letter() == 'F',
            Action::Shelve(_) => !critical,
            Action::Unshelve => self.shelved_until.is_some(),
            Action::OutOfService => !self.out_of_service,
            Action::InService => self.out_of_service,
        };
        if !allowed {
            return false;
        }
        match action {
            Action::Acknowledge => {
                self.acknowledged = true;
                self.standing = self.condition || self.latch;
            }
            Action::Reset => self.standing = false,
            Action::Shelve(seconds) => self.shelved_until = Some(now + i64::from(seconds)),
            Action::Unshelve => self.shelved_until = None,
            Action::OutOfService => self.out_of_service = true,
            Action::InService => self.out_of_service = false,
        }
        self.returned(quiet);
        true
    }
}

fn letter(t: &Tracker) -> char {
    match t.alarm().map(|a| a.state) {
        None | Some(AlarmState::Normal) => 'A',
        Some(AlarmState::Unacknowledged) => 'B',
        Some(AlarmState::Acknowledged) => 'C',
        Some(AlarmState::ReturnedUnacknowledged) => 'D',
        Some(AlarmState::LatchedUnacknowledged) => 'E',
        Some(AlarmState::LatchedAcknowledged) => 'F',
    }
}

#[derive(Clone, Debug)]
enum Event {
    See(Option<f64>),
    Act(Action),
    Suppress(bool),
    Pass,
}

fn event() -> impl Strategy<Value = Event> {
    let actions = prop_oneof![
        3 => Just(Action::Acknowledge),
        2 => Just(Action::Reset),
        2 => (0u32..9).prop_map(Action::Shelve),
        1 => Just(Action::Unshelve),
        1 => Just(Action::OutOfService),
        1 => Just(Action::InService),
    ];
    prop_oneof![
        8 => prop::option::weighted(0.9, 0.0..2.0f64).prop_map(Event::See),
        4 => actions.prop_map(Event::Act),
        1 => any::<bool>().prop_map(Event::Suppress),
        1 => Just(Event::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever people, rules, time and the process do, in whatever order: the tracker is in the state
    /// the standard's diagram says, tells of each change once, and a kill between any two events
    /// changes nothing.
    #[test]
    fn as_the_standard_has_it(
        events in prop::collection::vec(event(), 1..150),
        latch: bool,
        critical: bool,
        (on, off) in (0..4u64, 0..4u64),
        deadband in prop::sample::select(vec![0.0, 0.1, 0.5]),
    ) {
        let severity = if critical { CRITICAL_SEVERITY } else { 500 };
        let rule = Rule { latch, severity, deadband, ..rule(on, off) };
        let mut process = Delayed { on: on as i64, off: off as i64, deadband, ..Delayed::default() };
        let (mut t, mut plain) = (Tracker::default(), Plain { latch, ..Plain::default() });
        for (second, event) in events.iter().enumerate() {
            let (now, at) = (second as i64, Time(second as i64 * 1_000_000_000));
            // Time passes first: what was put aside comes back.
            plain.time(now);
            let mut told: Vec<Alarm> = t.expire(at).into_iter().collect();
            prop_assert_eq!(letter(&t), plain.letter());
            let before = t.clone();
            match event {
                Event::See(strength) => {
                    if let Some(s) = strength {
                        plain.process(process.sees(*s, now));
                    }
                    told.extend(t.observe(&rule, &look(now, *strength)));
                }
                Event::Act(action) => {
                    let allowed = plain.act(*action, now, critical)
                        && !matches!(action, Action::Shelve(0));
                    if matches!(action, Action::Shelve(0)) && !critical {
                        plain.shelved_until = before.shelved_until().map(|t| t.0 / 1_000_000_000);
                    }
                    let done = t.act(&rule, &act(*action, at));
                    prop_assert_eq!(done.is_ok(), allowed, "{:?} in {} gave {:?}", action, plain.letter(), done);
                    if done.is_err() {
                        prop_assert_eq!(&t, &before, "what is refused changes nothing");
                    }
                    told.extend(done);
                }
                Event::Suppress(on) => {
                    let quiet = plain.quiet();
                    plain.suppressed = *on && !critical;
                    plain.returned(quiet);
                    told.extend(t.suppress(&rule, *on, at));
                }
                Event::Pass => {}
            }
            prop_assert_eq!(letter(&t), plain.letter(), "after {:?}", event);
            prop_assert_eq!(t.is_calling(), matches!(plain.letter(), 'B' | 'C' | 'E' | 'F') && !plain.quiet());
            let care = t.alarm().map(|a| a.care.clone()).unwrap_or_default();
            prop_assert_eq!(care.shelf.map(|s| s.until.0 / 1_000_000_000), plain.shelved_until);
            prop_assert_eq!(care.out_of_service.is_some(), plain.out_of_service);
            if plain.letter() != 'A' {
                prop_assert_eq!(care.suppressed, plain.suppressed);
            }
            // Each change is told, and nothing is told that did not change.
            let stands = |t: &Tracker| t.alarm().map(|a| (a.id, a.state, a.care.is_quiet(), a.care.shelf.clone()));
            if stands(&t) != stands(&before) && !matches!(event, Event::Pass) {
                prop_assert!(!told.is_empty(), "{event:?} changed {before:?} to {t:?} and told nobody");
            }
            let moved = told.iter().all(|a| a.at == at || a.care.change == Change::ShelfExpired);
            prop_assert!(moved, "{told:?}");
            // Kill -9 and back.
            let kept = postcard::to_stdvec(&t).expect("encoded");
            t = postcard::from_bytes(&kept).expect("decoded");
        }
    }
}
