//! Threads that turn long prompts into tokens, apart from the threads that serve and from the waits of the network.
//!
//! Work is shared fairly by size. Each prompt gets a tag: the bytes that had started before it came, plus its own bytes. The lowest tag
//! runs first. A small prompt passes a huge prompt that came earlier. A huge prompt waits until as many bytes of other prompts have run.
//! Large prompts never take the last thread. A prompt whose caller left is dropped before it runs, and stops
//! where it runs. Adding and taking cost O(log n) in the number of waiting prompts.
//!
//! Source of the tags: start-time fair queueing (Goyal, Vin and Cheng, 1996), with each prompt as a flow of its own.
//!
//! Bounds: [`WAITING_LIMIT`] prompts wait at most. A further prompt is not refused: its request is
//! left to Dynamo, or placed by load.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use prometheus::{IntCounter, IntGauge};
use tokio::sync::oneshot;

use crate::ServiceError;
use crate::cancel::CancelFlag;
use crate::metrics::{MetricBuilder, THREAD_PREFIX};

/// Most prompts that wait for a thread.
const WAITING_LIMIT: usize = 256;
/// Smallest prompt, bytes, that counts as large: about a second of work for a slow tokeniser.
const LARGE_BYTES: usize = 1 << 20;
/// Priority of the threads below the serving threads, in steps of `nice`. On a full machine a serving thread gets about three times as
/// much processor time.
#[cfg(feature = "low-priority-threads")]
const NICENESS: i32 = 5;

/// Why the pool did not do a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PoolError {
    /// Too many prompts wait.
    Full,
    /// The work panicked, or the pool stopped.
    Failed,
}

/// Threads for prompts. Dropping the pool ends the threads after their current prompts.
pub(crate) struct PromptPool {
    /// State that the pool's threads hold too.
    shared: Arc<PoolShared>,
}

/// State of the callers and of the threads.
struct PoolShared {
    /// Waiting prompts. Held for one heap operation, never while a prompt is tokenised.
    jobs: Mutex<Jobs>,
    /// Signals a new prompt, a free place for a large prompt, or the end of the pool.
    changed: Condvar,
    /// Number of threads, at least 1.
    threads: usize,
    /// Gauge of the prompts whose caller still waits.
    waiting: IntGauge,
    /// Counter of the prompts whose caller left before their tokens were known.
    abandoned: IntCounter,
}

/// The tokenisation of one prompt. It sends its own result.
type Work = Box<dyn FnOnce() + Send>;

/// Waiting prompts.
#[derive(Default)]
struct Jobs {
    /// Prompts below [`LARGE_BYTES`], lowest tag first.
    small: BinaryHeap<Reverse<Job>>,
    /// Prompts of [`LARGE_BYTES`] and above, lowest tag first.
    large: BinaryHeap<Reverse<Job>>,
    /// Bytes of all prompts that have started.
    started_bytes: u64,
    /// Number of the next prompt to arrive; ties of tags run in the order of arrival.
    next_number: u64,
    /// Prompts whose caller still waits; at most [`WAITING_LIMIT`]. The heaps may hold more:
    /// prompts whose caller left.
    live: usize,
    /// Large prompts that run now; one less than the threads at most, but at least one may run.
    large_running: usize,
    /// The pool was dropped. Threads end, and new prompts fail.
    is_stopped: bool,
}

/// A waiting prompt, ordered by tag and then by arrival.
struct Job {
    /// Bytes that had started before the prompt came, plus its own; the service order of start-time
    /// fair queueing.
    tag: u64,
    /// Number of the arrival, unique in the pool.
    number: u64,
    /// Size of the prompt, in bytes.
    bytes: usize,
    /// Empty after the caller left.
    work: Arc<Mutex<Option<Work>>>,
}

/// The caller's handle of a prompt. Dropping it before the work runs drops the work with its prompt; dropping it while the work runs
/// has the tokeniser stop.
struct Claim<'a> {
    /// Pool whose counts the claim corrects.
    shared: &'a PoolShared,
    /// The work, shared with the job in a heap; whoever takes it out decides whether it runs.
    work: Arc<Mutex<Option<Work>>>,
    /// Flag at which the running work looks.
    cancel: CancelFlag,
    /// The work has ended, so nothing is given up.
    is_done: bool,
}

impl PromptPool {
    /// Starts `threads` threads, at least one.
    ///
    /// # Errors
    /// [`ServiceError::Io`] when the operating system gives no thread, [`ServiceError::Config`] for a metric that exists already.
    pub(crate) fn start(threads: usize, metrics: &MetricBuilder) -> Result<Self, ServiceError> {
        let metric = |error| ServiceError::Config(format!("metrics of the prompt pool: {error}"));
        let shared = Arc::new(PoolShared {
            jobs: Mutex::default(),
            changed: Condvar::new(),
            threads: threads.max(1),
            waiting: metrics
                .gauge("prompts_waiting", "Long prompts that wait for a tokeniser thread")
                .map_err(metric)?,
            abandoned: metrics
                .counter(
                    "prompts_abandoned_total",
                    "Long prompts that were given up before all their tokens were known, because their callers had left",
                )
                .map_err(metric)?,
        });
        // The pool exists before its threads: when one thread cannot start, dropping the pool ends the others.
        let pool = Self { shared };
        for index in 0..pool.shared.threads {
            let name = format!("{THREAD_PREFIX}tokens-{index}");
            let shared = pool.shared.clone();
            std::thread::Builder::new()
                .name(name.clone())
                .spawn(move || {
                    // On Linux, no process id stands for this thread alone. Without the right to change it, the priority stays.
                    #[cfg(feature = "low-priority-threads")]
                    let _ = rustix::process::setpriority_process(None, NICENESS);
                    shared.run_jobs();
                })
                .map_err(|source| ServiceError::Io {
                    what: format!("starting thread {name}"),
                    source,
                })?;
        }
        Ok(pool)
    }

    /// Runs `work` on one of the threads; `bytes` is the size of its prompt. Dropping the future abandons the work.
    ///
    /// # Errors
    /// [`PoolError::Full`] when [`WAITING_LIMIT`] prompts wait, [`PoolError::Failed`] after a panic
    /// of `work` or the end of the pool.
    pub(crate) async fn run<T, F>(&self, bytes: usize, work: F) -> Result<T, PoolError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let cancel = CancelFlag::default();
        let seen = cancel.clone();
        let work: Work = Box::new(move || {
            if !answer.is_closed() {
                let _ = answer.send(seen.run(work));
            }
        });
        let mut claim = self.shared.add(bytes, work, cancel)?;
        let done = answered.await.map_err(|_| PoolError::Failed);
        claim.is_done = true;
        done
    }
}

impl Drop for PromptPool {
    fn drop(&mut self) {
        let mut jobs = self.shared.jobs.lock();
        jobs.is_stopped = true;
        jobs.small.clear();
        jobs.large.clear();
        drop(jobs);
        self.shared.changed.notify_all();
    }
}

impl PoolShared {
    /// Puts work into its heap and wakes one thread.
    fn add(&self, bytes: usize, work: Work, cancel: CancelFlag) -> Result<Claim<'_>, PoolError> {
        let work = Arc::new(Mutex::new(Some(work)));
        let mut jobs = self.jobs.lock();
        if jobs.is_stopped {
            return Err(PoolError::Failed);
        }
        if jobs.live >= WAITING_LIMIT {
            return Err(PoolError::Full);
        }
        jobs.live += 1;
        self.waiting.set(i64::try_from(jobs.live).unwrap_or(i64::MAX));
        jobs.push(bytes, work.clone());
        drop(jobs);
        self.changed.notify_one();
        Ok(Claim {
            shared: self,
            work,
            cancel,
            is_done: false,
        })
    }

    /// Loop of one thread: takes the next prompt and runs it, until the pool stops.
    fn run_jobs(&self) {
        loop {
            let mut jobs = self.jobs.lock();
            let job = loop {
                if jobs.is_stopped {
                    return;
                }
                match jobs.take(self.threads) {
                    Some(job) => break job,
                    None => self.changed.wait(&mut jobs),
                }
            };
            let Some(work) = job.work.lock().take() else {
                continue;
            };
            jobs.started_bytes = jobs.started_bytes.saturating_add(job.bytes as u64);
            jobs.live -= 1;
            self.waiting.set(i64::try_from(jobs.live).unwrap_or(i64::MAX));
            jobs.large_running += usize::from(job.is_large());
            drop(jobs);
            // A panic drops the sender of the answer, which the caller sees as a failure.
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                tracing::error!("a prompt could not be turned into tokens: the tokeniser panicked");
            }
            if job.is_large() {
                self.jobs.lock().large_running -= 1;
                self.changed.notify_one();
            }
        }
    }
}

impl Jobs {
    /// Adds work with its tag. A heap with twice [`WAITING_LIMIT`] entries first drops the entries
    /// whose caller left.
    fn push(&mut self, bytes: usize, work: Arc<Mutex<Option<Work>>>) {
        let job = Job {
            tag: self.started_bytes.saturating_add(bytes as u64),
            number: self.next_number,
            bytes,
            work,
        };
        self.next_number += 1;
        let heap = if job.is_large() {
            &mut self.large
        } else {
            &mut self.small
        };
        if heap.len() >= 2 * WAITING_LIMIT {
            heap.retain(|Reverse(job)| job.work.lock().is_some());
        }
        heap.push(Reverse(job));
    }

    /// The waiting prompt that runs next on one of `threads` threads.
    fn take(&mut self, threads: usize) -> Option<Job> {
        let may_run_large = self.large_running < threads.saturating_sub(1).max(1);
        let large = self.large.peek().filter(|_| may_run_large);
        let heap = match (self.small.peek(), large) {
            (Some(small), Some(large)) if large.0 < small.0 => &mut self.large,
            (None, Some(_)) => &mut self.large,
            _ => &mut self.small,
        };
        heap.pop().map(|Reverse(job)| job)
    }
}

impl Job {
    /// Whether the prompt must leave a thread to smaller prompts.
    fn is_large(&self) -> bool {
        self.bytes >= LARGE_BYTES
    }
}

impl PartialEq for Job {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Job {}

impl PartialOrd for Job {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Job {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.tag, self.number).cmp(&(other.tag, other.number))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // The lock order is jobs before work, as in `run_jobs`.
        let mut jobs = self.shared.jobs.lock();
        let work = self.work.lock().take();
        if work.is_some() {
            jobs.live -= 1;
            self.shared
                .waiting
                .set(i64::try_from(jobs.live).unwrap_or(i64::MAX));
        }
        drop(jobs);
        if !self.is_done {
            self.cancel.set();
            self.shared.abandoned.inc();
        }
        // The prompt itself is freed outside the lock.
        drop(work);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::metrics::Metrics;

    fn pool(threads: usize) -> PromptPool {
        PromptPool::start(threads, Metrics::new("test").unwrap().builder()).unwrap()
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(future)
    }

    /// Work that reports its start and runs until its gate opens.
    fn held(
        started: &mpsc::Sender<&'static str>,
        name: &'static str,
    ) -> (mpsc::Sender<()>, impl FnOnce() + use<>) {
        let (open, gate) = mpsc::channel::<()>();
        let started = started.clone();
        (open, move || {
            started.send(name).unwrap();
            let _ = gate.recv();
        })
    }

    #[test]
    fn small_prompts_pass_large_prompts_and_every_prompt_runs() {
        let mut jobs = Jobs::default();
        let nothing = || Arc::new(Mutex::new(None));
        for bytes in [4 << 20, 100, 2 << 20, 50] {
            jobs.push(bytes, nothing());
        }
        let mut order = Vec::new();
        while let Some(job) = jobs.take(2) {
            jobs.started_bytes += job.bytes as u64;
            order.push(job.bytes);
        }
        assert_eq!(order, [50, 100, 2 << 20, 4 << 20]);
        jobs.push(2 << 20, nothing());
        let mut before_large = 0;
        loop {
            jobs.push(1_000, nothing());
            let job = jobs.take(2).unwrap();
            jobs.started_bytes += job.bytes as u64;
            if job.bytes > 1_000 {
                break;
            }
            before_large += job.bytes;
        }
        assert!(
            before_large <= 2 << 20,
            "{before_large} bytes of small prompts ran first"
        );
    }

    #[test]
    fn large_prompts_leave_a_thread_for_small_prompts() {
        let pool = pool(2);
        let (started, starts) = mpsc::channel();
        let (open_first, first) = held(&started, "large");
        let (open_second, second) = held(&started, "large");
        block_on(async {
            let first = pool.run(LARGE_BYTES, first);
            let second = pool.run(LARGE_BYTES, second);
            let both = async { tokio::join!(first, second) };
            let mut both = std::pin::pin!(both);
            let small = async {
                while starts.try_recv().is_err() {
                    tokio::task::yield_now().await;
                }
                pool.run(10, || 7).await
            };
            let answer = tokio::select! {
                biased;
                _ = both.as_mut() => panic!("the large prompts are held"),
                answer = small => answer,
            };
            assert_eq!(answer, Ok(7));
            drop((open_first, open_second));
            both.await.0.unwrap();
        });
    }

    #[test]
    fn prompt_of_a_caller_that_left_never_runs_and_is_freed() {
        let pool = pool(1);
        let (started, starts) = mpsc::channel();
        let (open, blocker) = held(&started, "blocker");
        block_on(async {
            let mut blocker = std::pin::pin!(pool.run(10, blocker));
            let prompt = Arc::new("prompt");
            let inside = prompt.clone();
            let mut left = Box::pin(pool.run(10, move || panic!("{inside} must not run")));
            std::future::poll_fn(|cx| {
                assert!(blocker.as_mut().poll(cx).is_pending());
                assert!(left.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            starts.recv().unwrap();
            drop(left);
            assert_eq!(Arc::strong_count(&prompt), 1, "the prompt is freed at once");
            drop(open);
            blocker.await.unwrap();
        });
        assert_eq!(pool.shared.abandoned.get(), 1);
        assert_eq!(pool.shared.jobs.lock().live, 0);
    }

    #[test]
    fn running_work_sees_that_its_caller_left_and_frees_its_thread() {
        let pool = pool(1);
        let (started, starts) = mpsc::channel();
        block_on(async {
            let mut running = Box::pin(pool.run(10, move || {
                started.send(()).unwrap();
                let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
                while !CancelFlag::has_caller_left() {
                    assert!(std::time::Instant::now() < end, "the caller left unnoticed");
                    std::thread::yield_now();
                }
            }));
            std::future::poll_fn(|cx| {
                assert!(running.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            starts.recv().unwrap();
            drop(running);
            assert_eq!(pool.run(10, CancelFlag::has_caller_left).await, Ok(false));
        });
        assert_eq!(pool.shared.abandoned.get(), 1);
        assert_eq!(pool.shared.jobs.lock().live, 0);
    }

    #[test]
    fn panic_costs_one_prompt() {
        let pool = pool(1);
        let panics: Result<(), _> = block_on(pool.run(10, || panic!("planted")));
        assert_eq!(panics, Err(PoolError::Failed));
        assert_eq!(block_on(pool.run(10, || 7)), Ok(7));
    }

    #[test]
    fn more_prompts_than_the_limit_are_refused() {
        let pool = pool(1);
        let (started, starts) = mpsc::channel();
        let (open, blocker) = held(&started, "blocker");
        block_on(async {
            let mut blocker = std::pin::pin!(pool.run(10, blocker));
            std::future::poll_fn(|cx| std::task::Poll::Ready(blocker.as_mut().poll(cx).is_pending())).await;
            starts.recv().unwrap();
            let mut waiting: Vec<_> = (0..=WAITING_LIMIT)
                .map(|_| Box::pin(pool.run(10, || ())))
                .collect();
            let last = std::future::poll_fn(|cx| {
                let polled: Vec<_> = waiting.iter_mut().map(|one| one.as_mut().poll(cx)).collect();
                std::task::Poll::Ready(polled.last().copied())
            })
            .await;
            assert_eq!(last, Some(std::task::Poll::Ready(Err(PoolError::Full))));
            drop((waiting, open));
            blocker.await.unwrap();
        });
    }
}
