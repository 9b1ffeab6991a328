//! Time of single calls, processor time of loops, memory of the process.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Larger than the last cache of the machines this runs on.
const COLD_BYTES: usize = 96 << 20;

/// Length of the loops whose processor time is taken.
const CPU_LOOP: Duration = Duration::from_millis(50);

/// Percentiles of single calls.
pub fn percentiles(mut spent: Vec<u64>) -> Value {
    spent.sort_unstable();
    let at = |share: f64| spent[((spent.len() - 1) as f64 * share).round() as usize];
    json!({"p50": at(0.5), "p99": at(0.99), "p99.9": at(0.999)})
}

/// Nanoseconds on a processor of this thread: what a busy machine inflates least.
pub fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock exists on Linux and the pointer is good.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "the thread's clock must be readable");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Resident bytes of the process.
pub fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    pages * 4096
}

/// What pushes everything else out of the caches.
pub struct Cold(Vec<u64>);

impl Cold {
    pub fn new() -> Self {
        Self(vec![1; COLD_BYTES / 8])
    }

    pub fn flush(&mut self) {
        for word in self.0.iter_mut().step_by(8) {
            *word = word.wrapping_mul(3);
        }
        black_box(&self.0);
    }
}

/// Calls of `work(i)`, each timed, and their processor time in a loop.
pub fn warm<T>(repeats: usize, mut work: impl FnMut(usize) -> T) -> Value {
    let mut result = calls(repeats, &mut work);
    result["cpu"] = json!(cpu_ns(&mut work));
    result
}

/// Calls of `work(i)`, each timed: `repeats`, after up to 200 that are not counted.
pub fn calls<T>(repeats: usize, mut work: impl FnMut(usize) -> T) -> Value {
    for i in 0..repeats.min(200) {
        black_box(work(i));
    }
    let mut spent = Vec::with_capacity(repeats);
    for i in 0..repeats {
        let start = Instant::now();
        black_box(work(i));
        spent.push(start.elapsed().as_nanos() as u64);
    }
    percentiles(spent)
}

/// Processor time of one call, over a loop.
fn cpu_ns<T>(work: &mut impl FnMut(usize) -> T) -> u64 {
    let (start, before) = (Instant::now(), thread_cpu_ns());
    let mut calls = 0;
    // At least once, however long the system had this thread wait.
    loop {
        for _ in 0..100 {
            black_box(work(calls));
            calls += 1;
        }
        if start.elapsed() >= CPU_LOOP {
            break;
        }
    }
    (thread_cpu_ns() - before) / calls as u64
}

/// Calls of `work(i)` on cold lines; `touch(i)` brings back what the caller has in hand.
pub fn cold<T>(
    repeats: usize,
    cold: &mut Cold,
    touch: impl Fn(usize),
    mut work: impl FnMut(usize) -> T,
) -> Value {
    let mut spent = Vec::with_capacity(repeats);
    for i in 0..repeats {
        cold.flush();
        touch(i);
        let start = Instant::now();
        black_box(work(i));
        spent.push(start.elapsed().as_nanos() as u64);
    }
    percentiles(spent)
}
