//! andon: an edge agent for factories.

pub mod types;

pub mod backoff;
pub mod metrics;
pub mod mqtt;
pub mod settings;
pub mod tls;

pub mod alarm;
pub mod forward;
pub mod model;
pub mod pipeline;
pub mod source;
pub mod store;
pub mod web;

pub mod agent;
pub mod command;
pub mod config;
pub mod logging;
pub mod simulator;
pub mod systemd;
