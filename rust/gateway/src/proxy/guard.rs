//! Limits a panic to one request, or to one run of a thread's work, which then starts again.
//!
//! A panic is a defect of the gateway. It costs one request and a counter, because a crash would
//! cost every stream in flight. `wardrop_service::hide_panic_texts` keeps the text of a panic out
//! of the log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Poll;
use std::time::Duration;

use prometheus::IntCounterVec;

/// Pause between a panic of a thread's work and its next run.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// A future panicked.
#[derive(Debug)]
pub struct Panicked;

/// Drives a future and turns its panic into an error.
///
/// The future is not polled again after its panic, so its broken state is never seen.
///
/// # Errors
/// [`Panicked`]; the panic's value is dropped, since it may quote data.
pub async fn catch_panic<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        },
    )
    .await
}

/// Runs a thread's work until it returns. After a panic the work starts again, and `panics` counts the panic under `part`.
///
/// The pause keeps a panic that repeats at once from filling the log.
pub fn supervise(part: &str, panics: &IntCounterVec, mut work: impl FnMut()) {
    while catch_unwind(AssertUnwindSafe(&mut work)).is_err() {
        panics.with_label_values(&[part]).inc();
        tracing::error!(part, "a thread panicked and starts again");
        std::thread::sleep(RESTART_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Opts;

    fn counters() -> IntCounterVec {
        IntCounterVec::new(Opts::new("panics", "help"), &["part"]).unwrap()
    }

    #[test]
    fn a_future_that_panics_later_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let late = async {
                tokio::task::yield_now().await;
                assert!(std::hint::black_box(false), "planted");
            };
            assert!(catch_panic(late).await.is_err());
            assert_eq!(catch_panic(async { 7 }).await.unwrap(), 7);
        });
    }

    #[test]
    fn work_that_panics_runs_again_and_is_counted() {
        let panics = counters();
        let mut runs = 0;
        supervise("accept", &panics, || {
            runs += 1;
            assert!(runs > 2, "planted");
        });
        assert_eq!(runs, 3);
        assert_eq!(panics.with_label_values(&["accept"]).get(), 2);
    }
}
