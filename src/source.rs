//! Data acquisition: what brings readings in. Each source is a task that sends batches.

use crate::settings::Section;

pub mod modbus;
pub mod mqtt;
mod payload;
mod sparkplug;
mod topic;

/// All configured sources.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `[[source.mqtt]]`.
    pub mqtt: Vec<mqtt::Config>,
    /// `[[source.modbus]]`.
    pub modbus: Vec<modbus::Config>,
}

impl Config {
    /// Reads the `source` table of the whole file; absent, there are no sources.
    pub fn read(root: &Section<'_>, agent_id: &str) -> Config {
        let Some(section) = root.section("source") else { return Config::default() };
        Config { mqtt: mqtt::Config::read_all(&section, agent_id), modbus: modbus::Config::read_all(&section) }
    }
}
