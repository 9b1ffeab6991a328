//! Measured timing table: a grid of times, interpolated linearly and extrapolated along its last segment.
//!
//! Dynamo's mock engine extrapolates in the same way. A look-up is O(log axis), and O(1) with a [`Cursor`] whose last
//! cell is near.

use serde::Deserialize;

use crate::error::SimError;

/// Two measured grids: prefill time by new and cached tokens, decode time by active KV tokens and mean context.
///
/// A grid is stored in row-major order: `values[row * columns + column]`. Every axis rises strictly.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "TableArrays")]
pub struct TimingTable {
    arrays: TableArrays,
}

/// The arrays of a timing file, under the names that they have there. Times are milliseconds, axes are tokens.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableArrays {
    /// New tokens of a prefill batch: the rows of `prefill_ttft_ms`.
    pub prefill_isl: Vec<f64>,
    /// Mean cached tokens of a prefill batch: the columns of `prefill_ttft_ms`. Empty if prefill ignores them.
    #[serde(default)]
    pub prefill_cached: Vec<f64>,
    /// Prefill time.
    pub prefill_ttft_ms: Vec<f64>,
    /// Active KV tokens: the rows of `decode_itl`.
    pub decode_active_kv_tokens: Vec<f64>,
    /// Mean context of the batch: the columns of `decode_itl`.
    pub decode_context_length: Vec<f64>,
    /// Time of one decode step.
    pub decode_itl: Vec<f64>,
}

impl TryFrom<TableArrays> for TimingTable {
    type Error = SimError;

    fn try_from(arrays: TableArrays) -> Result<Self, SimError> {
        check_axis("prefill_isl", &arrays.prefill_isl)?;
        check_axis("decode_active_kv_tokens", &arrays.decode_active_kv_tokens)?;
        check_axis("decode_context_length", &arrays.decode_context_length)?;
        if !arrays.prefill_cached.is_empty() {
            check_axis("prefill_cached", &arrays.prefill_cached)?;
        }
        let prefill_cells = arrays.prefill_isl.len() * arrays.prefill_cached.len().max(1);
        check_grid("prefill_ttft_ms", &arrays.prefill_ttft_ms, prefill_cells)?;
        let decode_cells = arrays.decode_active_kv_tokens.len() * arrays.decode_context_length.len();
        check_grid("decode_itl", &arrays.decode_itl, decode_cells)?;
        Ok(Self { arrays })
    }
}

/// The cell of the last look-up, so that an argument that moves slowly costs no search.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor {
    row: usize,
    column: usize,
}

impl TimingTable {
    /// Milliseconds to prefill `new_tokens` behind a mean of `cached_tokens`.
    pub(super) fn prefill_ms(&self, new_tokens: f64, cached_tokens: f64) -> f64 {
        let arrays = &self.arrays;
        if arrays.prefill_cached.is_empty() {
            return linear(&arrays.prefill_isl, &arrays.prefill_ttft_ms, new_tokens);
        }
        let grid = Grid {
            rows: &arrays.prefill_isl,
            columns: &arrays.prefill_cached,
            values: &arrays.prefill_ttft_ms,
        };
        grid.bilinear(new_tokens, cached_tokens, &mut Cursor::default())
    }

    /// Edges of the grid of prefill times: new tokens, then cached tokens.
    pub(super) fn prefill_axes(&self) -> (&[f64], &[f64]) {
        (&self.arrays.prefill_isl, &self.arrays.prefill_cached)
    }

    /// Edges of the grid of step times: KV tokens, then contexts.
    pub(super) fn decode_axes(&self) -> (&[f64], &[f64]) {
        (
            &self.arrays.decode_active_kv_tokens,
            &self.arrays.decode_context_length,
        )
    }

    /// Milliseconds of one decode step over `kv_tokens` with a mean context of `context_tokens`.
    pub(super) fn decode_ms(&self, kv_tokens: f64, context_tokens: f64, cursor: &mut Cursor) -> f64 {
        let grid = Grid {
            rows: &self.arrays.decode_active_kv_tokens,
            columns: &self.arrays.decode_context_length,
            values: &self.arrays.decode_itl,
        };
        grid.bilinear(kv_tokens, context_tokens, cursor)
    }
}

/// Refuses an axis that interpolation cannot use.
fn check_axis(name: &'static str, values: &[f64]) -> Result<(), SimError> {
    let rising = values.windows(2).all(|pair| pair[0] < pair[1]);
    if values.len() < 2 || !rising || values.iter().any(|value| !value.is_finite()) {
        return Err(SimError::Timing {
            name,
            need: "a strictly rising axis of at least two finite values",
        });
    }
    Ok(())
}

/// Refuses values that do not fill the grid.
fn check_grid(name: &'static str, values: &[f64], cells: usize) -> Result<(), SimError> {
    if values.len() != cells || values.iter().any(|value| !value.is_finite()) {
        return Err(SimError::Timing {
            name,
            need: "one finite value per grid point",
        });
    }
    Ok(())
}

/// The segment of `axis` that holds `x`; the edge segments also take what lies beyond them. `guess` is tried first.
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

/// Value at `x`, by the line of its segment. Beyond the axis, the line of the edge segment goes on.
fn linear(axis: &[f64], values: &[f64], x: f64) -> f64 {
    let at = segment(axis, x, usize::MAX);
    let share = (x - axis[at]) / (axis[at + 1] - axis[at]);
    values[at] + (values[at + 1] - values[at]) * share
}

/// A grid in row-major order.
struct Grid<'a> {
    rows: &'a [f64],
    columns: &'a [f64],
    values: &'a [f64],
}

impl Grid<'_> {
    /// Value at (`x`, `y`), linear along each axis. `cursor` remembers the cell, since the next step is near.
    fn bilinear(&self, x: f64, y: f64, cursor: &mut Cursor) -> f64 {
        let Self {
            rows,
            columns,
            values,
        } = self;
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
}
