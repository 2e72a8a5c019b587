//! Sinks against the other side. The cloud sink over real HTTP on loopback: every row of the reply table,
//! stops, storms, TLS. The others against mosquitto, a cluster of nats-server, and a file system.
#![allow(clippy::unwrap_used)]

mod support;

#[path = "forward/rig.rs"]
mod rig;

#[path = "forward/bridge.rs"]
mod bridge;
#[path = "forward/file.rs"]
mod file;
#[path = "forward/login.rs"]
mod login;
#[path = "forward/nats.rs"]
mod nats;
#[path = "forward/privacy.rs"]
mod privacy;
#[path = "forward/replies.rs"]
mod replies;
#[path = "forward/stops.rs"]
mod stops;
#[path = "forward/storms.rs"]
mod storms;
#[path = "forward/tls.rs"]
mod tls;
