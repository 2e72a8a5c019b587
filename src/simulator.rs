//! A small factory with faults, its devices and a stand-in cloud, for demo and tests.

#[cfg(feature = "demo")]
pub mod plc;
