//! A cluster of real NATS servers with JetStream, on ports and in directories of their own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::mosquitto::free_port;

const PATIENCE: Duration = Duration::from_secs(90);

/// Gone when dropped.
pub struct Cluster {
    dir: tempfile::TempDir,
    nodes: Vec<Node>,
}

struct Node {
    port: u16,
    monitor: u16,
    config: PathBuf,
    child: Option<Child>,
}

impl Cluster {
    /// Starts so many nodes and waits until each is well.
    pub fn start(n: usize) -> Cluster {
        let dir = tempfile::tempdir().expect("a directory");
        let routes: Vec<u16> = (0..n).map(|_| free_port()).collect();
        let all: Vec<String> = routes.iter().map(|p| format!("\"nats-route://127.0.0.1:{p}\"")).collect();
        let nodes = (0..n).map(|i| {
            let (port, monitor) = (free_port(), free_port());
            let store = dir.path().join(format!("n{i}"));
            let text = format!(
                "server_name: n{i}\nlisten: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor}\"\n\
                 jetstream {{ store_dir: {store:?} }}\nlog_file: {:?}\n\
                 {}",
                dir.path().join(format!("n{i}.log")),
                if n == 1 { String::new() } else { cluster(routes[i], &all) }
            );
            let config = dir.path().join(format!("n{i}.conf"));
            std::fs::write(&config, text).expect("written");
            Node { port, monitor, config, child: None }
        });
        let mut cluster = Cluster { nodes: nodes.collect(), dir };
        (0..n).for_each(|i| cluster.launch(i));
        (0..n).for_each(|i| cluster.wait_for(i));
        cluster
    }

    /// Where clients may connect, as a TOML list.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|n| format!("nats://127.0.0.1:{}", n.port)).collect()
    }

    /// Pulls the plug of one node.
    pub fn kill(&mut self, i: usize) {
        let mut child = self.nodes[i].child.take().expect("it runs");
        child.kill().expect("a kill");
        child.wait().expect("waiting");
    }

    /// Starts it again and waits until it has caught up.
    pub fn restart(&mut self, i: usize) {
        self.launch(i);
        self.wait_for(i);
    }

    fn launch(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        let mut command = Command::new("nats-server");
        command.arg("-c").arg(&node.config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        node.child = Some(command.spawn().expect("nats-server can be run: see tests/run"));
    }

    fn wait_for(&self, i: usize) {
        let deadline = Instant::now() + PATIENCE;
        while !healthy(self.nodes[i].monitor) {
            let log = || std::fs::read_to_string(self.dir.path().join(format!("n{i}.log"))).unwrap_or_default();
            assert!(
                Instant::now() < deadline,
                "node {i} is not well:\n{}",
                log().lines().rev().take(20).collect::<Vec<_>>().join("\n")
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A server by itself must not wait for others.
fn cluster(port: u16, routes: &[String]) -> String {
    format!("cluster {{ name: plant, listen: \"127.0.0.1:{port}\", routes: [{}] }}\n", routes.join(", "))
}

fn healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut child) = node.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}
