//! How every worker stands, by columns: what a price in seconds reads of its account and its curves.
//!
//! An account with its curves is most of a kilobyte, of which a price needs eighteen numbers. Kept beside them, column by column,
//! thousands of candidates are priced several at a time, from memory that is read in order.

/// Declares the columns once: their owner, the same as slices, and what goes over all of them.
macro_rules! columns {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// One entry per slot. Kept by [`super::Ledger`], which writes an entry anew whenever its account or its curves change.
        #[derive(Clone, Debug, Default)]
        pub struct Standing {
            $($(#[$doc])* pub(super) $name: Vec<f64>,)+
            /// Whether too few outcomes were seen to believe the curves.
            pub(super) is_new: Vec<bool>,
        }

        /// The columns of some workers, by candidate.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Lanes<'a> {
            $(pub(super) $name: &'a [f64],)+
            pub(super) is_new: &'a [bool],
        }

        /// One worker's entries.
        #[derive(Clone, Copy, Debug, Default)]
        pub(super) struct Stand {
            $(pub $name: f64,)+
            pub is_new: bool,
        }

        impl Standing {
            /// Room for `len` slots.
            pub(super) fn ensure(&mut self, len: usize) {
                $(self.$name.resize(len.max(self.$name.len()), 0.0);)+
                self.is_new.resize(len.max(self.is_new.len()), false);
            }

            pub(super) fn put(&mut self, at: usize, stand: &Stand) {
                $(self.$name[at] = stand.$name;)+
                self.is_new[at] = stand.is_new;
            }

            /// The rates of a worker have seen so much of their horizon.
            pub(super) fn saw(&mut self, at: usize, seen: f64) {
                self.seen[at] = seen;
            }

            /// Every column, slot after slot.
            pub(crate) fn lanes(&self) -> Lanes<'_> {
                Lanes {
                    $($name: &self.$name,)+
                    is_new: &self.is_new,
                }
            }

            /// The entries of `slots`, in their order, copied out of `all`.
            pub(crate) fn gather(&mut self, all: &Lanes<'_>, slots: impl Iterator<Item = usize> + Clone) {
                $(
                    self.$name.clear();
                    self.$name.extend(slots.clone().map(|slot| all.$name[slot]));
                )+
                self.is_new.clear();
                self.is_new.extend(slots.map(|slot| all.is_new[slot]));
            }
        }

        impl Lanes<'_> {
            /// The first `n` candidates: a loop over them then needs no further checks.
            #[inline(always)]
            pub(super) fn cut(&self, n: usize) -> Self {
                Self {
                    $($name: &self.$name[..n],)+
                    is_new: &self.is_new[..n],
                }
            }

            #[inline(always)]
            pub(super) fn at(&self, i: usize) -> Stand {
                Stand {
                    $($name: self.$name[i],)+
                    is_new: self.is_new[i],
                }
            }
        }
    };
}

columns! {
    /// Coefficients of the prefill curve, see [`crate::latency::Prior`]: s.
    prefill_pass,
    /// s/token.
    prefill_token,
    /// s/token².
    prefill_square,
    /// s/token².
    prefill_cached,
    /// Coefficients of the step curve: s.
    step_pass,
    /// s/sequence.
    step_sequence,
    /// s/token.
    step_token,
    /// A full prefill chunk, s.
    chunk_s,
    /// One token of a full chunk, s.
    token_s,
    /// Prefill seconds before first token.
    wait_s,
    /// Requests in flight.
    requests,
    /// KV tokens that it can keep; infinite when unknown.
    kv_capacity_tokens,
    /// Decayed sum of arrivals, see [`super::rates::Rate`].
    arrivals,
    /// Decayed sum of arriving prefill seconds.
    arriving_s,
    /// How much of its horizon a worker's own rates have seen, 0 to 1.
    seen,
    /// Blocks that one new block pushes out, 0 to 1.
    evicted_per_block,
    /// When the first token that is awaited longest was expected, seconds; infinite when none is.
    due_s,
}
