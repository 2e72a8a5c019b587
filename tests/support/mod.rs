//! What the integration tests share. Each test file takes what it needs.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod certificates;
pub mod chromium;
pub mod daemon;
pub mod depot;
pub mod mlserver;
pub mod mosquitto;
pub mod nats;
pub mod oip;
pub mod peer;
pub mod publisher;
