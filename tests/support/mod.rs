//! Helpers that several test programs share.
#![allow(dead_code, missing_docs)]

pub mod chromium;
