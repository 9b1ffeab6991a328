//! What a price in seconds reads of each worker's account and curves, as columns.
//!
//! An account with its curves takes most of a kilobyte. A price needs eighteen of its numbers. In columns of
//! their own, thousands of candidates are priced several at a time, from memory that is read in order
//! (`docs/adr/0009-candidates-by-columns.md`).
//!
//! A row is a copy, so it can be out of date. The rule that prevents it: only [`super::Ledger`] changes
//! accounts and curves, and it writes the row before the call ends.
//!
//! A macro declares each column once for three types. Written by hand, a column that one of them forgets
//! would be a wrong price and no error.

/// Declares each column once, for three types: the owned columns, slices of them, and one worker's row.
macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// One row per slot. [`super::Ledger`] rewrites a row whenever the account or the curves of its worker change.
        #[derive(Clone, Debug, Default)]
        pub(crate) struct WorkerColumns {
            $($(#[$doc])* pub(super) $name: Vec<f64>,)+
            /// Whether the curves have seen too few outcomes to be believed.
            pub(super) is_new: Vec<bool>,
        }

        /// The columns as slices, of every slot or of the candidates of a decision.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct ColumnSlices<'a> {
            $(pub(super) $name: &'a [f64],)+
            pub(super) is_new: &'a [bool],
        }

        /// One worker's row.
        #[derive(Clone, Copy, Debug, Default)]
        pub(super) struct WorkerRow {
            $(pub $name: f64,)+
            pub is_new: bool,
        }

        impl WorkerColumns {
            /// Grows every column to `len` slots.
            pub(super) fn ensure(&mut self, len: usize) {
                $(self.$name.resize(len.max(self.$name.len()), 0.0);)+
                self.is_new.resize(len.max(self.is_new.len()), false);
            }

            /// Writes one row.
            pub(super) fn put(&mut self, at: usize, row: &WorkerRow) {
                $(self.$name[at] = row.$name;)+
                self.is_new[at] = row.is_new;
            }

            /// Writes how much of their horizon the rates of one worker have seen.
            pub(super) fn set_seen(&mut self, at: usize, seen: f64) {
                self.seen[at] = seen;
            }

            /// Every column, by slot.
            pub(crate) fn slices(&self) -> ColumnSlices<'_> {
                ColumnSlices {
                    $($name: &self.$name,)+
                    is_new: &self.is_new,
                }
            }

            /// Copies the rows of `slots` out of `all`, in that order.
            pub(crate) fn gather(&mut self, all: &ColumnSlices<'_>, slots: impl Iterator<Item = usize> + Clone) {
                $(
                    self.$name.clear();
                    self.$name.extend(slots.clone().map(|slot| all.$name[slot]));
                )+
                self.is_new.clear();
                self.is_new.extend(slots.map(|slot| all.is_new[slot]));
            }
        }

        impl ColumnSlices<'_> {
            /// The first `n` rows. A loop over them then needs no bounds checks.
            #[inline(always)]
            pub(super) fn cut(&self, n: usize) -> Self {
                Self {
                    $($name: &self.$name[..n],)+
                    is_new: &self.is_new[..n],
                }
            }

            /// Row `i`.
            #[inline(always)]
            pub(super) fn row(&self, i: usize) -> WorkerRow {
                WorkerRow {
                    $($name: self.$name[i],)+
                    is_new: self.is_new[i],
                }
            }
        }
    };
}

columns! {
    /// Prefill curve ([`crate::latency::Prior`]): seconds of a pass.
    prefill_pass,
    /// Prefill curve: seconds per token.
    prefill_token,
    /// Prefill curve: seconds per token², of attention among new tokens.
    prefill_square,
    /// Prefill curve: seconds per token², of attention to cached tokens.
    prefill_cached,
    /// Step curve: seconds of a decode step.
    step_pass,
    /// Step curve: seconds per sequence.
    step_sequence,
    /// Step curve: seconds per token of active KV cache.
    step_token,
    /// Seconds of a full prefill chunk.
    chunk_s,
    /// Seconds per token of a full prefill chunk.
    token_s,
    /// Prefill seconds of requests before their first token.
    wait_s,
    /// Requests in flight.
    requests,
    /// Tokens of the KV cache. Infinite when unknown.
    kv_capacity_tokens,
    /// Decayed sum of arrivals ([`super::rates::Rate`]).
    arrivals,
    /// Decayed sum of arriving prefill seconds.
    arriving_s,
    /// Share of their horizon that the worker's rates have seen, 0 to 1.
    seen,
    /// Blocks that one new block evicts, 0 to 1.
    evicted_per_block,
    /// When the longest awaited first token was expected, seconds. Infinite when none is awaited.
    due_s,
}
