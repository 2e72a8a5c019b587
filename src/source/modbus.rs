//! Polling equipment over Modbus TCP and RTU.
