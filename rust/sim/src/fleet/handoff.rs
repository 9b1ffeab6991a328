//! Handoff of a request from its prefill worker to a decode worker: choice of the worker, blocks, transfer of the KV.

use super::Fleet;
use super::agenda::Event;
use super::ids::request_id;
use crate::engine::Reservation;
use crate::error::{SimError, router_refused};

impl Fleet<'_> {
    /// Chooses the decode worker of a request whose prompt is computed.
    pub(super) fn hand_over(&mut self, request: u32) -> Result<(), SimError> {
        if self.pools[1].queue.is_some() {
            return self.enqueue(1, request);
        }
        let Some(routed) = self.route(1, request)? else {
            let from = self.state.requests.worker[request as usize] as usize;
            self.workers[from].kv_sent(request);
            self.retry(request);
            return Ok(());
        };
        self.request_room(request, routed.worker)
    }

    /// Asks the chosen decode worker for blocks. The prefill worker keeps its blocks until the KV has been sent.
    pub(super) fn request_room(&mut self, request: u32, to: usize) -> Result<(), SimError> {
        let from = self.state.requests.worker[request as usize] as usize;
        if !self.status[to].is_alive {
            self.workers[from].kv_sent(request);
            return self.connection_failed(request, to);
        }
        let now_s = self.now_ms * 1e-3;
        self.pools[1]
            .router
            .prefill_done(request_id(request), now_s)
            .map_err(router_refused("the end of a prefill"))?;
        self.state.requests.decode_worker[request as usize] = to as u32;
        if let Some(end_ms) = self.workers[to].request_room(request, self.now_ms, &self.state) {
            self.schedule_end(to as u32, end_ms);
        }
        self.queue_start(to as u32);
        Ok(())
    }

    /// Sends the KV of a request whose decode worker has reserved blocks.
    pub(super) fn send_kv(&mut self, reservation: Reservation) {
        let Reservation { request, tokens } = reservation;
        let i = request as usize;
        let (from, to) = (
            self.state.requests.worker[i] as usize,
            self.state.requests.decode_worker[i] as usize,
        );
        let bytes = f64::from(tokens) * self.spec.pools[0].engine.kv_bytes_per_token;
        self.state.totals.transfer_bytes += bytes;
        let attempt = self.attempt(request);
        let done_ms = self.links.send(from, to, bytes, self.now_ms);
        self.agenda.push(done_ms, Event::Transferred { request, attempt });
    }

    /// The KV of a request has arrived at its decode worker.
    pub(super) fn transferred(&mut self, request: u32, attempt: u32) {
        let i = request as usize;
        if self.attempt(request) != attempt {
            // The decode worker crashed during the transfer, and the request started again.
            return;
        }
        let (from, to) = (
            self.state.requests.worker[i],
            self.state.requests.decode_worker[i],
        );
        self.workers[from as usize].kv_sent(request);
        self.queue_start(from);
        if let Some(end_ms) = self.workers[to as usize].kv_arrived(request, self.now_ms) {
            self.schedule_end(to, end_ms);
        }
        self.queue_start(to);
    }
}
