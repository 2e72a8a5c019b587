//! Readings on their way into the machines' pipelines, and what becomes of those that are not used.

use super::*;
use crate::pipeline::evidence::Span;

/// Entries of [`Tally::refused`] in one group; those beyond are counted by reason only.
pub const MOST_REFUSED: usize = 64;

/// How a batch of readings came.
#[derive(Copy, Clone, Debug)]
pub(super) struct Delivery<'a> {
    /// The source, where it is known.
    pub source: Option<&'a Name>,
    /// When, by the gateway's clock.
    pub arrived: Time,
    /// Whether the other side says that it may have delivered them before.
    pub again: bool,
}

impl Engine {
    pub(super) fn take(
        &mut self,
        readings: &[Reading],
        delivery: &Delivery<'_>,
        touched: &mut Vec<usize>,
        out: &mut Outcome,
    ) {
        for r in readings {
            let (reason, place) = match self.place(r, delivery, out) {
                Ok(i) => (self.take_one(i, r, delivery, out), Some(i)),
                Err(reason) => (Some(reason), None),
            };
            if let Some(i) = place.filter(|i| touched.last() != Some(i)) {
                touched.push(i);
            }
            if let Some(reason) = reason {
                *out.tally.dropped.entry(reason).or_default() += 1;
                note_refused(&mut out.tally.refused, reason, r, delivery);
            }
        }
    }

    /// Gives one reading to its machine; why it is not used, if it is not.
    fn take_one(&mut self, i: usize, r: &Reading, delivery: &Delivery<'_>, out: &mut Outcome) -> Option<&'static str> {
        let unit = &mut self.units[i];
        unit.state.heard = delivery.arrived;
        let (before, waiting) = (unit.pipe.signals(), unit.pipe.pending());
        let taken = if self.signals >= self.max_signals && !unit.pipe.follows(&r.signal) {
            Taken::Limit
        } else {
            unit.pipe.push_from(delivery.source, r, delivery.arrived, delivery.again)
        };
        self.signals += unit.pipe.signals() - before;
        self.pending += unit.pipe.pending() - waiting;
        if let Some(change) = unit.pipe.take_clock_change() {
            let machine = unit.pipe.name().clone();
            out.records.push(self.recorder.clock_change(&machine, &change));
            out.tally.clock_changes.push((machine, change));
        }
        match taken {
            Taken::Yes => None,
            Taken::Duplicate => Some("duplicate"),
            Taken::Late => Some("late"),
            Taken::Future => Some("future"),
            Taken::OtherOrigin => Some("other_origin"),
            Taken::Limit => {
                let signals = self.units[i].pipe.signals();
                let full = || format!("signal {:?} of machine {:?}: {signals} signals of it are", r.signal, r.machine);
                out.tally.full.get_or_insert_with(|| format!("{} followed, of all {}", full(), self.signals));
                Some("limit")
            }
        }
    }

    /// The place of the reading's machine; a new one is made where a block matches and there is room, else the
    /// reason why there is none.
    fn place(&mut self, r: &Reading, delivery: &Delivery<'_>, out: &mut Outcome) -> Result<usize, &'static str> {
        let name = &r.machine;
        if let Some(i) = self.places.get(name) {
            return Ok(*i);
        }
        let block = self.blocks.iter().position(|b| b.matcher.matches(name)).ok_or("no_machine")?;
        if self.units.len() >= self.max_machines {
            let n = self.max_machines;
            out.tally.full.get_or_insert_with(|| format!("machine {name:?}: {n} are followed ([agent] max_machines)"));
            return Err("limit");
        }
        let pipe = pipeline::Machine::new(name.clone(), self.blocks[block].layout.clone());
        let i = self.units.len();
        self.places.insert(name.clone(), i);
        self.signals += pipe.signals();
        self.units.push(Unit::new(block, pipe, delivery.arrived));
        let line = self.line(i);
        let memory = Memory::of(line.map(|l| &*l.incumbent));
        let rival = Memory::of(line.and_then(|l| l.candidate.as_deref()));
        (self.units[i].state.memory, self.units[i].state.rival) = (memory, rival);
        Ok(i)
    }
}

/// Counts a reading that is not used, by machine and reason. What is known to come again is not told.
fn note_refused(refused: &mut Vec<Refused>, reason: &'static str, r: &Reading, delivery: &Delivery<'_>) {
    if reason == "duplicate" && delivery.again {
        return;
    }
    if let Some(known) = refused.iter_mut().find(|k| k.reason == reason && k.machine == r.machine) {
        known.count += 1;
        return;
    }
    if refused.len() >= MOST_REFUSED {
        return;
    }
    let off = r.at.0.saturating_sub(delivery.arrived.0);
    let way = if off < 0 { "behind" } else { "ahead of" };
    let example = match reason {
        "late" | "future" => format!("its time {} is {} {way} the gateway's", r.at, Span(off)),
        "duplicate" => format!("a reading of that time, {}, was taken before", r.at),
        "other_origin" => "another topic or device feeds this signal".to_owned(),
        "no_machine" => "no [[machine]] matches".to_owned(),
        _ => "there is no room for it".to_owned(),
    };
    refused.push(Refused {
        source: delivery.source.cloned().unwrap_or_else(|| "".into()),
        machine: r.machine.clone(),
        signal: r.signal.clone(),
        reason,
        count: 1,
        example,
    });
}
