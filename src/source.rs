//! Data acquisition: what brings readings in. Each source is a task that sends batches.

pub mod modbus;
