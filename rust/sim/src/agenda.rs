//! What is going to happen, in order of time; at one time in the order fault, engine, transfer, arrival, sample; then as
//! entered. Equal inputs give equal orders.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Something that happens at a known time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// Entry of the fault plan.
    Fault(u32),
    /// Discovery drops a dead worker, if it has not come back (incarnation).
    Dropped(u32, u32),
    /// The planned iterations of a worker end; stale unless the stamp is current.
    Pass(u32, u32),
    /// A worker that hung may start again.
    Wake(u32),
    /// KV of a request is back in device memory (worker, request).
    Onboarded(u32, u32),
    /// KV of a request reached its decode worker (request, its attempt).
    Transferred(u32, u32),
    /// A delayed batch of KV events reaches the router.
    Feed,
    /// A delayed report of an iteration reaches the router.
    Metrics,
    /// A request reaches the router (first time or again).
    Arrival(u32),
    /// Look at every worker.
    Sample,
}

impl Event {
    const fn class(self) -> u8 {
        match self {
            Self::Fault(_) | Self::Dropped(..) => 0,
            Self::Pass(..) | Self::Wake(_) => 1,
            Self::Onboarded(..) | Self::Transferred(..) => 2,
            Self::Feed | Self::Metrics => 3,
            Self::Arrival(_) => 4,
            Self::Sample => 5,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Agenda {
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    entered: u64,
}

impl Agenda {
    /// `at_ms` must be at least 0: only then do the bits of a float sort like its value.
    pub fn push(&mut self, at_ms: f64, event: Event) {
        debug_assert!(at_ms >= 0.0, "time must not be negative");
        self.entered += 1;
        let order = (u64::from(event.class()) << 56) | self.entered;
        self.heap.push(Reverse((at_ms.to_bits(), order, event)));
    }

    pub fn only_samples(&self) -> bool {
        self.heap.len() <= 1
            && self
                .heap
                .peek()
                .is_none_or(|Reverse((_, _, event))| *event == Event::Sample)
    }

    pub fn next_ms(&self) -> Option<f64> {
        self.heap
            .peek()
            .map(|Reverse((bits, _, _))| f64::from_bits(*bits))
    }

    /// The next event, if it is not after `now_ms`.
    pub fn pop_until(&mut self, now_ms: f64) -> Option<Event> {
        if self.next_ms()? > now_ms {
            return None;
        }
        self.heap.pop().map(|Reverse((_, _, event))| event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_one_time_engines_come_before_arrivals_and_faults_before_both() {
        let mut agenda = Agenda::default();
        agenda.push(5.0, Event::Arrival(1));
        agenda.push(5.0, Event::Arrival(2));
        agenda.push(5.0, Event::Pass(0, 0));
        agenda.push(5.0, Event::Fault(0));
        agenda.push(4.0, Event::Sample);
        let order: Vec<Event> = std::iter::from_fn(|| agenda.pop_until(9.0)).collect();
        let want = vec![
            Event::Sample,
            Event::Fault(0),
            Event::Pass(0, 0),
            Event::Arrival(1),
            Event::Arrival(2),
        ];
        assert_eq!(order, want);
    }
}
