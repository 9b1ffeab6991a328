//! One preemptive server: the earliest possible completion times, and how several bounds on completions combine.
//!
//! The rule *shortest remaining processing time first* (SRPT) completes, by every moment, as many jobs as any
//! rule can. Source: L. Schrage, "A proof of the optimality of the shortest remaining processing time
//! discipline" (Operations Research 16, 1968). Its m-th completion is therefore a lower bound on the m-th
//! completion of every schedule.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Work that becomes available at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    /// Time at which the work becomes available, in milliseconds, at least 0.
    pub release_ms: f64,
    /// Amount of work, at least 0. Its unit is that of the rate times milliseconds.
    pub work: f64,
}

/// Completion times of `jobs` under SRPT on a server of `rate` units per millisecond, rising. O(jobs · log jobs).
pub(super) fn completions(mut jobs: Vec<Job>, rate: f64) -> Vec<f64> {
    jobs.sort_unstable_by(|a, b| a.release_ms.total_cmp(&b.release_ms));
    // Bits of a float that is at least 0 sort like its value.
    let mut open: BinaryHeap<Reverse<u64>> = BinaryHeap::new();
    let mut times = Vec::with_capacity(jobs.len());
    let mut now_ms = 0.0_f64;
    let mut next = 0;
    while next < jobs.len() || !open.is_empty() {
        if open.is_empty() {
            now_ms = now_ms.max(jobs[next].release_ms);
        }
        while next < jobs.len() && jobs[next].release_ms <= now_ms {
            open.push(Reverse((jobs[next].work.max(0.0) / rate).to_bits()));
            next += 1;
        }
        let Some(Reverse(bits)) = open.pop() else { continue };
        let left_ms = f64::from_bits(bits);
        let until_ms = jobs.get(next).map_or(f64::INFINITY, |job| job.release_ms);
        if now_ms + left_ms <= until_ms {
            now_ms += left_ms;
            times.push(now_ms);
        } else {
            open.push(Reverse((left_ms - (until_ms - now_ms)).max(0.0).to_bits()));
            now_ms = until_ms;
        }
    }
    times
}

/// The completion times `times` if `free` more requests count as complete at every moment.
pub(super) fn offset(times: &[f64], free: usize) -> Vec<f64> {
    let kept = times.len().saturating_sub(free);
    let none = std::iter::repeat_n(0.0, times.len() - kept);
    none.chain(times[..kept].iter().copied()).collect()
}

/// The later of the m-th times of all curves, for every m. Every curve rises and has the length of `first`.
pub(super) fn later_of(first: &[f64], rest: &[&[f64]]) -> Vec<f64> {
    let mut times = first.to_vec();
    for curve in rest {
        debug_assert_eq!(curve.len(), times.len(), "curves must count the same jobs");
        for (time, other) in times.iter_mut().zip(*curve) {
            *time = time.max(*other);
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(release_ms: f64, work: f64) -> Job {
        Job { release_ms, work }
    }

    #[test]
    fn a_short_job_interrupts_a_long_one() {
        // The long job has 6 of its 10 ms left when the short one arrives at 4.
        let times = completions(vec![job(0.0, 20.0), job(4.0, 4.0)], 2.0);
        assert_eq!(times, vec![6.0, 12.0]);
    }

    #[test]
    fn an_idle_server_waits_for_the_next_job() {
        assert_eq!(
            completions(vec![job(5.0, 1.0), job(1.0, 1.0)], 1.0),
            vec![2.0, 6.0]
        );
    }

    #[test]
    fn a_job_without_work_is_complete_at_once() {
        assert_eq!(
            completions(vec![job(0.0, 8.0), job(3.0, 0.0)], 1.0),
            vec![3.0, 8.0]
        );
    }

    #[test]
    fn later_times_and_offsets_go_by_rank() {
        assert_eq!(offset(&[1.0, 2.0, 3.0], 1), vec![0.0, 1.0, 2.0]);
        assert_eq!(offset(&[1.0], 5), vec![0.0]);
        assert_eq!(later_of(&[1.0, 5.0], &[&[2.0, 3.0]]), vec![2.0, 5.0]);
    }
}
