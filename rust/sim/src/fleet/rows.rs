//! Rows of requests that come and go while the fleet runs, for [`crate::live::LiveFleet`].
//!
//! A row is an index into the columns of the workload and of the results. A row is used again after its request ended.

use super::{Fleet, NO_REQUEST};

impl Fleet<'_> {
    /// Appends an empty row.
    pub(crate) fn add_row(&mut self) -> u32 {
        let workload = self.state.workload.to_mut();
        let row = workload.len() as u32;
        workload.arrival_ms.push(0.0);
        workload.input_tokens.push(1);
        workload.output_tokens.push(1);
        workload.after.push(NO_REQUEST);
        workload.think_ms.push(0.0);
        workload.block_start.push(0);
        self.state.requests.add_row();
        self.first_child.push(NO_REQUEST);
        self.next_sibling.push(NO_REQUEST);
        self.former_attempts.push(0);
        row
    }

    /// Number of the attempt that the row's request is at, counted over all requests of the row.
    ///
    /// A transfer with another number belongs to an earlier attempt or to an earlier request, and is stale.
    pub(super) fn attempt(&self, row: u32) -> u32 {
        let i = row as usize;
        self.former_attempts[i].wrapping_add(self.state.requests.retries[i])
    }

    /// Clears a row whose request has ended.
    pub(crate) fn clear_row(&mut self, row: u32) {
        let i = row as usize;
        self.former_attempts[i] = self.attempt(row).wrapping_add(1);
        self.state.requests.clear_row(i);
    }

    /// Lets the request in `row` arrive at its arrival time.
    pub(crate) fn add_root(&mut self, row: u32) {
        self.roots.push(row);
        self.open_requests += 1;
    }

    /// Arrival time of the request added last, in milliseconds, unless it has already arrived.
    pub(crate) fn last_root_ms(&self) -> Option<f64> {
        let last = self.roots.get(self.next_root..)?.last()?;
        Some(self.state.workload.arrival_ms[*last as usize])
    }

    /// Forgets the requests that have arrived.
    pub(crate) fn forget_roots(&mut self) {
        self.roots.drain(..self.next_root);
        self.next_root = 0;
    }
}
