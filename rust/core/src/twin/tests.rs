//! Streams whose winner is known, and everything that must make the shadows keep quiet.

use super::*;
use crate::rng::Rng;
use crate::sim::{EngineSpec, FleetSpec};

fn arm(name: &str, policy: &str, seed: u64) -> ArmSpec {
    ArmSpec {
        name: name.to_owned(),
        routers: vec![RouterSpec {
            policy: policy.to_owned(),
            seed,
            ..RouterSpec::default()
        }],
    }
}

fn config(arms: Vec<ArmSpec>) -> TwinConfig {
    let engine = EngineSpec {
        block_size: 64,
        num_blocks: 1_500,
        ..EngineSpec::default()
    };
    TwinConfig {
        fleet: FleetSpec::aggregated(4, engine),
        arms,
        warm_ticks: 6,
        ..TwinConfig::default()
    }
}

/// 40 prefixes of 2,048 tokens, of which each worker can hold a dozen; `per_s` requests a second.
struct Stream {
    rng: Rng,
    at_s: f64,
    next: u64,
    per_s: f64,
}

impl Stream {
    const fn new(per_s: f64, seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            at_s: 1_000.0,
            next: 0,
            per_s,
        }
    }

    /// Feed `for_s` seconds; production's TTFT is what `measured` makes of nothing but the request's number.
    fn feed(&mut self, twin: &mut Twin, for_s: f64, measured: impl Fn(u64) -> Option<f64>) {
        let until_s = self.at_s + for_s;
        while self.at_s < until_s {
            self.at_s += -(1.0 - self.rng.unit()).ln() / self.per_s;
            let family = self.rng.below(40) as u64;
            let id = self.next;
            self.next += 1;
            let shared = (0..32).map(|k| family * 1_000 + k);
            let own = (0..4).map(|k| (1 << 40) + id * 10 + k);
            let hashes: Vec<u64> = shared.chain(own).map(|key| Rng::new(key).next_u64()).collect();
            twin.push(&Arrival {
                id,
                at_s: self.at_s,
                input_tokens: 36 * 64 + 9,
                sequence_hashes: &hashes,
            });
            twin.outcome(
                id,
                Observed {
                    ttft_s: measured(id),
                    output_tokens: Some(64),
                },
            );
            twin.advance(self.at_s).expect("shadows must not break");
        }
    }
}

fn twin(arms: Vec<ArmSpec>) -> Twin {
    Twin::new(config(arms)).expect("a fair twin")
}

/// TTFT that the first arm would have had: what a measurement must say for the clock to be right.
fn true_ttft_s(per_s: f64, seed: u64) -> f64 {
    let mut quiet = twin(vec![arm("runs", "round_robin", 1)]);
    Stream::new(per_s, seed).feed(&mut quiet, 250.0, |_| None);
    quiet.report().arms[0].ttft_s.expect("enough ticks").value
}

#[test]
fn the_policy_that_finds_caches_is_significantly_better_and_is_suggested() {
    let ttft_s = true_ttft_s(12.0, 5);
    let mut twin = twin(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    Stream::new(12.0, 5).feed(&mut twin, 250.0, |_| Some(ttft_s));
    let report = twin.report();
    let ratio = report.arms[1].ttft_ratio.expect("enough ticks");
    assert!(ratio.high < 0.95 && ratio.p < 0.01, "{ratio:?}");
    assert!(report.trust.trusted, "{:?}", report.trust);
    assert_eq!(twin.suggest(Figure::Ttft), Some("kv"));
    assert_eq!(report.ticks, 20);
    let reuse = |arm: usize| report.arms[arm].cached_share.expect("prompts").value;
    assert!(reuse(1) > reuse(0) + 0.1, "{} and {}", reuse(1), reuse(0));
    assert_eq!(report.arms[0].completed, report.arms[1].completed);
}

#[test]
fn the_same_policy_is_seldom_suggested_instead_of_itself() {
    let mut suggested = 0;
    for seed in 0..20 {
        let mut twin = twin(vec![
            arm("runs", "dynamo", seed),
            arm("again", "dynamo", seed + 100),
        ]);
        let mut stream = Stream::new(12.0, seed);
        stream.feed(&mut twin, 200.0, |_| None);
        let ttft_s = twin.report().arms[0].ttft_s.expect("enough ticks").value;
        stream.feed(&mut twin, 120.0, |_| Some(ttft_s));
        suggested += u32::from(twin.suggest(Figure::Ttft).is_some());
    }
    assert!(suggested <= 3, "{suggested} of 20");
}

#[test]
fn a_clock_that_is_off_is_not_trusted_and_nothing_is_suggested() {
    let ttft_s = true_ttft_s(12.0, 5);
    let mut twin = twin(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    Stream::new(12.0, 5).feed(&mut twin, 250.0, |_| Some(ttft_s / 1.5));
    let trust = twin.report().trust;
    assert!(
        !trust.trusted && trust.clock_ratio.is_some_and(|ratio| ratio > 1.4),
        "{trust:?}"
    );
    assert!(trust.reason.is_some());
    assert_eq!(twin.suggest(Figure::Ttft), None);
}

#[test]
fn without_measurements_nothing_is_trusted() {
    let mut twin = twin(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    Stream::new(12.0, 5).feed(&mut twin, 250.0, |_| None);
    let report = twin.report();
    assert_eq!((report.trust.measured, report.trust.trusted), (0, false));
    assert!(report.arms[1].ttft_ratio.is_some());
    assert_eq!(twin.suggest(Figure::Ttft), None);
}

#[test]
fn over_its_share_the_twin_rests_and_starts_again_with_ticks_that_do_not_count() {
    let mut twin = twin(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    let mut stream = Stream::new(12.0, 5);
    stream.feed(&mut twin, 150.0, |_| None);
    let whole = twin.report().ticks;
    assert!(whole > 10, "{whole}");
    twin.charge(0.0, stream.at_s);
    twin.charge(3.0, stream.at_s + 0.1);
    assert!(twin.report().resting);
    stream.feed(&mut twin, 30.0, |_| None);
    let (resting, simulated) = (twin.report(), twin.counts.simulated);
    assert!(resting.counts.rested > 200, "{:?}", resting.counts);
    assert_eq!(resting.ticks, whole.max(resting.ticks));
    twin.charge(0.0, stream.at_s + 60.0);
    assert!(!twin.report().resting);
    let warming = twin.report().lost_ticks.warming;
    stream.feed(&mut twin, 100.0, |_| None);
    let after = twin.report();
    assert!(twin.counts.simulated > simulated);
    assert!(after.lost_ticks.warming > warming);
    assert_eq!(after.counts.rests, 1);
    assert_eq!(
        after.counts.arrivals,
        after.counts.simulated + after.counts.dropped + after.counts.rested + after.waiting as u64
    );
}

#[test]
fn what_does_not_fit_is_counted_and_spoils_its_tick() {
    let mut small = config(vec![arm("runs", "round_robin", 1)]);
    small.max_open = 2;
    let mut twin = Twin::new(small).expect("a fair twin");
    Stream::new(12.0, 5).feed(&mut twin, 250.0, |_| None);
    let report = twin.report();
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
fn the_books_stay_small_however_long_it_runs() {
    let mut twin = twin(vec![arm("runs", "round_robin", 1), arm("kv", "lmetric", 2)]);
    Stream::new(12.0, 5).feed(&mut twin, 1_500.0, |id| (id % 2 == 0).then_some(0.2));
    let bound = twin.config.window_ticks + 24 + 6;
    assert!(twin.ticks.held() <= bound, "{} ticks", twin.ticks.held());
    assert!(twin.open.len() < 100, "{} open", twin.open.len());
}

#[test]
fn an_arm_twice_or_a_window_without_batches_is_refused() {
    assert!(Twin::new(config(vec![])).is_err());
    assert!(Twin::new(config(vec![arm("a", "toll", 0), arm("a", "sticky", 0)])).is_err());
    assert!(Twin::new(config(vec![arm("a", "no_such_policy", 0)])).is_err());
    let mut short = config(vec![arm("a", "toll", 0)]);
    short.window_ticks = 6;
    assert!(Twin::new(short).is_err());
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
        });
    }
    let mut twin = Twin::new(split).expect("a fair twin");
    Stream::new(6.0, 5).feed(&mut twin, 250.0, |_| None);
    let report = twin.report();
    assert!(report.arms[1].completed > 300);
    assert!(
        report.arms[1].ttft_ratio.expect("enough ticks").value < 1.0,
        "{report:?}"
    );
}
