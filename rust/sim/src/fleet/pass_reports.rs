//! Reports of iterations from the workers to their router, with delay and loss. The router learns its curves from them.

use wardrop_core::latency::Pass;

use super::agenda::Event;
use super::ids::worker_id;
use super::{Delayed, Fleet};

impl Fleet<'_> {
    /// Reports the iteration that a worker has just finished, if the fleet's feed has iteration reports.
    pub(super) fn report_pass(&mut self, worker: u32) {
        let feed = self.spec.feed;
        if !feed.metrics {
            return;
        }
        self.state.totals.reports_sent += 1;
        if feed.metrics_loss > 0.0 && self.rng.unit() < feed.metrics_loss {
            self.state.totals.reports_lost += 1;
            return;
        }
        let pass = *self.workers[worker as usize].last_pass();
        if feed.metrics_delay_ms > 0.0 {
            let at_ms = self.now_ms + feed.metrics_delay_ms;
            self.delayed_passes.push_back(Delayed {
                at_ms,
                worker,
                message: pass,
            });
            self.agenda.push(at_ms, Event::ReportDelivery);
            return;
        }
        self.learn_pass(worker, &pass);
    }

    /// Delivers the delayed reports that are due.
    pub(super) fn deliver_passes(&mut self) {
        while let Some(delayed) = Delayed::pop_due(&mut self.delayed_passes, self.now_ms) {
            self.learn_pass(delayed.worker, &delayed.message);
        }
    }

    fn learn_pass(&mut self, worker: u32, pass: &Pass) {
        let router = &self.pools[self.pool_of[worker as usize]].router;
        // The report of a worker that has left the router has no effect.
        router.report_pass(worker_id(worker as usize), pass);
    }
}
