//! Dense matrix of costs in seconds: one row per request, one column per worker.
//!
//! The solvers read whole rows in order, so one row-major vector is the fastest form. Every value is checked
//! once, when the matrix is made, and no solver checks again.

use crate::error::Error;

/// Row-major costs. Invariant: `values.len() == rows · columns`, every value finite.
#[derive(Debug, Clone, PartialEq)]
pub struct CostMatrix {
    /// Number of requests.
    rows: usize,
    /// Number of workers.
    columns: usize,
    /// Costs, row after row.
    values: Vec<f64>,
}

impl CostMatrix {
    /// A matrix from `values` in row-major order.
    ///
    /// # Errors
    /// [`Error::Parameter`] when the length is not `rows · columns` or a value is not finite.
    pub fn new(rows: usize, columns: usize, values: Vec<f64>) -> Result<Self, Error> {
        if values.len() != rows * columns {
            let got = format!("{} values for {rows} × {columns}", values.len());
            return Err(unusable(got, "rows × columns values"));
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let got = format!("{} at row {}, column {}", values[at], at / columns, at % columns);
            return Err(unusable(got, "finite costs"));
        }
        Ok(Self {
            rows,
            columns,
            values,
        })
    }

    /// Number of requests.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of workers.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Costs of request `row` on every worker.
    #[inline]
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }

    /// Cost of request `row` on worker `column`.
    #[inline]
    pub fn at(&self, row: usize, column: usize) -> f64 {
        self.values[row * self.columns + column]
    }

    /// The transposed matrix: rows and columns exchanged.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let mut values = Vec::with_capacity(self.values.len());
        for column in 0..self.columns {
            values.extend((0..self.rows).map(|row| self.at(row, column)));
        }
        Self {
            rows: self.columns,
            columns: self.rows,
            values,
        }
    }
}

/// The error for costs that cannot be assigned.
pub(super) fn unusable(got: String, expected: &'static str) -> Error {
    Error::Parameter {
        field: "costs",
        got,
        expected,
    }
}
