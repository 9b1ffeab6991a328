//! CPU time of the process's native threads, found by the start of their names.
//!
//! A thread that ends takes its time out of the sum. The only threads that end early are resolvers of
//! host names, whose upstream left.

/// Start of the names of the threads that the service and its doors run.
pub const THREAD_PREFIX: &str = "wardrop-";

/// CPU seconds of all threads whose name starts with [`THREAD_PREFIX`], from `/proc`; 0 where there is no `/proc`.
///
/// It reads two small files per thread, once per page.
pub(super) fn cpu_s() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return 0.0;
    };
    let nanoseconds = |task: std::fs::DirEntry| -> Option<f64> {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        if !name.starts_with(THREAD_PREFIX) {
            return None;
        }
        // The first figure of `schedstat` is the time on a CPU in nanoseconds; `stat` counts ticks of 10 ms only.
        let times = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        times.split_whitespace().next()?.parse().ok()
    };
    tasks.flatten().filter_map(nanoseconds).sum::<f64>() / 1e9
}
