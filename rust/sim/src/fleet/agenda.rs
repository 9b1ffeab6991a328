//! Agenda of a run: the events to come, in order of time.
//!
//! Events at the same time follow in the order fault, engine, transfer, feed, arrival, sample, and within one class in
//! the order of their entry. Equal inputs therefore give equal orders. Entry and removal are O(log events).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// An event at a known time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// The entry of the fault plan with this index is due.
    Fault(u32),
    /// Discovery removes a crashed worker, unless it has joined again since then.
    Removal { worker: u32, incarnation: u32 },
    /// The planned iterations of a worker end. The event is stale unless `plan` is the worker's current plan.
    IterationsEnd { worker: u32, plan: u32 },
    /// A worker that hung may start again.
    Wake(u32),
    /// The blocks of a request are back in device memory.
    Onboarded { worker: u32, request: u32 },
    /// The KV of a request reached its decode worker. The event is stale unless `attempt` is the current attempt.
    Transferred { request: u32, attempt: u32 },
    /// A delayed KV event reaches the router.
    Delivery,
    /// A delayed report of an iteration reaches the router.
    ReportDelivery,
    /// A request reaches the queue of its worker's engine, after a wait that the router does not see. The event is stale unless the
    /// request still waits for this incarnation of the worker.
    Entry { at: Incarnation, request: u32 },
    /// A request reaches the router, for the first time or again.
    Arrival(u32),
    /// A sample of every worker's state is due.
    Sample,
}

/// One life of a worker, from a join to its crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Incarnation {
    /// Index of the worker over all pools.
    pub worker: u32,
    /// Number of the join.
    pub number: u32,
}

impl Event {
    /// Order among events at the same time, lowest first.
    const fn class(self) -> u8 {
        match self {
            Self::Fault(_) | Self::Removal { .. } => 0,
            Self::IterationsEnd { .. } | Self::Wake(_) => 1,
            Self::Onboarded { .. } | Self::Transferred { .. } | Self::Entry { .. } => 2,
            Self::Delivery | Self::ReportDelivery => 3,
            Self::Arrival(_) => 4,
            Self::Sample => 5,
        }
    }
}

/// Events to come, earliest first.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    /// Bits of the time, then class and number of entry, then the event.
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// Events entered so far. The number breaks ties within a class.
    entries: u64,
}

impl Agenda {
    /// Enters an event. `at_ms` must be at least 0, because only then do the bits of a float sort like its value.
    pub fn push(&mut self, at_ms: f64, event: Event) {
        debug_assert!(at_ms >= 0.0, "time must not be negative");
        self.entries += 1;
        let order = (u64::from(event.class()) << 56) | self.entries;
        self.heap.push(Reverse((at_ms.to_bits(), order, event)));
    }

    /// Whether nothing but the next sample is to come.
    pub fn has_only_samples(&self) -> bool {
        self.heap.len() <= 1
            && self
                .heap
                .peek()
                .is_none_or(|Reverse((_, _, event))| *event == Event::Sample)
    }

    /// Time of the next event, in milliseconds.
    pub fn next_ms(&self) -> Option<f64> {
        self.heap
            .peek()
            .map(|Reverse((bits, _, _))| f64::from_bits(*bits))
    }

    /// The next event, if it is due by `now_ms`.
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
        let end = Event::IterationsEnd { worker: 0, plan: 0 };
        agenda.push(5.0, Event::Arrival(1));
        agenda.push(5.0, Event::Arrival(2));
        agenda.push(5.0, end);
        agenda.push(5.0, Event::Fault(0));
        agenda.push(4.0, Event::Sample);
        let order: Vec<Event> = std::iter::from_fn(|| agenda.pop_until(9.0)).collect();
        let want = vec![
            Event::Sample,
            Event::Fault(0),
            end,
            Event::Arrival(1),
            Event::Arrival(2),
        ];
        assert_eq!(order, want);
    }
}
