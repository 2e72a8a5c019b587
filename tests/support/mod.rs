//! What the integration tests share. Each test file takes what it needs.
#![allow(dead_code)]

pub mod mosquitto;
