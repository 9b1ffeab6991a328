//! Joins, crashes, hangs and changes of speed.

use super::{Fleet, refused, worker_id};
use crate::agenda::Event;
use crate::config::{Role, SimError};
use crate::fault::FaultKind;
use wardrop_core::WorkerSpec;

impl Fleet<'_> {
    pub(super) fn join(&mut self, worker: usize) -> Result<(), SimError> {
        let pool = self.pool_of[worker];
        let engine = self.workers[worker].spec();
        let spec = WorkerSpec::default()
            .with_total_kv_blocks(u64::from(engine.num_blocks))
            .with_max_num_seqs(engine.max_num_seqs)
            .with_max_num_batched_tokens(engine.max_num_batched_tokens);
        if self.standing[worker].known {
            self.pools[pool]
                .router
                .remove_worker(worker_id(worker))
                .map_err(refused("a departure"))?;
        }
        self.pools[pool]
            .router
            .add_worker(worker_id(worker), spec)
            .map_err(refused("a worker"))?;
        let standing = &mut self.standing[worker];
        standing.known = true;
        standing.alive = true;
        standing.incarnation += 1;
        self.pump(pool)
    }

    pub(super) fn fault(&mut self, index: usize) -> Result<(), SimError> {
        let fault = self.spec.faults[index];
        let worker = fault.worker;
        match fault.kind {
            FaultKind::Join if self.standing[worker].alive => Ok(()),
            FaultKind::Join => self.join(worker),
            FaultKind::Crash { detect_ms } if self.standing[worker].alive => self.crash(worker, detect_ms),
            FaultKind::Crash { .. } => Ok(()),
            FaultKind::Hang { for_ms } => {
                if let Some(end_ms) = self.workers[worker].hang(self.now_ms, for_ms) {
                    self.expect_end(worker as u32, end_ms);
                }
                Ok(())
            }
            FaultKind::Speed { factor } => {
                let speed = self.spec.pools[self.pool_of[worker]].speeds[worker - self.first_of(worker)];
                self.workers[worker].speed = speed * factor;
                if let Some(end_ms) = self.workers[worker].cut(self.now_ms) {
                    self.expect_end(worker as u32, end_ms);
                }
                Ok(())
            }
        }
    }

    pub(super) fn first_of(&self, worker: usize) -> usize {
        self.pools[self.pool_of[worker]].first
    }

    pub(super) fn crash(&mut self, worker: usize, detect_ms: f64) -> Result<(), SimError> {
        let standing = &mut self.standing[worker];
        standing.alive = false;
        standing.stamp += 1;
        let incarnation = standing.incarnation;
        if self.workers[worker].settle(self.now_ms) {
            self.workers[worker].finish(&mut self.desk);
            self.signals(worker as u32)?;
        }
        let decodes = self.pools[self.pool_of[worker]].role == Role::Decode;
        for request in self.workers[worker].crash() {
            if decodes {
                let from = self.desk.requests.worker[request as usize];
                self.workers[from as usize].let_go(request);
                self.mark(from);
            }
            self.connection_failed(request, worker)?;
        }
        self.agenda.push(
            self.now_ms + detect_ms,
            Event::Dropped(worker as u32, incarnation),
        );
        Ok(())
    }

    pub(super) fn dropped(&mut self, worker: usize, incarnation: u32) -> Result<(), SimError> {
        let standing = &mut self.standing[worker];
        if standing.incarnation == incarnation && standing.known && !standing.alive {
            standing.known = false;
            let router = &mut self.pools[self.pool_of[worker]].router;
            router
                .remove_worker(worker_id(worker))
                .map_err(refused("a departure"))?;
        }
        Ok(())
    }
}
