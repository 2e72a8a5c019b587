//! andon: an edge agent for factories. Readings come in over MQTT and Modbus, are judged by small
//! neural networks on the spot, and what is found goes to dashboards and a cloud; what was taken in
//! is not lost. README.md says how to use it; this page is the map for those who carry on.
//!
//! # The flow
//!
//! ```text
//! source ──Batch──► agent::feed ──► agent::engine ──Commit──► store ──Stored──► forward::cloud
//!    ▲   readings,      │        pipeline, model, alarm          │
//!    │   receipt        └──Live──► web, forward::publish         │
//!    └──────────────── Receipt: all of it is on disk ◄───────────┘
//! ```
//!
//! | module | does | begin reading at |
//! |---|---|---|
//! | [`types`] | the vocabulary: reading, batch, receipt, window, verdict, alarm, record | [`types::Batch`] |
//! | [`source`] | takes readings in: MQTT acked when durable, Modbus polled; the stack light | [`source::mqtt::run`], [`source::modbus::run`] |
//! | [`pipeline`] | quality, a fixed grid, windows, the machine-off gate; pure | [`pipeline::Machine`] |
//! | [`model`] | bundles, their signatures and the library of them, the ONNX graph in tract, calibration, contributions | [`model::Model`], [`model::signature`] |
//! | [`alarm`] | from verdicts to ISA-18.2 alarms; pure | [`alarm::Tracker`] |
//! | [`store`] | journal, outgoing lanes, dead letters on sled; its docs hold format and recovery | [`store::Store`] |
//! | [`forward`] | records to the cloud over HTTP, to other brokers, files and streams; results to MQTT dashboards, as a Sparkplug node; asks a larger model under a budget; fetches new models | [`forward::cloud::run`], [`forward::sinks::run`], [`forward::publish::run_with`], [`forward::sparkplug::run`], [`forward::inference::run`] |
//! | [`web`] | dashboard, API, `/metrics`, models for guests | [`web::run`], [`web::inference`] |
//! | [`agent`] | builds, wires, runs, reloads and drains all of that, keeps the audit log; the only one that sees every stage | [`agent::Agent`], [`agent::engine::Engine`] |
//! | [`config`] | the whole config file, with the line of every mistake | [`config::Config`] |
//! | [`command`] | the command line, one file for each command | [`command::Cli`] |
//! | [`simulator`] | a factory with faults, broker, PLC and cloud stand-ins, for the demo and tests | [`simulator::plant`] |
//! | `fuzz` | every parser as a function of bytes, for tests and libFuzzer | `src/fuzz.rs` |
//! | [`settings`], [`tls`], [`mqtt`], [`metrics`], [`backoff`], [`logging`], [`systemd`] | the ground all of it stands on | |
//!
//! # The rules
//!
//! * **Imports go downward.** A stage (`source`, `pipeline`, `model`, `alarm`, `store`, `forward`, `web`)
//!   uses `types`, `metrics`, `backoff`, `settings`, `tls`, `mqtt` and its own children, never another
//!   stage. sled stays in `store`, tract in `model`, rumqttc in `mqtt`. `tests/house.rs` reads the
//!   source and holds this.
//! * **The engine is a function of its journal.** All pipeline, model and alarm state is owned by one
//!   thread and changes only in [`agent::engine::Engine::step`], by the [`agent::input::Group`] it is given. Time
//!   comes in with the input; no clock and no randomness is asked inside. The same groups in the same
//!   order give the same state and the same records, byte for byte. That is what makes a restart
//!   exact, duplicates recognisable and `andon backtest` honest. Whatever is to change state (a click,
//!   a timer) has to become an [`agent::input::Input`] first.
//! * **A receipt is completed when the group's journal entry and its records are synced**, not before.
//!   Dropping a receipt says "not on disk". Nobody else acknowledges anything to a broker.
//! * **A machine has one state**, a pure function of its evidence: [`agent::machine_state::machine_state`]. Whatever shows
//!   a light shows that value. The engine is told the time only where its evidence changes; silence is never green.
//! * **Record ids are made of what happened**, never of when it was noticed: [`types::RecordId::of`].
//! * **Every queue has a bound with a name and a reason**; what is dropped is counted, and what is lost
//!   from disk becomes a gap record.
//! * **Trouble outside never ends a stage.** It backs off ([`backoff`]), says so on the
//!   [`metrics::Board`], and goes on. Only sources, forwarders and web hear `stop`; what is between
//!   ends when its input closes ([`agent::Agent::finish`]).
//! * **A stage that panics, ends early or hangs ends the process** with exit code 1, after a bounded drain:
//!   [`metrics::Board::fail`], `agent/supervision.rs`, [`systemd::watch`].
//! * **Bytes from outside never panic** and never grow memory without bound. Model code runs inside
//!   `catch_unwind`.
//! * **Settings stand beside what they are for**: each component has a `Config` with `read(&Section)`,
//!   which collects mistakes and goes on with defaults. A key that nobody asks for is unknown.
//!   WARN in the log means that nothing was lost, ERROR that something was or that a person is needed.
//!
//! # To add
//!
//! * *A source*: a module below [`source`] with `Config::read` and `run(config, shared, batches)`; a field
//!   in [`source::Config`]; a spawn in `agent.rs` (`start_sources`); its name in the check of names in
//!   [`config`] and the knock in `command/check.rs`. If the other side can redeliver, send a
//!   [`types::Receipt`] with each batch and acknowledge when it is completed.
//! * *A payload format*: `source/payload.rs`, a variant of its format and a `decode`.
//! * *A sink*: a [`forward::deliver::Carrier`] and a way in [`forward::sinks::Way`], where records go one by
//!   one; else something that reads a [`forward::Outbox`] and advances only past what was taken or set
//!   aside, named among the sinks given to [`store::Store::open`] and spawned in `agent.rs`. Each sink has its
//!   own cursor.
//! * *A model task*: [`model::Task`], its output in `model/explain.rs` (`needed_output`, `check_shape`,
//!   `read`), a bundle in `models/` with golden cases, and its line in the README.
//! * *Something the engine asks the outside*: as second opinions do: decided and charged in the engine, kept
//!   in its snapshot until answered, sent once durable, and answered by an [`agent::input::Input`].
//! * *A setting*: read it, add it to `config/andon.toml` and to the README's table; `tests/readme.rs`
//!   says what is missing.
//! * *A metric*: one line in [`metrics`], one in the README.
//!
//! # The tests
//!
//! Unit and property tests stand in the modules, in a sibling `tests.rs` where they are long. `tests/`
//! uses the crate or the binary from outside, against real things where there are any: mosquitto,
//! nats-server, pymodbus, Chromium, onnxruntime, MLServer. `tests/support/` holds how those are started. `tests/run` installs
//! what is missing and runs everything; a test waits for a state, never for a time. `tests/crash/` takes
//! seeds and can run for hours: kills, power cuts, failing disks, brokers that die. `tests/quality/` judges
//! learnt models on recordings that are not part of this repository, where `ANDON_DATA` names them.
//!
//! `benches/store.rs` holds the store against a plain append file, `benches/load/` drives the binary
//! between a real broker and a sink; both print ratios or figures and judge nothing.
//! `models/train/` made the bundles, from the simulator's own CSV (`andon demo --csv`) and from public
//! recordings; `tests/models.py --bench` holds each beside onnxruntime.

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
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod logging;
pub mod simulator;
pub mod systemd;
