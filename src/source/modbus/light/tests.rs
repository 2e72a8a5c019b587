//! What a stack light shows, what of the config it takes, and what it refuses.

use proptest::prelude::*;

use super::*;
use crate::settings::{Document, Surroundings};

const DEVICES: &str = "[[modbus]]\nname = \"plc\"\nurl = \"tcp://plc\"\nmachine = \"m\"\nsignal = [{ name = \"s\", at = \"coil:1\" }]\n\
    [[modbus]]\nname = \"all\"\nurl = \"rtu:///dev/x\"\nunit = 0\nmachine = \"m\"\nsignal = [{ name = \"s\", at = \"coil:1\" }]\n";

fn read(text: &str) -> (Vec<Config>, Vec<String>) {
    let devices = Document::parse(DEVICES, Surroundings::default());
    let devices = Device::read_all(&devices.root());
    let document = Document::parse(text, Surroundings::default());
    let all = Config::read_all(&document.root(), &devices);
    (all, document.into_problems().into_iter().map(|p| format!("{}: {}", p.line, p.message)).collect())
}

#[test]
fn coils_or_a_register() {
    let text = "[[write]]\ndevice = \"plc\"\nwho = \"alarms\"\ngreen = \"coil:10\"\nred = \"00013\"\n\
        [[write]]\ndevice = \"plc\"\nwho = \"alarms\"\nmachines = \"fan-*\"\nregister = \"holding:20\"\naddress_base = 1\n\
        values = { off = 0, green = 1, amber = 2, red = 4 }\nsafe = \"amber\"\nagain = \"1s\"\n";
    let (all, problems) = read(text);
    assert_eq!(problems, [] as [String; 0]);
    assert_eq!(all[0].wiring, Wiring::Coils([(Lamp::Green, 10), (Lamp::Red, 12)].into()));
    assert_eq!((&*all[0].machines, all[0].safe, all[0].again), ("*", Lamp::Off, AGAIN));
    assert_eq!(all[0].wiring.writes(Lamp::Red), [Write::Coil(12, true), Write::Coil(10, false)]);
    assert_eq!(all[0].wiring.writes(Lamp::Amber), [Write::Coil(10, false), Write::Coil(12, false)]);
    assert_eq!(all[1].wiring.writes(Lamp::Amber), [Write::Register(19, 2)]);
    assert_eq!((&*all[1].machines, all[1].safe), ("fan-*", Lamp::Amber));
}

#[test]
fn nothing_is_written_that_was_not_asked_for_in_full() {
    assert_eq!(read("").0, []);
    let head = "[[write]]\ndevice = \"plc\"\nwho = \"alarms\"\n";
    for (text, told) in [
        ("[[write]]\ndevice = \"plc\"\nred = \"coil:1\"\n".to_owned(), "1: write.who: is missing"),
        (head.replace("alarms", "anyone") + "red = \"coil:1\"\n", "3: write.who: \"anyone\" may not write"),
        (head.replace("plc", "plk") + "red = \"coil:1\"\n", "names no [[source.modbus]]: \"plk\"; did you mean `plc`?"),
        (head.replace("plc", "all") + "red = \"coil:1\"\n", "is unit 0 of a serial line"),
        (head.to_owned(), "says not where the light is"),
        (head.to_owned() + "red = \"holding:1\"\n", "4: write.red: holding:1 is no coil, and nothing else is written"),
        (head.to_owned() + "red = \"discrete:1\"\n", "discrete:1 is no coil"),
        (
            head.to_owned() + "register = \"holding:1.3\"\nvalues = { off = 0, green = 1, amber = 2, red = 4 }\n",
            "is no holding",
        ),
        (head.to_owned() + "red = \"coil:1\"\nregister = \"holding:1\"\n", "either coils or a register"),
        (
            head.to_owned() + "register = \"holding:1\"\nvalues = { off = 0, green = 1, red = 65536 }\n",
            "write.values.amber: is missing",
        ),
        (
            head.to_owned() + "red = \"coil:1\"\nsafe = \"blue\"\n",
            "\"blue\" is not one of off, green, white, amber, red",
        ),
        (head.to_owned() + "red = \"coil:1\"\nagain = \"1ms\"\n", "should be 100ms or longer"),
        (format!("{head}red = \"coil:1\"\n{head}amber = \"coil:1\"\n"), "coil:1 of \"plc\" is written by another"),
    ] {
        let (_, problems) = read(&text);
        assert!(problems.iter().any(|p| p.contains(told)), "{text}: {problems:?}");
    }
}

#[test]
fn a_register_without_its_values_is_told() {
    let (all, problems) = read("[[write]]\ndevice = \"plc\"\nwho = \"alarms\"\nregister = \"holding:1\"\n");
    assert_eq!((all.len(), problems.len()), (0, 1), "{problems:?}");
}

#[test]
fn the_worst_of_its_machines_is_shown() {
    let standing =
        |lights: &[(&str, MachineState)]| lights.iter().map(|(n, l)| (Name::from(*n), *l)).collect::<Vec<_>>();
    let fans = WildMatch::new("fan-*");
    let all = [
        ("fan-1", MachineState::Green),
        ("fan-2", MachineState::Amber),
        ("press", MachineState::Red),
        ("fan-3", MachineState::Off),
    ];
    assert_eq!(Lamp::of(&standing(&all), &fans), Lamp::Amber);
    assert_eq!(Lamp::of(&standing(&all), &WildMatch::new("*")), Lamp::Red);
    assert_eq!(Lamp::of(&standing(&all[3..]), &fans), Lamp::Off);
    assert_eq!(Lamp::of(&[], &fans), Lamp::Off);
}

proptest! {
    /// Whatever is to be shown, only what the config allows is written.
    #[test]
    fn only_what_is_allowed_is_written(coils in prop::collection::btree_map(1..4_usize, any::<u16>(), 1..4), lamp in 0..4_usize) {
        let coils: BTreeMap<Lamp, u16> = coils.into_iter().map(|(l, at)| (Lamp::NAMES[l].1, at)).collect();
        let lamp = Lamp::NAMES[lamp].1;
        for write in Wiring::Coils(coils.clone()).writes(lamp) {
            let Write::Coil(at, on) = write else { panic!("a coil") };
            prop_assert!(coils.values().any(|a| *a == at));
            prop_assert!(!on || coils.get(&lamp) == Some(&at));
        }
    }
}
