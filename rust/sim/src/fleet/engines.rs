//! Which engines start, and when their iterations end.

use super::Fleet;
use crate::agenda::Event;
use crate::config::SimError;

impl Fleet<'_> {
    pub(super) fn mark(&mut self, worker: u32) {
        if !std::mem::replace(&mut self.standing[worker as usize].dirty, true) {
            self.dirty.push(worker);
        }
    }

    /// Something was put into a worker's queue: start it, or cut what it is doing.
    pub(super) fn nudge(&mut self, worker: u32) {
        if self.workers[worker as usize].busy() {
            if let Some(end_ms) = self.workers[worker as usize].interrupt(self.now_ms) {
                self.expect_end(worker, end_ms);
            }
        } else {
            self.mark(worker);
        }
    }

    pub(super) fn expect_end(&mut self, worker: u32, end_ms: f64) {
        let standing = &mut self.standing[worker as usize];
        standing.stamp += 1;
        self.agenda.push(end_ms, Event::Pass(worker, standing.stamp));
    }

    pub(super) fn start_idle(&mut self) -> Result<(), SimError> {
        // A refusal may free a place for another request, and so mark another worker.
        while !self.dirty.is_empty() {
            let mut dirty = std::mem::take(&mut self.dirty);
            dirty.sort_unstable();
            dirty
                .drain(..)
                .try_for_each(|worker| self.start_if_idle(worker))?;
            if self.dirty.is_empty() {
                self.dirty = dirty;
            }
        }
        Ok(())
    }

    fn start_if_idle(&mut self, worker: u32) -> Result<(), SimError> {
        let at = worker as usize;
        self.standing[at].dirty = false;
        if self.workers[at].busy() || !self.standing[at].alive || !self.workers[at].has_work() {
            return Ok(());
        }
        if self.workers[at].not_before_ms > self.now_ms {
            self.agenda
                .push(self.workers[at].not_before_ms, Event::Wake(worker));
            return Ok(());
        }
        self.workers[at].start(self.now_ms, &mut self.desk);
        self.carry(worker);
        if self.workers[at].busy() {
            self.expect_end(worker, self.workers[at].end_ms());
        }
        let mut reserved = std::mem::take(&mut self.desk.reserved);
        for (request, tokens) in reserved.drain(..) {
            self.send_kv(request, tokens);
        }
        self.desk.reserved = reserved;
        while let Some((request, ready_ms)) = self.desk.parked.pop() {
            self.agenda.push(ready_ms, Event::Onboarded(worker, request));
        }
        // A request too large for the cache is refused before anything ran.
        if !self.desk.signals.is_empty() {
            self.signals(worker)?;
        }
        Ok(())
    }
}
