//! A small factory with faults, its devices and a stand-in cloud, for demo and tests.
//! [`plant`] is the physics: pure, fixed time step, the same run for the same seed.

#[cfg(feature = "demo")]
pub mod broker;
pub mod cloud;
pub mod csv;
pub mod faults;
mod motor;
mod noise;
pub mod plant;
#[cfg(feature = "demo")]
pub mod plc;
mod press;
mod pump;

#[cfg(test)]
mod tests;
