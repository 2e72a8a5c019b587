//! A device profile: a list of signals in a file of its own, for all devices of one kind. Read
//! wherever a `[[source.modbus]]` names it; its mistakes are told with its own name and lines.

use std::path::Path;

use super::config::Config;
use crate::settings::{Document, Problem, Section, Surroundings};

/// No profile is longer; what is was named by mistake.
const LONGEST: u64 = 4 << 20;

/// Calls `read` with the top of the profile that `section` names, or with `None` when it names none
/// or one that cannot be read.
pub fn with<T>(section: &Section<'_>, read: impl FnOnce(Option<&Section<'_>>) -> T) -> T {
    let Some(name) = section.string("profile") else { return read(None) };
    let path = section.surroundings().base.join(&name);
    let text = match text_of(&path) {
        Ok(text) => text,
        Err(e) => {
            section.problem("profile", format_args!("cannot read {}: {e}", path.display()));
            return read(None);
        }
    };
    let document = Document::parse(&text, section.surroundings().clone());
    let out = {
        let root = document.root();
        // For people.
        root.string("description");
        read(Some(&root))
    };
    section.adopt(&path, document.into_problems());
    out
}

fn text_of(path: &Path) -> std::io::Result<String> {
    let length = std::fs::metadata(path)?.len();
    if length > LONGEST {
        return Err(std::io::Error::other(format!("{length} bytes are too many for a profile")));
    }
    std::fs::read_to_string(path)
}

/// Its signals. Machines are for the device that uses the profile to name.
pub fn signals<'d>(profile: &Section<'d>) -> Vec<Section<'d>> {
    let signals = profile.sections("signal");
    if signals.is_empty() {
        profile.problem("signal", "nothing to read: add a [[signal]]");
    }
    for signal in signals.iter().filter(|s| s.has("machine")) {
        signal.problem("machine", "a profile is for any machine: name it where the profile is used");
    }
    signals
}

/// All that is wrong with the text of a profile.
pub fn problems(text: &str) -> Vec<Problem> {
    let device = Document::parse("name = \"x\"\nurl = \"tcp://x\"\nmachine = \"x\"\n", Surroundings::default());
    let profile = Document::parse(text, Surroundings::default());
    {
        let root = profile.root();
        root.string("description");
        Config::of(&device.root(), Some(&root));
    }
    profile.into_problems()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::modbus::plan::Limits;

    const DRIVE: &str = "description = \"Acme drive\"\naddress_base = 1\nmax_registers = 20\npoll = \"250ms\"\n\
        [[signal]]\nname = \"speed\"\nat = \"holding:101\"\ntype = \"u16\"\nscale = 0.1\n\
        [[signal]]\nname = \"torque\"\nat = \"40103\"\ntype = \"i16\"\n";

    fn read(profile: Option<&str>, device: &str) -> (Config, Vec<String>) {
        let dir = tempfile::tempdir().expect("a directory");
        if let Some(profile) = profile {
            std::fs::write(dir.path().join("drive.toml"), profile).expect("written");
        }
        let around = Surroundings { base: dir.path().to_path_buf(), credentials: None };
        let text = format!("[[modbus]]\nname = \"a\"\nurl = \"tcp://plc\"\nprofile = \"drive.toml\"\n{device}");
        let document = Document::parse(&text, around);
        let config = Config::read(&document.root().sections("modbus")[0]);
        let told = |p: Problem| {
            let file = p.file.map(|f| f.strip_prefix(dir.path()).map(|f| f.display().to_string()));
            let file = file.map_or("config".into(), |f| f.unwrap_or_else(|_| "elsewhere".into()));
            format!("{file}:{}: {}", p.line, p.message.replace(&dir.path().display().to_string(), "DIR"))
        };
        (config, document.into_problems().into_iter().map(told).collect())
    }

    #[test]
    fn a_device_takes_its_signals_from_its_profile() {
        let (config, problems) = read(Some(DRIVE), "machine = \"fan-1\"\n");
        assert_eq!(problems, [] as [String; 0]);
        let signals: Vec<_> = config.signals.iter().map(|s| (&*s.machine, &*s.name, s.span.start)).collect();
        assert_eq!(signals, [("fan-1", "speed", 100), ("fan-1", "torque", 102)]);
        assert_eq!(config.signals[0].poll.as_millis(), 250);
        assert_eq!(config.limits, Limits { max_registers: 20, gap: 8 });
    }

    #[test]
    fn what_the_device_says_goes_before() {
        let device = "machine = \"fan-1\"\npoll = \"1s\"\nmax_registers = 10\n\
            [[modbus.signal]]\nname = \"speed\"\nat = \"holding:7\"\ntype = \"f32\"\n";
        let (config, problems) = read(Some(DRIVE), device);
        assert_eq!(problems, [] as [String; 0]);
        let signals: Vec<_> = config.signals.iter().map(|s| (&*s.name, s.span.start, s.poll.as_secs())).collect();
        assert_eq!(signals, [("speed", 7, 1), ("torque", 102, 1)], "its own addresses count from its own base");
        assert_eq!(config.limits.max_registers, 10);
    }

    #[test]
    fn mistakes_are_told_where_they_are() {
        let wrong = DRIVE.replace("type = \"i16\"", "typ = \"i16\"\nmachine = \"x\"").replace("poll", "gap = 21\npol");
        assert_eq!(
            read(Some(&wrong), "machine = \"m\"\nunits = 3\n").1,
            [
                "config:6: unknown key `modbus.units`; did you mean `unit`?",
                "drive.toml:4: gap: 21 is more than max_registers, which is 20",
                "drive.toml:5: unknown key `pol`; did you mean `poll`?",
                "drive.toml:11: signal.type: is missing: how is holding:102 to be read, as u16, i16, f32 …?",
                "drive.toml:14: unknown key `signal.typ`; did you mean `type`?",
                "drive.toml:15: signal.machine: a profile is for any machine: name it where the profile is used",
            ]
        );
        assert_eq!(
            read(Some(DRIVE), "").1,
            ["config:1: modbus.machine: is missing: the signals of a profile are those of this device's machine"]
        );
        let gone = read(None, "machine = \"m\"\n").1;
        assert!(gone[0].starts_with("config:4: modbus.profile: cannot read DIR/drive.toml: No such file"), "{gone:?}");
        assert_eq!(gone.len(), 1, "that there are no signals is no mistake of its own");
        let (empty, told) = read(Some(""), "machine = \"m\"\n");
        assert_eq!(
            (empty.signals.len(), told),
            (0, vec!["drive.toml:1: signal: nothing to read: add a [[signal]]".into()])
        );
    }

    #[test]
    fn a_text_can_be_judged_by_itself() {
        assert_eq!(problems(DRIVE), []);
        assert_eq!(problems("[[signal]]\nname = \"x\"\n").len(), 1);
    }
}
