//! Joins, crashes, hangs and changes of speed of workers.

use wardrop_core::WorkerSpec;

use super::Fleet;
use super::agenda::Event;
use super::ids::worker_id;
use crate::error::{SimError, router_refused};
use crate::spec::{FaultKind, Role};

impl Fleet<'_> {
    /// Registers a worker with its pool's router. A registration from before a crash ends first.
    pub(super) fn join(&mut self, worker: usize) -> Result<(), SimError> {
        let pool = self.pool_of[worker];
        let engine = self.workers[worker].spec();
        let spec = WorkerSpec::default()
            .with_total_kv_blocks(u64::from(engine.num_blocks))
            .with_max_num_seqs(engine.max_num_seqs)
            .with_max_num_batched_tokens(engine.max_num_batched_tokens);
        if self.status[worker].is_registered {
            self.pools[pool]
                .router
                .remove_worker(worker_id(worker))
                .map_err(router_refused("a departure"))?;
        }
        self.pools[pool]
            .router
            .add_worker(worker_id(worker), spec)
            .map_err(router_refused("a worker"))?;
        let status = &mut self.status[worker];
        status.is_registered = true;
        status.is_alive = true;
        status.incarnation += 1;
        self.place_waiting(pool)
    }

    /// Applies the entry of the fault plan with this index.
    pub(super) fn fault(&mut self, index: usize) -> Result<(), SimError> {
        let fault = self.spec.faults[index];
        let worker = fault.worker;
        match fault.kind {
            FaultKind::Join if self.status[worker].is_alive => Ok(()),
            FaultKind::Join => self.join(worker),
            FaultKind::Crash { detect_ms } if self.status[worker].is_alive => self.crash(worker, detect_ms),
            FaultKind::Crash { .. } => Ok(()),
            FaultKind::Hang { for_ms } => {
                if let Some(end_ms) = self.workers[worker].hang(self.now_ms, for_ms) {
                    self.schedule_end(worker as u32, end_ms);
                }
                Ok(())
            }
            FaultKind::Speed { factor } => {
                let speed = self.spec.pools[self.pool_of[worker]].speeds[worker - self.first_of(worker)];
                self.workers[worker].speed = speed * factor;
                if let Some(end_ms) = self.workers[worker].cut(self.now_ms) {
                    self.schedule_end(worker as u32, end_ms);
                }
                Ok(())
            }
        }
    }

    /// Index of the first worker in the pool of `worker`.
    pub(super) fn first_of(&self, worker: usize) -> usize {
        self.pools[self.pool_of[worker]].first
    }

    /// Crashes a worker. Iterations that are over still count; unfinished requests are tried again elsewhere.
    pub(super) fn crash(&mut self, worker: usize, detect_ms: f64) -> Result<(), SimError> {
        let status = &mut self.status[worker];
        status.is_alive = false;
        status.plan += 1;
        let incarnation = status.incarnation;
        if self.workers[worker].keep_finished_iterations(self.now_ms) {
            self.workers[worker].finish(&mut self.state);
            self.handle_signals(worker as u32)?;
        }
        let decodes = self.pools[self.pool_of[worker]].role == Role::Decode;
        for request in self.leave_entrance(worker) {
            self.connection_failed(request, worker)?;
        }
        for request in self.workers[worker].crash() {
            if decodes {
                let from = self.state.requests.worker[request as usize];
                self.workers[from as usize].kv_sent(request);
                self.queue_start(from);
            }
            self.connection_failed(request, worker)?;
        }
        self.agenda.push(
            self.now_ms + detect_ms,
            Event::Removal {
                worker: worker as u32,
                incarnation,
            },
        );
        Ok(())
    }

    /// Discovery removes a crashed worker, unless it has joined again since `incarnation`.
    pub(super) fn discovery_removes(&mut self, worker: usize, incarnation: u32) -> Result<(), SimError> {
        let status = &mut self.status[worker];
        if status.incarnation == incarnation && status.is_registered && !status.is_alive {
            status.is_registered = false;
            let router = &mut self.pools[self.pool_of[worker]].router;
            router
                .remove_worker(worker_id(worker))
                .map_err(router_refused("a departure"))?;
        }
        Ok(())
    }
}
