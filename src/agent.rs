//! Build, wire, run, drain: the only file that sees every stage.
pub mod engine;
pub mod input;
pub mod records;
