//! The cloud sink against the stand-in cloud, over real HTTP on loopback: every row of the reply
//! table, stops, storms, TLS.
#![allow(clippy::unwrap_used)]

#[path = "forward/rig.rs"]
mod rig;

#[path = "forward/replies.rs"]
mod replies;
#[path = "forward/stops.rs"]
mod stops;
#[path = "forward/storms.rs"]
mod storms;
#[path = "forward/tls.rs"]
mod tls;
