//! Links between prefill and decode workers: each worker has one.
//!
//! A transfer starts when the links of both workers are free, and occupies both for `bytes / bandwidth`. The latency
//! comes on top and occupies no link.

use crate::spec::TransferSpec;

/// The links of all workers of a split fleet.
#[derive(Debug)]
pub(crate) struct Links {
    /// Bandwidth, latency, and whether transfers share links.
    spec: TransferSpec,
    /// Time at which each worker's link becomes free.
    free_ms: Vec<f64>,
}

impl Links {
    /// Links of `workers` workers, all free.
    pub fn new(spec: TransferSpec, workers: usize) -> Self {
        Self {
            spec,
            free_ms: vec![0.0; workers],
        }
    }

    /// Adds a worker whose link is free.
    pub fn add(&mut self) {
        self.free_ms.push(0.0);
    }

    /// Queues a transfer. Returns the arrival time of its last byte, in milliseconds.
    pub fn send(&mut self, from: usize, to: usize, bytes: f64, now_ms: f64) -> f64 {
        let hold_ms = bytes / self.spec.bandwidth_bytes_per_s * 1e3;
        if !self.spec.contention {
            return now_ms + hold_ms + self.spec.latency_ms;
        }
        let end_ms = now_ms.max(self.free_ms[from]).max(self.free_ms[to]) + hold_ms;
        self.free_ms[from] = end_ms;
        self.free_ms[to] = end_ms;
        end_ms + self.spec.latency_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_over_one_link_queue_and_over_two_do_not() {
        let spec = TransferSpec {
            bandwidth_bytes_per_s: 1000.0,
            latency_ms: 5.0,
            contention: true,
        };
        let mut links = Links::new(spec, 4);
        assert_eq!(links.send(0, 2, 100.0, 0.0), 105.0);
        assert_eq!(links.send(0, 3, 100.0, 0.0), 205.0);
        assert_eq!(links.send(1, 2, 100.0, 0.0), 205.0);
        let mut free = Links::new(
            TransferSpec {
                contention: false,
                ..spec
            },
            4,
        );
        assert_eq!(free.send(0, 2, 100.0, 0.0), 105.0);
        assert_eq!(free.send(0, 2, 100.0, 0.0), 105.0);
    }
}
