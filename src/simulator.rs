//! A small factory with faults, its devices and a stand-in cloud, for demo and tests.

pub mod cloud;
#[cfg(feature = "demo")]
pub mod plc;
