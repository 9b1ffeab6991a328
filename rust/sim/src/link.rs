//! The way from a prefill to a decode worker: each worker has one link out and one link in.
//!
//! A transfer starts when both are free and holds both for `bytes / bandwidth`; the latency comes on top and holds nothing.

use crate::config::TransferSpec;

/// See the module.
#[derive(Debug)]
pub(crate) struct Links {
    spec: TransferSpec,
    free_ms: Vec<f64>,
}

impl Links {
    pub fn new(spec: TransferSpec, workers: usize) -> Self {
        Self {
            spec,
            free_ms: vec![0.0; workers],
        }
    }

    /// One more worker, its link free.
    pub fn add(&mut self) {
        self.free_ms.push(0.0);
    }

    /// Book a transfer; returns when the last byte is in, ms.
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
