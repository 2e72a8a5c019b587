//! Helpers that several test programs share.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod chromium;
