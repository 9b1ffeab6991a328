//! How long one engine iteration takes.
//!
//! Prefill time is a function of the new tokens in the batch (and, where a table has the axis, of their mean cached
//! length); decode time of the active KV tokens and the mean context. Three sources: Dynamo's mock polynomial, a
//! measured table (linear and bilinear interpolation, extrapolated along the last segment, as Dynamo's mock engine
//! does), and an affine curve for hand-worked cases. All times are milliseconds. O(log axis) per look-up, O(1) with a
//! [`Cursor`] whose last cell is near.

use serde::Deserialize;

use crate::config::SimError;
use wardrop_core::latency::Prior;

/// A measured grid: `values[i * columns + j]` at `(rows[i], columns[j])`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Arrays")]
pub struct Table {
    prefill_tokens: Vec<f64>,
    prefill_cached: Vec<f64>,
    prefill_ms: Vec<f64>,
    decode_kv_tokens: Vec<f64>,
    decode_context: Vec<f64>,
    decode_ms: Vec<f64>,
}

/// The arrays of a timing file by their names there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arrays {
    prefill_isl: Vec<f64>,
    #[serde(default)]
    prefill_cached: Vec<f64>,
    prefill_ttft_ms: Vec<f64>,
    decode_active_kv_tokens: Vec<f64>,
    decode_context_length: Vec<f64>,
    decode_itl: Vec<f64>,
}

impl TryFrom<Arrays> for Table {
    type Error = SimError;

    fn try_from(arrays: Arrays) -> Result<Self, SimError> {
        Self::new(
            arrays.prefill_isl,
            arrays.prefill_cached,
            arrays.prefill_ttft_ms,
            arrays.decode_active_kv_tokens,
            arrays.decode_context_length,
            arrays.decode_itl,
        )
    }
}

/// Where the last look-up ended, so that a slowly moving argument costs no search.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    row: usize,
    column: usize,
}

/// What the engine asks a clock.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Timing {
    /// Dynamo's mock default: prefill `4.209989e-7 n² + 1.518344e-2 n + 16.50142`, decode
    /// `−25.74 p² + 54.01 p + 5.74` with `p` the share of KV tokens in use.
    Polynomial,
    /// Measured tables.
    Table(Box<Table>),
    /// `prefill_base + prefill_per_token · n`; `decode_base + decode_per_kv_token · kv + decode_per_sequence · batch`.
    Affine {
        /// Prefill at zero tokens, ms.
        prefill_base_ms: f64,
        /// Prefill slope, ms per new token.
        prefill_per_token_ms: f64,
        /// Step time of an empty batch, ms.
        decode_base_ms: f64,
        /// Step slope, ms per active KV token.
        decode_per_kv_token_ms: f64,
        /// Step slope, ms per sequence in the batch.
        decode_per_sequence_ms: f64,
    },
    /// Learned curves ([`wardrop_core::latency`]): prefill of n new tokens behind c cached ones `p0 + p1·n + p2·n²/2 + p3·n·c`, a
    /// step of b sequences over k tokens `d0 + d1·b + d2·k`, in seconds.
    Learned(Prior),
}

/// What a decode step depends on.
#[derive(Clone, Copy, Debug)]
pub struct DecodeStep {
    /// Sequences that emit a token.
    pub batch: u32,
    /// Tokens' worth of KV blocks held by running sequences.
    pub active_kv_tokens: u64,
    /// Mean context length of the batch, whole tokens.
    pub context_tokens: u64,
    /// Capacity of the worker, tokens.
    pub total_kv_tokens: u64,
}

/// The shortest decode step, ms: token timestamps must not collapse.
const MIN_DECODE_MS: f64 = 1.0;

impl Table {
    /// Check and take the arrays of a timing file. `prefill_cached` may be empty: then prefill ignores the cached length.
    pub fn new(
        prefill_tokens: Vec<f64>,
        prefill_cached: Vec<f64>,
        prefill_ms: Vec<f64>,
        decode_kv_tokens: Vec<f64>,
        decode_context: Vec<f64>,
        decode_ms: Vec<f64>,
    ) -> Result<Self, SimError> {
        axis("prefill_isl", &prefill_tokens, 2)?;
        axis("decode_active_kv_tokens", &decode_kv_tokens, 2)?;
        axis("decode_context_length", &decode_context, 2)?;
        if !prefill_cached.is_empty() {
            axis("prefill_cached", &prefill_cached, 2)?;
        }
        grid(
            "prefill_ttft_ms",
            &prefill_ms,
            prefill_tokens.len() * prefill_cached.len().max(1),
        )?;
        grid(
            "decode_itl",
            &decode_ms,
            decode_kv_tokens.len() * decode_context.len(),
        )?;
        Ok(Self {
            prefill_tokens,
            prefill_cached,
            prefill_ms,
            decode_kv_tokens,
            decode_context,
            decode_ms,
        })
    }
}

fn axis(name: &'static str, values: &[f64], least: usize) -> Result<(), SimError> {
    let rising = values.windows(2).all(|pair| pair[0] < pair[1]);
    if values.len() < least || !rising || values.iter().any(|value| !value.is_finite()) {
        return Err(SimError::Timing {
            name,
            need: "a strictly rising axis of at least two finite values",
        });
    }
    Ok(())
}

fn grid(name: &'static str, values: &[f64], len: usize) -> Result<(), SimError> {
    if values.len() != len || values.iter().any(|value| !value.is_finite()) {
        return Err(SimError::Timing {
            name,
            need: "one finite value per grid point",
        });
    }
    Ok(())
}

/// The segment of `axis` that holds `x` (edge segments extrapolate), found from a near guess.
fn segment(axis: &[f64], x: f64, guess: usize) -> usize {
    let last = axis.len() - 2;
    let mut at = guess.min(last);
    if axis[at] <= x && (at == last || x < axis[at + 1]) {
        return at;
    }
    if at < last && axis[at + 1] <= x && (at + 1 == last || x < axis[at + 2]) {
        return at + 1;
    }
    at = axis.partition_point(|edge| *edge <= x).saturating_sub(1);
    at.min(last)
}

fn linear(axis: &[f64], values: &[f64], x: f64, guess: usize) -> f64 {
    let at = segment(axis, x, guess);
    let share = (x - axis[at]) / (axis[at + 1] - axis[at]);
    values[at] + (values[at + 1] - values[at]) * share
}

fn bilinear(rows: &[f64], columns: &[f64], values: &[f64], x: f64, y: f64, cursor: &mut Cursor) -> f64 {
    let row = segment(rows, x, cursor.row);
    let column = segment(columns, y, cursor.column);
    *cursor = Cursor { row, column };
    let across = (y - columns[column]) / (columns[column + 1] - columns[column]);
    let at = |row: usize| {
        let base = row * columns.len() + column;
        values[base] + (values[base + 1] - values[base]) * across
    };
    let down = (x - rows[row]) / (rows[row + 1] - rows[row]);
    at(row) + (at(row + 1) - at(row)) * down
}

impl Timing {
    /// Whether these are learned curves, whose passes and steps are cut as a router sees them.
    pub const fn is_learned(&self) -> bool {
        matches!(self, Self::Learned(_))
    }

    /// Milliseconds to prefill `new_tokens` in one iteration, `cached_tokens` being the mean cached length of the batch.
    pub fn prefill_ms(&self, new_tokens: u64, cached_tokens: u64) -> f64 {
        if new_tokens == 0 {
            return 0.0;
        }
        let n = new_tokens as f64;
        let ms = match self {
            Self::Polynomial => 4.209_989e-7 * n * n + 1.518_344e-2 * n + 16.501_42,
            Self::Table(table) if table.prefill_cached.is_empty() => {
                linear(&table.prefill_tokens, &table.prefill_ms, n, usize::MAX)
            }
            Self::Table(table) => {
                let mut cursor = Cursor::default();
                let cached = cached_tokens as f64;
                bilinear(
                    &table.prefill_tokens,
                    &table.prefill_cached,
                    &table.prefill_ms,
                    n,
                    cached,
                    &mut cursor,
                )
            }
            Self::Affine {
                prefill_base_ms,
                prefill_per_token_ms,
                ..
            } => prefill_base_ms + prefill_per_token_ms * n,
            Self::Learned(Prior { prefill: p, .. }) => {
                1e3 * (p[0] + p[1] * n + p[2] * 0.5 * n * n + p[3] * n * cached_tokens as f64)
            }
        };
        ms.max(0.0)
    }

    /// Milliseconds of one decode step; at least 1 (0 for an empty batch).
    pub fn decode_ms(&self, step: DecodeStep, cursor: &mut Cursor) -> f64 {
        if step.batch == 0 {
            return 0.0;
        }
        let kv = step.active_kv_tokens as f64;
        match self {
            Self::Polynomial => {
                let share = kv / (step.total_kv_tokens as f64).max(1.0);
                (-25.74 * share * share + 54.01 * share + 5.74).max(MIN_DECODE_MS)
            }
            Self::Table(table) => bilinear(
                &table.decode_kv_tokens,
                &table.decode_context,
                &table.decode_ms,
                kv,
                step.context_tokens as f64,
                cursor,
            )
            .max(MIN_DECODE_MS),
            // Hand-worked cases may ask for steps below a millisecond, or none at all.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Timing {
        // decode = kv + 10 · context, prefill = 2 n: bilinear interpolation must be exact, inside and outside the grid.
        let rows = vec![0.0, 10.0, 100.0];
        let columns = vec![1.0, 5.0];
        let decode = rows
            .iter()
            .flat_map(|kv| columns.iter().map(move |context| kv + 10.0 * context))
            .collect();
        Timing::Table(Box::new(
            Table::new(
                vec![1.0, 4.0, 9.0],
                vec![],
                vec![2.0, 8.0, 18.0],
                rows,
                columns,
                decode,
            )
            .expect("a fair table"),
        ))
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
        let flat = (vec![0.0, 1.0], vec![0.0, 1.0], vec![5.0; 4]);
        let table = Table::new(rows.clone(), columns.clone(), prefill, flat.0, flat.1, flat.2);
        let timing = Timing::Table(Box::new(table.expect("a fair table")));
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
        let bad = Table::new(
            vec![4.0, 1.0],
            vec![],
            vec![1.0, 2.0],
            vec![0.0, 1.0],
            vec![0.0, 1.0],
            vec![0.0; 4],
        );
        assert!(bad.is_err());
    }
}
