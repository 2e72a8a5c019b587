//! Everything that leaves: cloud sinks, and results published to MQTT.

pub mod publish;
