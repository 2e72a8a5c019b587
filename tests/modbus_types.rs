//! Every type in every byte order, read from servers that others wrote: pymodbus and libmodbus, over
//! TCP and over a serial line. The README's table is what this finds.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;

use andon::source::modbus::registers::Type;
use andon::types::Quality;

#[path = "support/modbus.rs"]
mod support;
use support::*;
#[path = "support/pair.rs"]
mod pair;
use pair::Pair;
#[path = "support/libmodbus.rs"]
mod libmodbus;
use libmodbus::Libmodbus;

/// For each type and order, how many values were read as they were meant.
type Right = BTreeMap<(String, String), usize>;

async fn read_all(url: &str, signals: &[Served]) -> Right {
    let text = source_at("plc", url, "poll = \"50ms\"\ntimeout = \"10s\"", &served(signals));
    let mut source = Running::start(config(&text));
    let readings = source.next().await;
    assert_eq!(readings.len(), signals.len());
    let mut right = Right::new();
    for (reading, served) in readings.iter().zip(signals) {
        assert_eq!((reading.quality, reading.value), (Quality::Good, served.value), "{url}: {served:?}");
        *right.entry(kind_and_order(served)).or_default() += 1;
    }
    source.stop().await;
    right
}

/// For a bit, where it is takes the place of the order.
fn kind_and_order(served: &Served) -> (String, String) {
    let place = served.at.split(':').next().unwrap();
    let place = if served.at.contains('.') { format!("{place}, a bit") } else { place.to_owned() };
    (served.r#type.clone(), served.order.clone().unwrap_or(place))
}

/// For each type, its orders, and what was found of them from each server; orders of which the same
/// was found stand together.
fn rows(all: &[Right]) -> Vec<String> {
    let mut rows = Vec::new();
    for (name, _) in Type::NAMES {
        let mut found: BTreeMap<Vec<String>, Vec<&str>> = BTreeMap::new();
        for key in all[0].keys().filter(|(kind, _)| kind == name) {
            let cell = |right: &Right| right.get(key).map_or("not tried".into(), |n| format!("{n} right"));
            found.entry(all.iter().map(cell).collect()).or_default().push(&key.1);
        }
        let row = |(cells, orders): (Vec<String>, Vec<&str>)| {
            let orders: Vec<String> = orders.iter().map(|o| format!("`{o}`")).collect();
            format!("| {name} | {} | {} |\n", orders.join(" "), cells.join(" | "))
        };
        rows.extend(found.into_iter().map(row));
    }
    rows
}

#[tokio::test]
async fn every_type_and_order_from_every_server() {
    let lines = [Pair::new(), Pair::new()];
    let pymodbus = [Pymodbus::start(), Pymodbus::on_line(&lines[0].theirs())];
    let libmodbus = [Libmodbus::start(None), Libmodbus::start(Some(&lines[1].theirs()))];
    let all = [
        read_all(&format!("tcp://{}", pymodbus[0].address), &pymodbus[0].signals).await,
        read_all(&lines[0].url(), &pymodbus[1].signals).await,
        read_all(&format!("tcp://{}", libmodbus[0].address), &libmodbus[0].signals).await,
        read_all(&(lines[1].url() + "&parity=none"), &libmodbus[1].signals).await,
    ];
    let versions = (&pymodbus[0].version, &libmodbus[0].version);
    let heads = format!("pymodbus {} TCP | RTU | libmodbus {} TCP | RTU", versions.0, versions.1);
    let table = format!("| type | order | {heads} |\n|---|---|---|---|---|---|\n{}", rows(&all).concat());
    println!("{table}");
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    assert!(readme.contains(&table), "the README's table of types should be this:\n{table}");
}
