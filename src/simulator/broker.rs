//! An MQTT broker within the process, so that the demo needs nothing installed. rumqttd speaks
//! 3.1.1 and 5 on two ports; the demo uses 5.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

/// How long the broker may take to listen.
const START: Duration = Duration::from_secs(5);

/// Starts a broker on a free loopback port; it lives as long as the process.
pub fn start() -> Result<SocketAddr> {
    let listen = free_port()?;
    let connections = ConnectionSettings {
        connection_timeout_ms: 5_000,
        max_payload_size: 256 * 1024,
        max_inflight_count: 1_000,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = ServerSettings { name: "demo".into(), listen, tls: None, next_connection_delay_ms: 1, connections };
    // Its log is in memory: small segments keep that small.
    let router = RouterConfig {
        max_connections: 64,
        max_outgoing_packet_count: 1_000,
        max_segment_size: 1024 * 1024,
        max_segment_count: 8,
        custom_segment: None,
        initialized_filters: None,
        shared_subscriptions_strategy: Default::default(),
    };
    let config = Config { router, v5: Some(HashMap::from([("demo".into(), server)])), ..Config::default() };
    let run = move || {
        if let Err(error) = Broker::new(config).start() {
            tracing::error!(%error, "the demo's broker has ended");
        }
    };
    thread::Builder::new().name("broker".into()).spawn(run).context("starting the broker's thread")?;
    let deadline = Instant::now() + START;
    while TcpStream::connect(listen).is_err() {
        if Instant::now() > deadline {
            bail!("the demo's broker does not listen on {listen}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(listen)
}

/// rumqttd cannot say which port it was given, so one is found beforehand.
fn free_port() -> Result<SocketAddr> {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free port")?;
    Ok(probe.local_addr()?)
}
