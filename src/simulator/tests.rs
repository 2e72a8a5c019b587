//! Tests of the plant: the same run for the same seed, values a sensor can give, faults that show.

use proptest::prelude::*;

use super::csv::{self, Options};
use super::faults::{GAP, TAIL, WARM_UP, schedule};
use super::plant::{Class, DT, Fault, FaultKind, Layout, MachineKind, MachineSpec, Plant, Step};

fn run(plant: &mut Plant, seconds: f64) -> Vec<Step> {
    std::iter::from_fn(|| (plant.time() < seconds).then(|| plant.step())).collect()
}

/// The values of one signal of the layout's only machine between two times.
fn signal(steps: &[Step], name: &str, from: f64, to: f64) -> Vec<f64> {
    let rows = steps.iter().filter(|step| step.time >= from && step.time < to);
    rows.filter_map(|step| step.machines[0].values.iter().find(|(n, _)| *n == name).and_then(|(_, v)| *v)).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn highest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::MIN, f64::max)
}

/// A figure of one signal over the second half of a fault, with and without that fault.
fn with_and_without(
    kind: MachineKind,
    fault: FaultKind,
    seed: u64,
    name: &str,
    figure: fn(&[f64]) -> f64,
) -> (f64, f64) {
    let layout = match kind {
        MachineKind::Pump => Layout::new(1, 0, 0),
        MachineKind::Motor => Layout::new(0, 1, 0),
        MachineKind::Press => Layout::new(0, 0, 1),
    };
    let machine = layout.machines[0].name.clone();
    let fault = Fault { kind: fault, machine, signal: None, start: 10.0, duration: 20.0, severity: 1.0 };
    let with = run(&mut Plant::with_faults(seed, &layout, vec![fault.clone()]), 30.0);
    // A fault on a signal that does not exist changes nothing, but keeps the machine from stopping alike.
    let idle = Fault { kind: FaultKind::SensorStuck, signal: None, ..fault };
    let without = run(&mut Plant::with_faults(seed, &layout, vec![idle]), 30.0);
    (figure(&signal(&with, name, 20.0, 30.0)), figure(&signal(&without, name, 20.0, 30.0)))
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_does_not() {
    let layout = Layout::demo();
    let faults = schedule(7, &layout, 60.0);
    let one = run(&mut Plant::with_faults(7, &layout, faults.clone()), 60.0);
    let two = run(&mut Plant::with_faults(7, &layout, faults.clone()), 60.0);
    assert_eq!(one, two);
    assert_eq!(one.len(), 600);
    let other = run(&mut Plant::with_faults(8, &layout, faults), 60.0);
    assert_ne!(one, other);
}

#[test]
fn machines_of_a_kind_differ_and_a_machine_more_changes_no_other() {
    let small = Plant::new(3, &Layout::new(2, 0, 0)).step();
    let large = Plant::new(3, &Layout::new(3, 0, 0)).step();
    assert_eq!(small.machines[..2], large.machines[..2]);
    assert_ne!(small.machines[0].values, small.machines[1].values);
}

#[test]
fn values_stay_within_what_the_sensors_can_give_and_are_seldom_at_the_limit() {
    let layout = Layout::demo();
    for seed in 0..4 {
        let (mut values, mut at_limit) = (0, 0);
        for step in run(&mut Plant::new(seed, &layout), 300.0) {
            for machine in &step.machines {
                for ((name, value), signal) in machine.values.iter().zip(machine.kind.signals()) {
                    let value = value.unwrap();
                    assert!((signal.low..=signal.high).contains(&value), "{} {name} {value}", machine.machine);
                    values += 1;
                    // Zero is where a stopped machine rests.
                    at_limit += usize::from(value == signal.high || (value == signal.low && signal.low != 0.0));
                }
            }
        }
        assert!(at_limit * 1000 < values, "{at_limit} of {values} values sit at a limit");
    }
}

#[test]
fn no_healthy_sensor_repeats_itself_for_two_seconds() {
    // So that a sensor that does can be told from one that is well.
    let layout = Layout::demo();
    for seed in 0..3 {
        let steps = run(&mut Plant::new(seed, &layout), 900.0);
        for (m, spec) in layout.machines.iter().enumerate() {
            for (c, signal) in spec.kind.signals().iter().enumerate() {
                let values: Vec<_> = steps.iter().map(|step| step.machines[m].values[c].1).collect();
                let longest = values.chunk_by(|a, b| a == b).map(<[_]>::len).max().unwrap();
                assert!(longest < 20, "{} {} repeats itself {longest} times", spec.name, signal.name);
            }
        }
    }
}

#[test]
fn machines_change_their_duty_and_stop_now_and_then() {
    for kind in MachineKind::ALL {
        let layout = Layout::new(
            usize::from(kind == MachineKind::Pump),
            usize::from(kind == MachineKind::Motor),
            usize::from(kind == MachineKind::Press),
        );
        let (name, above) = kind.running();
        let steps = run(&mut Plant::new(11, &layout), 1800.0);
        let values = signal(&steps, name, 0.0, 1800.0);
        let running = values.iter().filter(|&&value| value > above).count() as f64 / values.len() as f64;
        assert!((0.7..0.995).contains(&running), "{} runs {running} of the time", kind.as_str());
    }
}

#[test]
fn process_faults_move_the_signals_they_should() {
    use FaultKind::{BearingWear, BlockedValve, Cavitation, Imbalance, OilLeak};
    use MachineKind::{Motor, Press, Pump};
    // (machine, fault, signal, least and most it may change by, as a factor)
    let expected = [
        (Pump, Cavitation, "vibration_rms", 1.5, 8.0),
        (Pump, Cavitation, "suction_pressure", 0.6, 0.95),
        (Pump, Cavitation, "flow", 0.7, 0.99),
        (Pump, Cavitation, "valve_position", 0.999, 1.001),
        (Pump, BlockedValve, "flow", 0.3, 0.9),
        (Pump, BlockedValve, "discharge_pressure", 1.02, 1.6),
        (Pump, BlockedValve, "valve_position", 0.999, 1.001),
        (Motor, BearingWear, "vibration_kurtosis", 1.3, 3.0),
        (Motor, BearingWear, "bearing_band", 1.8, 5.0),
        (Motor, BearingWear, "load", 0.999, 1.001),
        (Motor, Imbalance, "vibration_rms", 1.5, 5.0),
        (Motor, Imbalance, "vibration_kurtosis", 0.8, 1.0),
        (Motor, Imbalance, "bearing_band", 0.999, 1.001),
        (Press, OilLeak, "force", 0.5, 0.97),
        (Press, OilLeak, "oil_temperature", 1.001, 1.5),
    ];
    for (machine, fault, name, least, most) in expected {
        for seed in 0..5 {
            // Which part of a press cycle falls into ten seconds is chance: its mean says little.
            let figure = if machine == Press { highest } else { mean };
            let (with, without) = with_and_without(machine, fault, seed, name, figure);
            let factor = with / without;
            assert!((least..most).contains(&factor), "{} {name} seed {seed}: factor {factor}", fault.as_str());
        }
    }
}

#[test]
fn a_fault_leaves_the_time_before_it_and_the_other_machines_alone() {
    let layout = Layout::demo();
    let faults = |severity| {
        let machine = layout.machines[0].name.clone();
        vec![Fault { kind: FaultKind::Cavitation, machine, signal: None, start: 5.0, duration: 8.0, severity }]
    };
    let mild = run(&mut Plant::with_faults(2, &layout, faults(0.0)), 20.0);
    let hard = run(&mut Plant::with_faults(2, &layout, faults(1.0)), 20.0);
    for (mild, hard) in mild.iter().zip(&hard) {
        assert_eq!(mild.machines[1..], hard.machines[1..]);
        if mild.time < 5.0 {
            assert_eq!(mild.machines[0], hard.machines[0]);
        }
    }
    assert_ne!(mild[80].machines[0], hard[80].machines[0]);
}

#[test]
fn a_stuck_sensor_repeats_itself_and_a_silent_one_says_nothing() {
    let layout = Layout::new(1, 0, 0);
    let fault = |kind, signal, start| Fault {
        kind,
        machine: layout.machines[0].name.clone(),
        signal: Some(signal),
        start,
        duration: 7.0,
        severity: 1.0,
    };
    let faults =
        vec![fault(FaultKind::SensorStuck, "flow", 5.0), fault(FaultKind::SensorDropout, "motor_current", 20.0)];
    let steps = run(&mut Plant::with_faults(1, &layout, faults), 40.0);
    let stuck = signal(&steps, "flow", 5.0, 12.0);
    assert_eq!(stuck.len(), 70);
    assert!(stuck.iter().all(|value| *value == stuck[0]));
    assert!(signal(&steps, "flow", 12.0, 15.0).iter().all(|value| *value != stuck[0]));
    assert_eq!(signal(&steps, "motor_current", 20.0, 27.0).len(), 0);
    assert_eq!(signal(&steps, "flow", 20.0, 27.0).len(), 70);
}

#[test]
fn device_faults_are_flagged_on_their_machine_only() {
    let layout = Layout::demo();
    let motor = layout.machines.iter().position(|m| m.kind == MachineKind::Motor).unwrap();
    let machine = layout.machines[motor].name.clone();
    let kind = FaultKind::DeviceTimeout;
    let faults = vec![Fault { kind, machine, signal: None, start: 1.0, duration: 2.0, severity: 1.0 }];
    for step in run(&mut Plant::with_faults(1, &layout, faults), 5.0) {
        for (i, machine) in step.machines.iter().enumerate() {
            assert_eq!(machine.device_timeout, i == motor && (1.0..3.0).contains(&step.time));
            assert!(!machine.device_exception);
        }
    }
}

#[test]
fn csv_has_a_row_per_machine_and_step_with_labels() {
    let mut out = Vec::new();
    let options = Options { seed: 5, seconds: 60.0, faults: true, layout: Layout::new(0, 1, 0) };
    assert_eq!(csv::write(&mut out, &options).unwrap(), 600);
    let text = String::from_utf8(out).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(
        text.lines().next().unwrap(),
        "timestamp,machine,speed,load,motor_current,vibration_rms,vibration_kurtosis,bearing_band,\
         bearing_temperature,label,fault"
    );
    assert!(rows.iter().all(|row| row.len() == 11));
    assert_eq!(rows[1][..2], ["2026-01-01T00:00:00.000Z", "motor-1"]);
    assert_eq!(rows[12][0], "2026-01-01T00:00:01.100Z");
    let labelled = rows[1..].iter().filter(|row| row[9] == "1").count();
    assert!(labelled >= 70, "{labelled} rows labelled");
    assert!(rows[1..].iter().all(|row| (row[9] == "1") != row[10].is_empty()));
}

fn machine<'a>(layout: &'a Layout, fault: &Fault) -> &'a MachineSpec {
    layout.machines.iter().find(|m| m.name == fault.machine).unwrap()
}

proptest! {
    #[test]
    fn schedules_keep_their_promises(seed: u64, seconds in 0.0..2000.0f64, pumps in 0..4usize, motors in 0..3usize, presses in 0..2usize) {
        let layout = Layout::new(pumps, motors, presses);
        let faults = schedule(seed, &layout, seconds);
        for (i, fault) in faults.iter().enumerate() {
            prop_assert!(fault.kind.fits(machine(&layout, fault)));
            prop_assert!(fault.start >= WARM_UP - DT && fault.end() <= seconds - TAIL + 1e-6);
            prop_assert!(fault.duration >= 6.0 && (0.5..=1.0).contains(&fault.severity));
            prop_assert_eq!(fault.signal.is_some(), fault.kind.class() == Class::Instrument);
            for later in faults[i + 1..].iter().filter(|later| later.machine == fault.machine) {
                prop_assert!(later.start - fault.end() >= GAP - DT - 1e-6);
            }
        }
    }

    #[test]
    fn a_minute_of_demo_sees_every_kind(seed: u64, seconds in 60.0..300.0f64) {
        let faults = schedule(seed, &Layout::demo(), seconds);
        for kind in FaultKind::ALL {
            prop_assert!(faults.iter().any(|fault| fault.kind == kind), "{} is missing", kind.as_str());
        }
    }

    #[test]
    fn a_machine_runs_while_a_fault_is_on_it(seed in 0..1000u64) {
        let layout = Layout::demo();
        let mut plant = Plant::with_faults(seed, &layout, schedule(seed, &layout, 60.0));
        let faults = plant.faults().to_vec();
        for step in run(&mut plant, 60.0) {
            for &i in &step.active {
                let fault = &faults[i];
                let shown = step.machines.iter().find(|m| m.machine == fault.machine).unwrap();
                let (name, above) = shown.kind.running();
                let value = shown.values.iter().find(|(n, _)| *n == name).and_then(|(_, v)| *v);
                prop_assert!(value.is_none_or(|v| v > above), "{} at {}: {name} {value:?}", fault.machine, step.time);
            }
        }
    }
}
