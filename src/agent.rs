//! Build, wire, run, drain: the only file that sees every stage.
