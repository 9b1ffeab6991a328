//! Streams whose best policy is known, and every situation in which shadow fleets must suggest nothing.

mod limits;
mod offline;

use wardrop_core::WorkerId;
use wardrop_core::rng::Rng;

use super::*;
use crate::{EngineSpec, FleetSpec, RouterSpec};

fn arm(name: &str, policy: &str, seed: u64) -> ArmSpec {
    ArmSpec {
        name: name.to_owned(),
        routers: vec![RouterSpec {
            policy: policy.to_owned(),
            seed,
            ..RouterSpec::default()
        }],
        limit: None,
    }
}

fn config(arms: Vec<ArmSpec>) -> ShadowConfig {
    let engine = EngineSpec {
        block_size: 64,
        num_blocks: 1_500,
        ..EngineSpec::default()
    };
    ShadowConfig {
        fleet: FleetSpec::aggregated(4, engine),
        arms,
        warm_ticks: 6,
        ..ShadowConfig::default()
    }
}

/// A stream of `per_s` requests per second over 40 prefixes of 2,048 tokens. A worker's cache holds about 12 of them.
struct Stream {
    /// Whether prompts share prefixes. Otherwise no two prompts are alike.
    shares: bool,
    rng: Rng,
    at_s: f64,
    next: u64,
    per_s: f64,
    /// Seconds of one core that the simulation of a request costs.
    cost_s: f64,
}

impl Stream {
    const fn new(per_s: f64, seed: u64) -> Self {
        Self {
            shares: true,
            rng: Rng::new(seed),
            at_s: 1_000.0,
            next: 0,
            per_s,
            cost_s: 0.0,
        }
    }

    /// Feeds `for_s` seconds of the stream. `measured` maps a request's number to its TTFT in production.
    fn feed(&mut self, fleets: &mut ShadowFleets, for_s: f64, measured: impl Fn(u64) -> Option<f64>) {
        let until_s = self.at_s + for_s;
        while self.at_s < until_s {
            self.at_s += -(1.0 - self.rng.unit()).ln() / self.per_s;
            let id = self.next;
            self.next += 1;
            let drawn = self.rng.below(40) as u64;
            let family = if self.shares { drawn } else { 1_000 + id };
            let shared = (0..32).map(|k| family * 1_000 + k);
            let own = (0..4).map(|k| (1 << 40) + id * 10 + k);
            let hashes: Vec<u64> = shared.chain(own).map(|key| Rng::new(key).next_u64()).collect();
            fleets.push(&Arrival {
                id,
                at_s: self.at_s,
                input_tokens: 36 * 64 + 9,
                sequence_hashes: &hashes,
            });
            fleets.outcome(
                id,
                Observed {
                    ttft_s: measured(id),
                    output_tokens: Some(64),
                },
            );
            loop {
                let started = fleets.advance(self.at_s).expect("shadows must not break");
                if self.cost_s > 0.0 {
                    fleets.charge(started as f64 * self.cost_s, self.at_s);
                }
                if !fleets.is_due(self.at_s) {
                    break;
                }
            }
        }
    }
}

fn fleets(arms: Vec<ArmSpec>) -> ShadowFleets {
    ShadowFleets::new(config(arms)).expect("a fair fleets")
}

/// Mean TTFT of the first arm, which a measurement must equal for a correct clock.
fn true_ttft_s(per_s: f64, seed: u64) -> f64 {
    let mut quiet = fleets(vec![arm("runs", "round_robin", 1)]);
    Stream::new(per_s, seed).feed(&mut quiet, 250.0, |_| None);
    quiet.report().arms[0].ttft_s.expect("enough ticks").value
}

#[test]
fn the_policy_that_finds_caches_is_significantly_better_and_is_suggested() {
    let ttft_s = true_ttft_s(12.0, 5);
    let mut fleets = fleets(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    Stream::new(12.0, 5).feed(&mut fleets, 250.0, |_| Some(ttft_s));
    let report = fleets.report();
    let ratio = report.arms[1].ttft_ratio.expect("enough ticks");
    assert!(ratio.high < 0.95 && ratio.p < 0.01, "{ratio:?}");
    assert!(report.trust.trusted, "{:?}", report.trust);
    assert_eq!(fleets.suggest_among(Figure::Ttft, |_| true), Some("kv"));
    assert_eq!(report.ticks, 20);
    let reuse = |arm: usize| report.arms[arm].cached_share.expect("prompts").value;
    assert!(reuse(1) > reuse(0) + 0.1, "{} and {}", reuse(1), reuse(0));
    assert_eq!(report.arms[0].completed, report.arms[1].completed);
    let p99 = report.arms[1].ttft_p99_ratio.expect("enough requests");
    assert!(p99.high < 1.0, "{p99:?}");
    let slowest_s = report.arms[0].ttft_p99_s.expect("enough requests");
    assert!(
        slowest_s.low < slowest_s.value
            && slowest_s.value > report.arms[0].ttft_s.expect("enough ticks").value
    );
    assert!(report.arms[1].cached_share_ratio.expect("prompts").low > 1.0);
}

#[test]
fn the_same_policy_is_seldom_suggested_instead_of_itself() {
    let mut suggested = 0;
    for seed in 0..20 {
        let mut fleets = fleets(vec![
            arm("runs", "dynamo", seed),
            arm("again", "dynamo", seed + 100),
        ]);
        let mut stream = Stream::new(12.0, seed);
        stream.feed(&mut fleets, 200.0, |_| None);
        let ttft_s = fleets.report().arms[0].ttft_s.expect("enough ticks").value;
        stream.feed(&mut fleets, 120.0, |_| Some(ttft_s));
        suggested += u32::from(fleets.suggest_among(Figure::Ttft, |_| true).is_some());
    }
    assert!(suggested <= 3, "{suggested} of 20");
}

#[test]
fn a_wrong_clock_is_not_trusted_and_nothing_is_suggested() {
    let ttft_s = true_ttft_s(12.0, 5);
    let mut fleets = fleets(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    Stream::new(12.0, 5).feed(&mut fleets, 250.0, |_| Some(ttft_s / 1.5));
    let trust = fleets.report().trust;
    assert!(
        !trust.trusted && trust.clock_ratio.is_some_and(|ratio| ratio > 1.4),
        "{trust:?}"
    );
    assert!(trust.reason.is_some());
    assert_eq!(fleets.suggest_among(Figure::Ttft, |_| true), None);
}

#[test]
fn a_report_without_measurements_is_not_trusted() {
    let mut fleets = fleets(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    Stream::new(12.0, 5).feed(&mut fleets, 250.0, |_| None);
    let report = fleets.report();
    assert_eq!((report.trust.measured, report.trust.trusted), (0, false));
    assert!(report.arms[1].ttft_ratio.is_some());
    assert_eq!(fleets.suggest_among(Figure::Ttft, |_| true), None);
}

#[test]
fn above_its_cpu_share_the_simulation_stops_and_later_reports_what_it_would_have_reported() {
    let arms = || vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)];
    let (mut stopped, mut other) = (fleets(arms()), fleets(arms()));
    let (mut stream, mut same) = (Stream::new(12.0, 5), Stream::new(12.0, 5));
    stream.feed(&mut stopped, 150.0, |_| Some(0.2));
    let simulated = stopped.counts.simulated;
    stopped.charge(0.0, stream.at_s);
    stopped.charge(3.0, stream.at_s + 0.1);
    assert!(stopped.report().resting);
    stream.feed(&mut stopped, 30.0, |_| Some(0.2));
    let resting = stopped.report();
    assert_eq!(
        (resting.counts.simulated, resting.counts.passed_over),
        (simulated, 0)
    );
    assert!(resting.waiting > 300, "{resting:?}");
    stopped.charge(0.0, stream.at_s + 60.0);
    assert!(!stopped.report().resting);
    stream.feed(&mut stopped, 100.0, |_| Some(0.2));
    for for_s in [150.0, 30.0, 100.0] {
        same.feed(&mut other, for_s, |_| Some(0.2));
    }
    let (late, whole) = (stopped.report(), other.report());
    assert_eq!(late.arms[1].ttft_ratio, whole.arms[1].ttft_ratio);
    assert_eq!(late.trust, whole.trust);
    assert_eq!(late.counts, whole.counts);
}

#[test]
fn above_its_cpu_share_it_samples_whole_stretches_and_still_has_figures() {
    let mut fleets = fleets(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    let mut stream = Stream::new(12.0, 5);
    // The load costs three times the CPU budget.
    stream.cost_s = 3.0 * 0.05 / 12.0;
    let (mut looked, mut figures) = (0, 0);
    for _ in 0..2_000 {
        stream.feed(&mut fleets, 1.0, |_| Some(0.2));
        let report = fleets.report();
        looked += 1;
        figures += u32::from(report.arms[1].ttft_ratio.is_some_and(|ratio| ratio.high < 1.0));
        assert!(report.waiting < 4_000, "{}", report.waiting);
    }
    let report = fleets.report();
    assert!(report.counts.pauses >= 2, "{:?}", report.counts);
    assert!(report.counts.passed_over > 5_000, "{:?}", report.counts);
    assert!(report.lost_ticks.warming >= 3 * 6, "{:?}", report.lost_ticks);
    assert!(2 * figures > looked, "figures in {figures} of {looked} looks");
    let share = report.counts.simulated as f64 * stream.cost_s / (stream.at_s - 1_000.0);
    assert!((0.045..0.0505).contains(&share), "used {share} of a core");
    assert_eq!(
        report.counts.arrivals,
        report.counts.simulated + report.counts.dropped + report.counts.passed_over + report.waiting as u64
    );
}

#[test]
fn a_request_that_failed_in_production_is_not_simulated() {
    let mut fleets = fleets(vec![arm("runs", "round_robin", 1)]);
    let mut stream = Stream::new(12.0, 5);
    stream.feed(&mut fleets, 10.0, |_| None);
    (0..50).for_each(|id| fleets.withdraw(id));
    stream.feed(&mut fleets, 100.0, |_| None);
    let counts = fleets.report().counts;
    assert_eq!(counts.withdrawn, 50);
    assert_eq!(
        counts.arrivals,
        counts.simulated + counts.withdrawn + fleets.report().waiting as u64
    );
}

#[test]
fn only_requests_that_were_measured_check_the_clock() {
    // Every second answer is not streamed and takes twice as long, so a mean over all requests would be wrong.
    let mut fleets = fleets(vec![arm("runs", "round_robin", 1)]);
    let mut stream = Stream::new(12.0, 5);
    stream.feed(&mut fleets, 250.0, |_| None);
    assert_eq!(fleets.report().trust.measured, 0);
    let truth_s = fleets.report().arms[0].ttft_s.expect("enough ticks").value;
    stream.feed(&mut fleets, 150.0, |id| (id % 2 == 0).then_some(truth_s));
    let trust = fleets.report().trust;
    assert!(trust.trusted, "{trust:?}");
    assert!((400..800).contains(&trust.measured), "{trust:?}");
}

#[test]
fn another_policy_in_force_starts_the_comparison_over_and_keeps_the_caches() {
    let mut fleets = fleets(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    let mut stream = Stream::new(12.0, 5);
    stream.feed(&mut fleets, 250.0, |_| None);
    let poor = fleets.report().arms[0].cached_share.expect("enough ticks").value;
    let run = |policy| Change::Routers {
        arm: 0,
        routers: arm("", policy, 3).routers,
    };
    fleets.change(stream.at_s, run("lmetric")).expect("a policy");
    assert_eq!(
        fleets.report().ticks,
        20,
        "simulated time has not reached the change yet"
    );
    stream.feed(&mut fleets, 25.0, |_| None);
    assert_eq!(fleets.report().ticks, 0);
    stream.feed(&mut fleets, 200.0, |_| None);
    let report = fleets.report();
    let ratio = report.arms[1].ttft_ratio.expect("enough ticks");
    assert!(
        (ratio.value - 1.0).abs() < 0.05,
        "both run the same now: {ratio:?}"
    );
    assert!(report.arms[0].cached_share.expect("enough ticks").value > poor + 0.1);
    assert_eq!(report.counts.pauses, 0);
    assert!(fleets.change(stream.at_s, run("no_such")).is_err());
}

#[test]
fn workers_come_and_go_in_every_arm() {
    let id = |instance| WorkerId::new(instance, 0);
    let members = [vec![id(70), id(71), id(72), id(73)]];
    let mut fleets =
        fleets(vec![arm("runs", "lmetric", 1), arm("again", "lmetric", 2)]).with_members(&members);
    let mut stream = Stream::new(20.0, 5);
    stream.feed(&mut fleets, 250.0, |_| None);
    let four_s = fleets.report().arms[0].ttft_s.expect("enough ticks").value;
    let leave = |worker| Change::Leave {
        pool: 0,
        worker: id(worker),
    };
    fleets.change(stream.at_s, leave(70)).expect("a departure");
    fleets.change(stream.at_s, leave(72)).expect("a departure");
    fleets
        .change(stream.at_s, leave(99))
        .expect("an unknown worker is ignored");
    stream.feed(&mut fleets, 250.0, |_| None);
    let two_s = fleets.report().arms[0].ttft_s.expect("enough ticks").value;
    assert!(two_s > 1.3 * four_s, "{two_s} with two, {four_s} with four");
    for instance in [80, 81, 80] {
        let engine = Box::new(fleets.config.clone().fleet.pools[0].engine.clone());
        let join = Change::Join {
            pool: 0,
            worker: id(instance),
            engine,
        };
        fleets.change(stream.at_s, join).expect("a worker");
    }
    stream.feed(&mut fleets, 300.0, |_| None);
    let again_s = fleets.report().arms[0].ttft_s.expect("enough ticks").value;
    assert!(
        again_s < 1.2 * four_s,
        "{again_s} with four again, {four_s} before"
    );
    assert_eq!(fleets.counts.dropped, 0);
}

#[test]
fn a_request_that_does_not_fit_is_counted_and_spoils_its_tick() {
    let mut small = config(vec![arm("runs", "round_robin", 1)]);
    small.max_open = 2;
    let mut fleets = ShadowFleets::new(small).expect("a fair fleets");
    Stream::new(12.0, 5).feed(&mut fleets, 250.0, |_| None);
    let report = fleets.report();
    assert!(
        report.counts.dropped > 100 && report.lost_ticks.spoiled > 10,
        "{report:?}"
    );
    assert_eq!(
        report.counts.arrivals,
        report.counts.simulated + report.counts.dropped + report.waiting as u64
    );
}

#[test]
fn memory_stays_bounded_regardless_of_the_length_of_the_run() {
    let mut fleets = fleets(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    Stream::new(12.0, 5).feed(&mut fleets, 1_500.0, |id| (id % 2 == 0).then_some(0.2));
    let bound = fleets.config.window_ticks + 24 + 6;
    assert!(fleets.ticks.held() <= bound, "{} ticks", fleets.ticks.held());
    assert!(
        fleets.clock_check.held() <= fleets.config.max_waiting,
        "{} pairs",
        fleets.clock_check.held()
    );
    assert!(fleets.open.len() < 100, "{} open", fleets.open.len());
}

#[test]
fn an_arm_twice_or_a_window_without_batches_is_refused() {
    assert!(ShadowFleets::new(config(vec![])).is_err());
    assert!(ShadowFleets::new(config(vec![arm("a", "toll", 0), arm("a", "sticky", 0)])).is_err());
    assert!(ShadowFleets::new(config(vec![arm("a", "no_such_policy", 0)])).is_err());
    let mut short = config(vec![arm("a", "toll", 0)]);
    short.window_ticks = 6;
    assert!(ShadowFleets::new(short).is_err());
}

#[test]
fn a_split_fleet_has_shadows_too() {
    let mut split = config(vec![]);
    let engine = split.fleet.pools[0].engine.clone();
    split.fleet = FleetSpec::split(2, 2, &engine);
    let both = |policy: &str| [policy, "least_loaded"].map(|name| arm(name, name, 1).routers[0].clone());
    for policy in ["round_robin", "lmetric"] {
        split.arms.push(ArmSpec {
            name: policy.to_owned(),
            routers: both(policy).to_vec(),
            limit: None,
        });
    }
    let mut fleets = ShadowFleets::new(split).expect("a fair fleets");
    Stream::new(6.0, 5).feed(&mut fleets, 250.0, |_| None);
    let report = fleets.report();
    assert!(report.arms[1].completed > 300);
    assert!(
        report.arms[1].ttft_ratio.expect("enough ticks").value < 1.0,
        "{report:?}"
    );
}
