//! Data acquisition: what brings readings in. Each source is a task that sends batches.

use crate::settings::Section;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod any_bytes;
pub mod modbus;
pub mod mqtt;
pub mod payload;
mod sparkplug;
pub mod topic;

/// All configured sources.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `[[source.mqtt]]`.
    pub mqtt: Vec<mqtt::Config>,
    /// `[[source.modbus]]`.
    pub modbus: Vec<modbus::Config>,
    /// `[[write]]`, which stands at the top of the file: the one thing that goes the other way.
    pub lights: Vec<modbus::light::Config>,
}

impl Config {
    /// Reads the `source` table of the whole file; absent, there are no sources.
    pub fn read(root: &Section<'_>, agent_id: &str) -> Config {
        let section = root.section("source");
        let mqtt = section.as_ref().map(|s| mqtt::Config::read_all(s, agent_id)).unwrap_or_default();
        let modbus = section.as_ref().map(modbus::Config::read_all).unwrap_or_default();
        let lights = modbus::light::Config::read_all(root, &modbus);
        Config { mqtt, modbus, lights }
    }
}
