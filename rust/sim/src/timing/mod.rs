//! Duration of one engine iteration.
//!
//! Prefill time is a function of the new tokens of the batch and, where a table has the axis, of their mean
//! cached length. Decode time is a function of the active KV tokens and the mean context. There are four
//! sources: the polynomial of Dynamo's mock engine, a measured table, an affine curve for cases by hand, and
//! the curves that a router learned. All times are milliseconds.

mod table;

use serde::Deserialize;
use wardrop_core::latency::Prior;

pub(crate) use table::Cursor;
#[cfg(test)]
pub(crate) use table::TableArrays;
pub use table::TimingTable;

/// Source of iteration times.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Timing {
    /// Default of Dynamo's mock engine.
    ///
    /// Prefill of n tokens takes `4.209989e-7 n² + 1.518344e-2 n + 16.50142` ms. A decode step takes
    /// `−25.74 p² + 54.01 p + 5.74` ms, where p is the share of KV tokens in use.
    Polynomial,
    /// Measured tables.
    Table(Box<TimingTable>),
    /// Affine curves.
    ///
    /// Prefill of n tokens takes `prefill_base + prefill_per_token · n`. A decode step of b sequences over k KV tokens
    /// takes `decode_base + decode_per_kv_token · k + decode_per_sequence · b`.
    Affine {
        /// Prefill time of zero tokens, in milliseconds.
        prefill_base_ms: f64,
        /// Prefill time per new token, in milliseconds.
        prefill_per_token_ms: f64,
        /// Step time of an empty batch, in milliseconds.
        decode_base_ms: f64,
        /// Step time per active KV token, in milliseconds.
        decode_per_kv_token_ms: f64,
        /// Step time per sequence of the batch, in milliseconds.
        decode_per_sequence_ms: f64,
    },
    /// Curves learned by a router ([`wardrop_core::latency`]), in seconds.
    ///
    /// Prefill of n new tokens behind c cached tokens takes `p0 + p1·n + p2·n²/2 + p3·n·c`. A step of b sequences over
    /// k KV tokens takes `d0 + d1·b + d2·k`.
    Learned(Prior),
}

/// Arguments of the decode time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodeStep {
    /// Number of sequences that emit a token.
    pub batch: u32,
    /// Tokens that fit into the KV blocks held by running sequences.
    pub active_kv_tokens: u64,
    /// Mean context length of the batch, in whole tokens.
    pub context_tokens: u64,
    /// KV tokens that count as a full memory.
    pub total_kv_tokens: u64,
}

/// Shortest decode step, in milliseconds. Without it, two tokens of one request could have the same time.
pub(crate) const MIN_DECODE_MS: f64 = 1.0;

impl Timing {
    /// Whether the curves are learned by a router. A router sees passes and steps differently from an engine.
    pub(crate) const fn is_learned(&self) -> bool {
        matches!(self, Self::Learned(_))
    }

    /// Milliseconds to prefill `new_tokens` in one iteration; `cached_tokens` is the mean cached length of the batch.
    pub(crate) fn prefill_ms(&self, new_tokens: u64, cached_tokens: u64) -> f64 {
        if new_tokens == 0 {
            return 0.0;
        }
        let n = new_tokens as f64;
        let cached = cached_tokens as f64;
        let ms = match self {
            Self::Polynomial => 4.209_989e-7 * n * n + 1.518_344e-2 * n + 16.501_42,
            Self::Table(table) => table.prefill_ms(n, cached),
            Self::Affine {
                prefill_base_ms,
                prefill_per_token_ms,
                ..
            } => prefill_base_ms + prefill_per_token_ms * n,
            Self::Learned(Prior { prefill: p, .. }) => {
                1e3 * (p[0] + p[1] * n + p[2] * 0.5 * n * n + p[3] * n * cached)
            }
        };
        ms.max(0.0)
    }

    /// Milliseconds of one decode step: 0 for an empty batch, otherwise at least 1, except for [`Timing::Affine`].
    pub(crate) fn decode_ms(&self, step: DecodeStep, cursor: &mut Cursor) -> f64 {
        if step.batch == 0 {
            return 0.0;
        }
        let kv = step.active_kv_tokens as f64;
        match self {
            Self::Polynomial => {
                let share = (kv / (step.total_kv_tokens as f64).max(1.0)).min(1.0);
                (-25.74 * share * share + 54.01 * share + 5.74).max(MIN_DECODE_MS)
            }
            Self::Table(table) => table
                .decode_ms(kv, step.context_tokens as f64, cursor)
                .max(MIN_DECODE_MS),
            // Cases worked out by hand may need steps below a millisecond, or of no length.
            Self::Affine {
                decode_base_ms,
                decode_per_kv_token_ms,
                decode_per_sequence_ms,
                ..
            } => {
                decode_base_ms + decode_per_kv_token_ms * kv + decode_per_sequence_ms * f64::from(step.batch)
            }
            Self::Learned(Prior { step: d, .. }) => {
                (1e3 * (d[0] + d[1] * f64::from(step.batch) + d[2] * kv)).max(MIN_DECODE_MS)
            }
        }
    }
}

impl Timing {
    /// New tokens up to `most_new` and cached tokens up to `most_cached`, between which the prefill time of a table is
    /// bilinear.
    ///
    /// The lower bounds ask for them: a bilinear function has its extremes at such points.
    pub(crate) fn prefill_breakpoints(&self, most_new: u64, most_cached: u64) -> (Vec<u64>, Vec<u64>) {
        let Self::Table(table) = self else {
            return (whole_points(&[], 1, most_new), vec![0]);
        };
        let (news, cached) = table.prefill_axes();
        (
            whole_points(news, 1, most_new),
            whole_points(cached, 0, most_cached),
        )
    }

    /// KV tokens from `least_kv` to `most_kv` and contexts up to `longest`, between which the step time of a table is
    /// bilinear. A context beyond the axis follows the line of the last segment.
    pub(crate) fn decode_breakpoints(
        &self,
        least_kv: u64,
        most_kv: u64,
        longest: u64,
    ) -> (Vec<u64>, Vec<u64>) {
        let Self::Table(table) = self else {
            return (whole_points(&[], least_kv, most_kv), vec![1]);
        };
        let (kv, contexts) = table.decode_axes();
        (
            whole_points(kv, least_kv, most_kv),
            whole_points(contexts, 1, longest),
        )
    }
}

/// The whole numbers next to the edges of `axis` between `least` and `most`, and these two, rising.
fn whole_points(axis: &[f64], least: u64, most: u64) -> Vec<u64> {
    let most = most.max(least);
    let edges = axis.iter().flat_map(|edge| [edge.floor(), edge.ceil()]);
    let inner = edges
        .filter(|edge| *edge > least as f64 && *edge < most as f64)
        .map(|edge| edge as u64);
    let mut points: Vec<u64> = [least, most].into_iter().chain(inner).collect();
    points.sort_unstable();
    points.dedup();
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of a plane over both axes.
    fn table() -> Timing {
        // decode = kv + 10 · context, prefill = 2 n: bilinear interpolation must be exact, inside and outside the grid.
        let rows = vec![0.0, 10.0, 100.0];
        let columns = vec![1.0, 5.0];
        let decode = rows
            .iter()
            .flat_map(|kv| columns.iter().map(move |context| kv + 10.0 * context))
            .collect();
        let arrays = TableArrays {
            prefill_isl: vec![1.0, 4.0, 9.0],
            prefill_ttft_ms: vec![2.0, 8.0, 18.0],
            decode_active_kv_tokens: rows,
            decode_context_length: columns,
            decode_itl: decode,
            ..TableArrays::default()
        };
        Timing::Table(Box::new(arrays.try_into().expect("a valid table")))
    }

    #[test]
    fn tables_interpolate_and_extrapolate_linearly() {
        let timing = table();
        let mut cursor = Cursor::default();
        assert_eq!(timing.prefill_ms(6, 0), 12.0);
        assert_eq!(timing.prefill_ms(20, 0), 40.0);
        for (kv, context) in [(7, 2), (50, 4), (400, 9), (3, 30), (99, 1)] {
            let step = DecodeStep {
                batch: 1,
                active_kv_tokens: kv,
                context_tokens: context,
                total_kv_tokens: 1,
            };
            let want = (kv + 10 * context) as f64;
            assert!((timing.decode_ms(step, &mut cursor) - want).abs() < 1e-9);
        }
    }

    #[test]
    fn a_table_with_cached_lengths_is_interpolated_on_both_axes() {
        // prefill = 2 n + 0.5 cached: a plane, so that interpolation must be exact.
        let (rows, columns) = (vec![1.0, 4.0, 9.0], vec![0.0, 100.0]);
        let grid = rows
            .iter()
            .flat_map(|n| columns.iter().map(move |cached| (*n, *cached)));
        let prefill = grid.map(|(n, cached)| 2.0 * n + 0.5 * cached).collect();
        let arrays = TableArrays {
            prefill_isl: rows.clone(),
            prefill_cached: columns.clone(),
            prefill_ttft_ms: prefill,
            decode_active_kv_tokens: vec![0.0, 1.0],
            decode_context_length: vec![0.0, 1.0],
            decode_itl: vec![5.0; 4],
        };
        let timing = Timing::Table(Box::new(arrays.try_into().expect("a valid table")));
        for (new, cached) in [(1, 0), (6, 40), (20, 300)] {
            let want = 2.0 * new as f64 + 0.5 * cached as f64;
            assert!(
                (timing.prefill_ms(new, cached) - want).abs() < 1e-9,
                "{new} {cached}"
            );
        }
    }

    #[test]
    fn learned_curves_give_milliseconds() {
        let timing = Timing::Learned(Prior {
            prefill: [0.01, 1e-4, 2e-8, 1e-9],
            step: [0.009, 1e-4, 1e-8],
        });
        assert!((timing.prefill_ms(1000, 2000) - (10.0 + 100.0 + 10.0 + 2.0)).abs() < 1e-9);
        let step = DecodeStep {
            batch: 10,
            active_kv_tokens: 100_000,
            context_tokens: 0,
            total_kv_tokens: 1,
        };
        assert!((timing.decode_ms(step, &mut Cursor::default()) - 11.0).abs() < 1e-9);
    }

    #[test]
    fn polynomial_is_dynamos_default() {
        assert!((Timing::Polynomial.prefill_ms(1000, 0) - 32.105_858_9).abs() < 1e-6);
        let step = DecodeStep {
            batch: 1,
            active_kv_tokens: 500,
            context_tokens: 5,
            total_kv_tokens: 1000,
        };
        assert!((Timing::Polynomial.decode_ms(step, &mut Cursor::default()) - 26.31).abs() < 1e-9);
    }

    #[test]
    fn an_unsorted_axis_is_refused() {
        let arrays = TableArrays {
            prefill_isl: vec![4.0, 1.0],
            prefill_ttft_ms: vec![1.0, 2.0],
            decode_active_kv_tokens: vec![0.0, 1.0],
            decode_context_length: vec![0.0, 1.0],
            decode_itl: vec![0.0; 4],
            ..TableArrays::default()
        };
        assert!(TimingTable::try_from(arrays).is_err());
    }
}
