//! Health of a worker: silence and failures make a worker unavailable, a later sign of life makes it available again.
//!
//! Heartbeats and KV events are signs of life. Silence counts only for workers that sent a heartbeat before.
//!
//! A pool reviews a worker after each call here, and passes a change of availability on to the
//! router. Every call is O(1). The thresholds are constants of this module, apart from the two
//! times of [`HealthOptions`].

/// Seconds after a failure in which signs of life are ignored, because a worker may have sent them before it failed.
const GRACE_S: f64 = 0.25;

/// Reason why a worker is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fault {
    /// The worker's heartbeats stopped, or the control plane does not reach it.
    Silent,
    /// A request on the worker failed, or the connection to its feed broke.
    Failed,
    /// The worker refused several requests in a row.
    Refusing,
}

/// Time limits of [`Health`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct HealthOptions {
    /// Seconds without a heartbeat after which a worker is silent.
    pub silence_s: f64,
    /// Seconds after which a failed worker that never sent a heartbeat becomes available again.
    pub quarantine_s: f64,
    /// Limits of the trust in the blocks of a worker.
    pub trust: TrustOptions,
}

/// Time limits of the trust in the blocks of a worker.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_field_names, reason = "the unit comes last")]
pub(crate) struct TrustOptions {
    /// Seconds after which the pool forgets suspect blocks that no dump has replaced.
    pub distrust_s: f64,
    /// Seconds after which a dump that was begun and did not arrive is given up.
    pub dump_deadline_s: f64,
    /// Seconds without a KV event after which a dump must confirm the end of the stream.
    pub tail_check_s: f64,
}

impl TrustOptions {
    /// Limits with a `distrust_s` from the configuration.
    pub const fn new(distrust_s: f64) -> Self {
        Self {
            distrust_s,
            dump_deadline_s: 120.0,
            tail_check_s: 30.0,
        }
    }
}

/// Signs of life and failures of one worker. Times are seconds of one monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct Health {
    /// Time of the last heartbeat.
    heartbeat_s: Option<f64>,
    /// Time of the last KV event.
    event_s: Option<f64>,
    /// Time of the last failure; `None` after a sign of life.
    failed_s: Option<f64>,
    /// Whether the control plane asked the worker several times in a row and got no answer.
    is_unreachable: bool,
    /// Number of failures, withdrawn failures included.
    pub failures: u64,
    /// Refusals in a row, and the pauses that they cause.
    refusals: Refusals,
}

/// Refusals in a row until the worker is skipped.
const REFUSALS_IN_A_ROW: u32 = 3;
/// Seconds for which a worker is skipped the first time. Each further time doubles them.
const FIRST_SKIP_S: f64 = 1.0;
/// Largest number of seconds for which a worker is skipped.
const LONGEST_SKIP_S: f64 = 30.0;
/// Seconds after which a probe that got no answer gives way to another.
const PROBE_S: f64 = 10.0;

/// Refusals of one worker since its last first token: outlier ejection with half-open probing, as in Envoy and Finagle.
#[derive(Debug, Default)]
struct Refusals {
    /// Refusals since the last first token.
    in_a_row: u32,
    /// Times that the worker was skipped.
    skips: u32,
    /// Time until which the worker is skipped; `None` before enough refusals.
    until_s: Option<f64>,
    /// Whether a request is under way that shows whether the worker serves again.
    is_probed: bool,
}

impl Health {
    /// Records a heartbeat.
    ///
    /// A heartbeat within [`GRACE_S`] after a failure does not clear it: it may have left the
    /// worker before the failure.
    pub fn heartbeat(&mut self, now_s: f64) {
        self.heartbeat_s = Some(now_s);
        self.forgive(now_s);
    }

    /// Records a KV event.
    pub fn event(&mut self, now_s: f64) {
        self.event_s = Some(now_s);
        self.forgive(now_s);
    }

    /// Records whether the control plane reaches the worker. An answer is a sign of life.
    pub fn reached(&mut self, is_reachable: bool, now_s: f64) {
        self.is_unreachable = !is_reachable;
        if is_reachable {
            self.forgive(now_s);
        }
    }

    /// Time of the last KV event; `None` before the first.
    pub fn last_event_s(&self) -> Option<f64> {
        self.event_s
    }

    /// Records a failure that the worker probably caused.
    ///
    /// A later failure starts the quarantine anew.
    pub fn fail(&mut self, now_s: f64) {
        self.failures += 1;
        self.failed_s = Some(now_s);
    }

    /// Withdraws the last failure, because the worker did not cause it.
    pub fn withdraw_failure(&mut self) {
        self.failed_s = None;
    }

    /// Records a refusal.
    pub fn refused(&mut self, now_s: f64) {
        let refusals = &mut self.refusals;
        refusals.in_a_row += 1;
        // Refusals of requests that were under way when the worker was skipped do not prolong the time.
        let may_skip = refusals.is_probed || refusals.until_s.is_none_or(|until_s| now_s >= until_s);
        if refusals.in_a_row >= REFUSALS_IN_A_ROW && may_skip {
            refusals.is_probed = false;
            let skip_s = FIRST_SKIP_S * f64::from(1u32 << refusals.skips.min(16));
            refusals.until_s = Some(now_s + skip_s.min(LONGEST_SKIP_S));
            refusals.skips += 1;
        }
    }

    /// Records a first token: the worker serves.
    ///
    /// The next row of refusals starts with [`FIRST_SKIP_S`] again.
    pub fn answered(&mut self) {
        self.refusals = Refusals::default();
    }

    /// Whether there is no refusal since the last first token.
    pub fn is_sound(&self) -> bool {
        self.refusals.in_a_row == 0
    }

    /// Records that the worker was chosen. The first request after a skip is the probe. Returns whether this request is the probe.
    pub fn chosen(&mut self, now_s: f64) -> bool {
        let is_probe = self.refusals.until_s.is_some_and(|until_s| now_s >= until_s);
        if is_probe {
            self.refusals.until_s = Some(now_s + PROBE_S);
            self.refusals.is_probed = true;
        }
        is_probe
    }

    /// Clears the last failure unless the grace period still runs.
    fn forgive(&mut self, now_s: f64) {
        if self.failed_s.is_some_and(|failed| now_s > failed + GRACE_S) {
            self.failed_s = None;
        }
    }

    /// Reason why the worker is unavailable at `now_s`; `None` for an available worker.
    ///
    /// Silence outranks failure, and failure outranks refusals: the reported reason is the
    /// strongest sign.
    pub fn fault(&self, now_s: f64, options: HealthOptions) -> Option<Fault> {
        if self.is_unreachable || self.heartbeat_s.is_some_and(|at| now_s - at > options.silence_s) {
            return Some(Fault::Silent);
        }
        let refuses = self.refusals.until_s.is_some_and(|until_s| now_s < until_s);
        let refusing = refuses.then_some(Fault::Refusing);
        let Some(failed) = self.failed_s else {
            return refusing;
        };
        // With heartbeats, the next heartbeat clears the failure. Without heartbeats, only time clears it.
        let waits = self.heartbeat_s.is_some() || now_s - failed <= options.quarantine_s;
        if waits { Some(Fault::Failed) } else { refusing }
    }

    /// Seconds since the last heartbeat; `None` before the first.
    pub fn heartbeat_age_s(&self, now_s: f64) -> Option<f64> {
        self.heartbeat_s.map(|at| now_s - at)
    }

    /// Seconds since the last KV event; `None` before the first.
    pub fn event_age_s(&self, now_s: f64) -> Option<f64> {
        self.event_s.map(|at| now_s - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: HealthOptions = HealthOptions {
        silence_s: 3.0,
        quarantine_s: 5.0,
        trust: TrustOptions::new(30.0),
    };

    #[test]
    fn worker_that_falls_silent_is_not_chosen_until_its_next_heartbeat() {
        let mut health = Health::default();
        health.heartbeat(0.0);
        assert_eq!(health.fault(2.9, OPTIONS), None);
        assert_eq!(health.fault(3.1, OPTIONS), Some(Fault::Silent));
        health.heartbeat(9.0);
        assert_eq!(health.fault(9.1, OPTIONS), None);
    }

    #[test]
    fn worker_that_is_not_reached_is_not_chosen_until_it_answers() {
        let mut health = Health::default();
        health.fail(1.0);
        health.reached(false, 2.0);
        assert_eq!(health.fault(2.0, OPTIONS), Some(Fault::Silent));
        health.event(3.0);
        assert_eq!(
            health.fault(3.0, OPTIONS),
            Some(Fault::Silent),
            "an event is no answer"
        );
        health.reached(true, 4.0);
        assert_eq!(health.fault(4.0, OPTIONS), None);
    }

    #[test]
    fn worker_that_never_had_heartbeats_is_not_blamed_for_silence() {
        assert_eq!(Health::default().fault(1e6, OPTIONS), None);
    }

    #[test]
    fn failed_worker_comes_back_with_a_later_sign_of_life() {
        let mut health = Health::default();
        health.heartbeat(1.0);
        health.fail(1.5);
        assert_eq!(health.fault(1.6, OPTIONS), Some(Fault::Failed));
        health.heartbeat(1.6);
        assert_eq!(
            health.fault(1.7, OPTIONS),
            Some(Fault::Failed),
            "it was under way before the failure"
        );
        health.event(2.0);
        assert_eq!(health.fault(2.1, OPTIONS), None);
    }

    #[test]
    fn failed_worker_without_heartbeats_is_tried_again_after_a_while() {
        let mut health = Health::default();
        health.fail(1.0);
        assert_eq!(health.fault(5.9, OPTIONS), Some(Fault::Failed));
        assert_eq!(health.fault(6.1, OPTIONS), None);
    }

    #[test]
    fn worker_that_refuses_is_skipped_for_longer_each_time_until_it_serves() {
        let mut health = Health::default();
        let mut now_s = 10.0;
        (1..REFUSALS_IN_A_ROW).for_each(|_| health.refused(now_s));
        for skip_s in [1.0, 2.0, 4.0] {
            // At first the last refusal of a row, later that of a probe. Requests that were under way refuse too.
            (0..5).for_each(|_| health.refused(now_s));
            assert_eq!(health.fault(now_s + skip_s - 0.1, OPTIONS), Some(Fault::Refusing));
            now_s += skip_s + 0.1;
            assert_eq!(health.fault(now_s, OPTIONS), None, "after {skip_s} s");
            assert!(health.chosen(now_s));
            assert_eq!(
                health.fault(now_s, OPTIONS),
                Some(Fault::Refusing),
                "one probe at a time"
            );
        }
        health.answered();
        assert_eq!(health.fault(now_s, OPTIONS), None);
        health.refused(now_s);
        assert_eq!(
            health.fault(now_s, OPTIONS),
            None,
            "one refusal does not skip the worker"
        );
        assert!(!health.chosen(now_s));
    }

    #[test]
    fn a_probe_without_an_answer_gives_way_to_another() {
        let mut health = Health::default();
        (0..REFUSALS_IN_A_ROW).for_each(|_| health.refused(0.0));
        assert!(health.chosen(1.5));
        assert_eq!(health.fault(1.5 + PROBE_S - 0.1, OPTIONS), Some(Fault::Refusing));
        assert_eq!(health.fault(1.5 + PROBE_S, OPTIONS), None);
    }
}
