//! Start and end of the engines' iterations.

use super::Fleet;
use super::agenda::Event;
use crate::engine::Onboarding;
use crate::error::SimError;

impl Fleet<'_> {
    /// Queues a worker for [`Fleet::start_idle_engines`].
    pub(super) fn queue_start(&mut self, worker: u32) {
        if !std::mem::replace(&mut self.status[worker as usize].is_queued, true) {
            self.start_queue.push(worker);
        }
    }

    /// Lets a worker notice a new entry in its queue: starts it, or cuts its run of iterations.
    pub(super) fn wake(&mut self, worker: u32) {
        if self.workers[worker as usize].busy() {
            if let Some(end_ms) = self.workers[worker as usize].interrupt(self.now_ms) {
                self.schedule_end(worker, end_ms);
            }
        } else {
            self.queue_start(worker);
        }
    }

    /// Enters the end of a worker's planned iterations, which makes the end of its former plan stale.
    pub(super) fn schedule_end(&mut self, worker: u32, end_ms: f64) {
        let status = &mut self.status[worker as usize];
        status.plan += 1;
        let plan = status.plan;
        self.agenda.push(end_ms, Event::IterationsEnd { worker, plan });
    }

    /// Starts the queued engines that are idle and have work, in order of their index.
    pub(super) fn start_idle_engines(&mut self) -> Result<(), SimError> {
        // A rejected request can make room for another one, and so queue another worker.
        while !self.start_queue.is_empty() {
            let mut queue = std::mem::take(&mut self.start_queue);
            queue.sort_unstable();
            queue
                .drain(..)
                .try_for_each(|worker| self.start_if_idle(worker))?;
            if self.start_queue.is_empty() {
                // The emptied list keeps its memory for the next step.
                self.start_queue = queue;
            }
        }
        Ok(())
    }

    fn start_if_idle(&mut self, worker: u32) -> Result<(), SimError> {
        let at = worker as usize;
        self.status[at].is_queued = false;
        if self.workers[at].busy() || !self.status[at].is_alive || !self.workers[at].has_work() {
            return Ok(());
        }
        if self.workers[at].not_before_ms > self.now_ms {
            self.agenda
                .push(self.workers[at].not_before_ms, Event::Wake(worker));
            return Ok(());
        }
        self.workers[at].start(self.now_ms, &mut self.state);
        self.publish_changes(worker);
        if self.workers[at].busy() {
            self.schedule_end(worker, self.workers[at].end_ms());
        }
        let mut reservations = std::mem::take(&mut self.state.reservations);
        for reservation in reservations.drain(..) {
            self.send_kv(reservation);
        }
        self.state.reservations = reservations;
        while let Some(Onboarding { request, ready_ms }) = self.state.onboardings.pop() {
            self.agenda.push(ready_ms, Event::Onboarded { worker, request });
        }
        // A request that is larger than the cache is rejected before any iteration ran.
        if !self.state.signals.is_empty() {
            self.handle_signals(worker)?;
        }
        Ok(())
    }
}
