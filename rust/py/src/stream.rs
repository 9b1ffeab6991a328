//! Bindings of the lower bound on a stream of requests, as the live router computes it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use wardrop_py_macros::caught;
use wardrop_sim::bound::{
    BoundFleet, History, PaidAndLower, PaidTimes, StreamRequest, note_window, price_estimate, price_window,
};

use crate::lists::List;
use crate::sim::raise;

/// Requests, seconds paid, seconds of the bound.
type Costs = (usize, f64, f64);
/// Output tokens, TTFT and E2E in seconds.
type Paid = (u32, Option<f64>, f64);
/// Arrival in seconds, prompt tokens, block ids, blocks found in a cache, what was paid.
type Request = (f64, u32, List<u64>, u32, Option<Paid>);

/// The lower bound on a stream of requests, window by window, as a live router computes it.
///
/// `_core.pyi` documents it.
#[pyclass(frozen, module = "wardrop._core")]
pub struct StreamBound {
    history: Mutex<History>,
}

#[caught]
#[pymethods]
impl StreamBound {
    #[new]
    fn new() -> Self {
        Self {
            history: Mutex::default(),
        }
    }

    /// Forget every earlier request.
    fn restart(&self) {
        self.lock().clear();
    }

    /// Cost and bound of the requests of one window, by TTFT and by E2E. The GIL is released.
    #[pyo3(signature = (requests, fleet=None))]
    fn window(
        &self,
        py: Python<'_>,
        requests: List<Request>,
        fleet: Option<&str>,
    ) -> PyResult<Option<(Costs, Costs)>> {
        let fleet = fleet
            .map(serde_json::from_str::<BoundFleet>)
            .transpose()
            .map_err(|error| PyValueError::new_err(format!("fleet: {error}")))?;
        if let Some(fleet) = &fleet
            && fleet.block_size == 0
        {
            return Err(PyValueError::new_err(
                "fleet: block_size: got 0, expected at least 1",
            ));
        }
        let mut requests: Vec<StreamRequest> = requests.0.into_iter().map(request).collect();
        py.detach(|| {
            let mut history = self.lock();
            let Some(fleet) = fleet else {
                note_window(&mut history, &mut requests);
                return Ok(None);
            };
            let price = price_window(&fleet, &mut history, &mut requests).map_err(|error| raise(&error))?;
            Ok(Some((costs(&price.ttft), costs(&price.e2e))))
        })
    }
}

impl StreamBound {
    fn lock(&self) -> MutexGuard<'_, History> {
        // A history is whole after every prompt, so a panic elsewhere leaves it usable.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Paid over lower bound over several windows, with its 95 % interval.
///
/// `_core.pyi` documents it.
#[caught]
#[pyfunction]
pub fn stream_price(windows: List<Costs>) -> Option<(f64, Option<(f64, f64)>)> {
    let windows: Vec<PaidAndLower> = windows
        .0
        .into_iter()
        .map(|(requests, paid_s, lower_s)| PaidAndLower {
            requests,
            paid_s,
            lower_s,
        })
        .collect();
    price_estimate(windows.iter()).map(|estimate| (estimate.value, estimate.interval))
}

fn request((arrived_s, input_tokens, blocks, found_blocks, paid): Request) -> StreamRequest {
    StreamRequest {
        arrived_s,
        input_tokens,
        blocks: blocks.0,
        found_blocks,
        paid: paid.map(|(output_tokens, ttft_s, e2e_s)| PaidTimes {
            output_tokens,
            ttft_s,
            e2e_s,
        }),
    }
}

fn costs(costs: &PaidAndLower) -> Costs {
    (costs.requests, costs.paid_s, costs.lower_s)
}
