//! From prefill to decode worker: who decodes, room for the KV, its transfer.

use super::{Fleet, refused, request_id};
use crate::agenda::Event;
use crate::config::SimError;

impl Fleet<'_> {
    /// A prompt is done: choose who decodes.
    pub(super) fn hand_over(&mut self, request: u32) -> Result<(), SimError> {
        if self.pools[1].queue.is_some() {
            return self.offer(1, request);
        }
        let Some((to, _)) = self.route(1, request)? else {
            let from = self.desk.requests.worker[request as usize] as usize;
            self.workers[from].let_go(request);
            self.retry(request);
            return Ok(());
        };
        self.ask_for_room(request, to)
    }

    /// A decode worker was chosen: its KV goes there once it has room. The sender's blocks stay until they have been sent.
    pub(super) fn ask_for_room(&mut self, request: u32, to: usize) -> Result<(), SimError> {
        let from = self.desk.requests.worker[request as usize] as usize;
        if !self.standing[to].alive {
            self.workers[from].let_go(request);
            return self.connection_failed(request, to);
        }
        let now_s = self.now_ms * 1e-3;
        self.pools[1]
            .router
            .prefill_done(request_id(request), now_s)
            .map_err(refused("the end of a prefill"))?;
        self.desk.requests.decode_worker[request as usize] = to as u32;
        if let Some(end_ms) = self.workers[to].offer(request, self.now_ms, &self.desk) {
            self.expect_end(to as u32, end_ms);
        }
        self.mark(to as u32);
        Ok(())
    }

    /// Room is reserved: send the KV.
    pub(super) fn send_kv(&mut self, request: u32, tokens: u32) {
        let i = request as usize;
        let (from, to) = (
            self.desk.requests.worker[i] as usize,
            self.desk.requests.decode_worker[i] as usize,
        );
        let bytes = f64::from(tokens) * self.spec.pools[0].engine.kv_bytes_per_token;
        self.desk.totals.transfer_bytes += bytes;
        let done_ms = self.links.send(from, to, bytes, self.now_ms);
        self.agenda
            .push(done_ms, Event::Transferred(request, self.attempt(request)));
    }

    pub(super) fn transferred(&mut self, request: u32, attempt: u32) {
        let i = request as usize;
        if self.attempt(request) != attempt {
            // Its decode worker died on the way, and the request has begun again.
            return;
        }
        let (from, to) = (self.desk.requests.worker[i], self.desk.requests.decode_worker[i]);
        self.workers[from as usize].let_go(request);
        self.mark(from);
        if let Some(end_ms) = self.workers[to as usize].activate(request, self.now_ms) {
            self.expect_end(to, end_ms);
        }
        self.mark(to);
    }
}
