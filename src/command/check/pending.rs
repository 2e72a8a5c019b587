//! How many readings wait for late ones: lateness × rate × channels × machines, by the config alone.

use std::time::Duration;

use crate::agent::engine;
use crate::config::Machine;
use crate::pipeline::Layout;
use crate::settings::Problem;

/// Readings that may wait for their step, over all machines.
pub const MAX_PENDING_READINGS: u64 = engine::MAX_PENDING_READINGS as u64;

/// What one `[[machine]]` block keeps waiting.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Readings of one machine, at one for each channel and step.
    pub each: u64,
    /// Machines there may be.
    pub machines: u64,
}

impl Pending {
    /// Of a block, where there may be `max_machines`.
    pub fn of(machine: &Machine, layout: &Layout, max_machines: usize) -> Pending {
        let steps = layout.lateness.max(0).unsigned_abs().div_ceil(layout.rate.max(1).unsigned_abs());
        let each = steps.saturating_mul(layout.channels.len().max(1) as u64);
        let machines = if machine.matcher.contains(['*', '?']) { max_machines as u64 } else { 1 };
        Pending { each, machines }
    }

    /// Readings of all machines of the block.
    pub fn all(self) -> u64 {
        self.each.saturating_mul(self.machines)
    }

    /// What is wrong where one machine alone is beyond the limit.
    pub fn refusal(self, machine: &Machine, layout: &Layout) -> Option<Problem> {
        let lateness = Duration::from_nanos(layout.lateness.max(0).unsigned_abs());
        (self.each > MAX_PENDING_READINGS).then(|| {
            let message = format!(
                "machine.lateness: {lateness:?} keeps {} readings of one machine waiting; the limit is \
                 {MAX_PENDING_READINGS} of all machines",
                self.each
            );
            Problem::new(machine.line, message)
        })
    }

    /// What to say where all machines together are.
    pub fn warning(self) -> Option<String> {
        (self.all() > MAX_PENDING_READINGS).then(|| {
            let most = MAX_PENDING_READINGS / self.each.max(1);
            format!(
                "its lateness keeps {} readings of each machine waiting; with more than {most} of the {} machines \
                 that there may be, they are over the limit of {MAX_PENDING_READINGS}, and steps end early",
                self.each, self.machines
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(block: &str, channels: usize) -> (Pending, Option<Problem>) {
        let text = format!(
            "[[source.mqtt]]\nname = \"shop\"\nurl = \"mqtt://127.0.0.1\"\n[[source.mqtt.subscribe]]\n\
             topic = \"f/{{machine}}\"\n[[machine]]\n{block}\n[agent]\nmax_machines = 100"
        );
        let config =
            crate::config::Config::parse(&text, std::path::Path::new("andon.toml"), crate::config::Needs::default())
                .unwrap();
        let names = (0..channels).map(|i| i.to_string().into()).collect();
        let layout = Layout::new(&config.machines[0].pipeline, names, 1, 1, Duration::from_millis(100));
        let pending = Pending::of(&config.machines[0], &layout, config.agent.max_machines);
        (pending, pending.refusal(&config.machines[0], &layout))
    }

    #[test]
    fn lateness_times_rate_times_channels_times_machines() {
        let (usual, refused) = pending("match = \"pump-*\"", 8);
        assert!(refused.is_none() && usual.warning().is_none(), "{usual:?}");
        let (backlog, refused) = pending("match = \"pump-*\"\nlateness = \"10min\"", 8);
        assert_eq!((backlog.each, backlog.machines, backlog.all()), (48_000, 100, 4_800_000));
        let warning = backlog.warning().unwrap();
        assert!(refused.is_none() && warning.contains("more than 43 of the 100 machines"), "{warning}");
        let (one, refused) = pending("match = \"pump-1\"\nlateness = \"10min\"", 8);
        assert!(one.machines == 1 && refused.is_none() && one.warning().is_none());
        let (_, refused) = pending("match = \"pump-1\"\nlateness = \"10h\"", 8);
        let refused = refused.unwrap();
        assert!(refused.message.contains("keeps 2880000 readings"), "{refused:?}");
    }
}
