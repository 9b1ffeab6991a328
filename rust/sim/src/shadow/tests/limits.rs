//! Arms with one limit of the fleet relaxed: what they save, what they follow, and which are refused.

use wardrop_core::queue::QueueConfig;

use super::*;

/// An arm that runs what the first arm runs, with one limit relaxed.
pub(super) fn relaxed(limit: Limit, policy: &str) -> ArmSpec {
    ArmSpec {
        limit: Some(limit),
        ..arm(limit.name(), policy, 1)
    }
}

/// What each limit of the three that cost no queue saves in `fleet` under a load, with the policy `round_robin`.
fn savings(mut config: ShadowConfig, mut stream: Stream) -> ShadowReport {
    let limits = [Limit::SharedCache, Limit::KvMemory, Limit::OneMoreWorker];
    config.arms = vec![arm("runs", "round_robin", 1)];
    config
        .arms
        .extend(limits.map(|limit| relaxed(limit, "round_robin")));
    let mut fleets = ShadowFleets::new(config).expect("a fair fleet");
    stream.feed(&mut fleets, 250.0, |_| None);
    let report = fleets.report();
    assert_eq!((report.arms.len(), report.ticks), (1, 20));
    let named: Vec<Limit> = report.limits.iter().map(|found| found.limit).collect();
    assert_eq!(named, limits);
    report
}

#[test]
fn where_prompts_share_prefixes_that_no_cache_holds_all_three_limits_cost_time() {
    let report = savings(config(vec![]), Stream::new(16.0, 5));
    for limit in &report.limits {
        let saving = limit.e2e_saving.expect("enough ticks");
        assert!(
            saving.low > 0.0
                && saving.low <= saving.value
                && saving.value <= saving.high
                && saving.high < 1.0,
            "{limit:?}"
        );
        assert!(limit.ttft_saving.expect("enough ticks").low > 0.0, "{limit:?}");
        assert_eq!(limit.completed, limit.completed_in_force);
    }
    // Every prefix is computed once with a shared cache, and once per worker with enough memory.
    let ttft = |at: usize| report.limits[at].ttft_saving.expect("enough ticks").value;
    assert!(
        ttft(0) >= ttft(1) - 0.02 && ttft(1) > 0.1,
        "{} and {}",
        ttft(0),
        ttft(1)
    );
}

#[test]
fn where_requests_wait_for_memory_more_memory_helps_and_a_shared_cache_does_not() {
    let mut short = config(vec![]);
    // A worker holds four prompts at a time.
    short.fleet.pools[0].engine.num_blocks = 160;
    let mut stream = Stream::new(11.0, 5);
    stream.shares = false;
    let report = savings(short, stream);
    let ttft = |at: usize| report.limits[at].ttft_saving.expect("enough ticks");
    assert!(ttft(0).low <= 0.0 && ttft(0).value.abs() < 0.01, "{:?}", ttft(0));
    assert!(ttft(1).low > 0.05, "{:?}", ttft(1));
    assert!(ttft(2).low > 0.05, "{:?}", ttft(2));
}

#[test]
fn in_an_idle_fleet_nothing_helps() {
    let mut stream = Stream::new(0.4, 5);
    stream.shares = false;
    for limit in savings(config(vec![]), stream).limits {
        for saving in [limit.ttft_saving, limit.e2e_saving] {
            let saving = saving.expect("enough ticks");
            assert!(
                saving.low <= 0.0 && saving.high >= 0.0 && saving.value.abs() < 0.01,
                "{limit:?}"
            );
        }
    }
}

#[test]
fn an_arm_with_a_limit_is_never_suggested_and_changes_no_suggestion() {
    let ttft_s = true_ttft_s(16.0, 5);
    let mut with = fleets(vec![
        arm("runs", "round_robin", 1),
        arm("again", "round_robin", 2),
        relaxed(Limit::SharedCache, "round_robin"),
    ]);
    Stream::new(16.0, 5).feed(&mut with, 250.0, |_| Some(ttft_s));
    let report = with.report();
    assert!(report.trust.trusted, "{:?}", report.trust);
    assert!(report.limits[0].ttft_saving.expect("enough ticks").low > 0.05);
    assert_eq!(with.suggest_among(Figure::Ttft, |_| true), None);
}

#[test]
fn the_further_worker_has_the_engine_of_the_first_member_and_follows_it() {
    let id = |instance| WorkerId::new(instance, 0);
    let mut fleets = fleets(vec![
        arm("runs", "lmetric", 1),
        relaxed(Limit::OneMoreWorker, "lmetric"),
    ])
    .with_members(&[vec![id(70), id(71), id(72), id(73)]]);
    let first = fleets.config.fleet.pools[0].engine.clone();
    let extra = |fleets: &ShadowFleets| fleets.arms[1].extra_engine().cloned().expect("one more worker");
    assert_eq!(extra(&fleets), first);
    assert!(fleets.arms[0].extra_engine().is_none());
    let larger = EngineSpec {
        num_blocks: 3_000,
        ..first.clone()
    };
    let join = |instance| Change::Join {
        pool: 0,
        worker: id(instance),
        engine: Box::new(larger.clone()),
    };
    let leave = |instance| Change::Leave {
        pool: 0,
        worker: id(instance),
    };
    fleets.change(0.0, join(80)).expect("a worker");
    assert_eq!(extra(&fleets), first, "80 is not the first member");
    fleets.change(0.0, join(10)).expect("a worker");
    assert_eq!(extra(&fleets), larger);
    let slower = crate::Timing::Learned(wardrop_core::latency::Prior::default());
    fleets.set_worker_timing(0, id(10), &slower).expect("a timing");
    assert_eq!(extra(&fleets).timing, slower);
    fleets.change(0.0, leave(10)).expect("a departure");
    assert_eq!(extra(&fleets), first);
    // Without a worker in production the pool keeps what it had; the fleet runs on.
    for instance in [70, 71, 72, 73, 80] {
        fleets.change(0.0, leave(instance)).expect("a departure");
    }
    assert_eq!(extra(&fleets), larger, "80 left last");
    fleets.change(0.0, join(90)).expect("a worker");
    Stream::new(4.0, 5).feed(&mut fleets, 60.0, |_| None);
    assert!(fleets.counts.simulated > 100);
}

#[test]
fn a_limit_that_a_fleet_does_not_have_or_in_the_wrong_place_is_refused() {
    let runs = || arm("runs", "toll", 1);
    let memory = || relaxed(Limit::KvMemory, "toll");
    assert!(ShadowFleets::new(config(vec![runs(), memory()])).is_ok());
    assert!(ShadowFleets::new(config(vec![memory(), runs()])).is_err());
    assert!(ShadowFleets::new(config(vec![runs(), memory(), arm("late", "toll", 1)])).is_err());
    let decode = relaxed(Limit::OneMoreDecodeWorker, "toll");
    assert!(ShadowFleets::new(config(vec![runs(), decode])).is_err());
}

#[test]
fn every_limit_of_a_fleet_with_and_without_a_queue_has_figures() {
    for queue in [None, Some(QueueConfig::default())] {
        let routed = |name: &str, limit: Option<Limit>| {
            let mut spec = arm(name, "toll", 1);
            spec.routers[0].queue = limit.map_or(queue, |limit| limit.queue(queue));
            ArmSpec { limit, ..spec }
        };
        let limits = Limit::of_fleet(1, queue.is_some());
        assert_eq!(limits.contains(&Limit::PooledQueue), queue.is_none());
        let further = limits.iter().map(|limit| routed(limit.name(), Some(*limit)));
        let mut fleets = fleets(std::iter::once(routed("runs", None)).chain(further).collect());
        Stream::new(16.0, 5).feed(&mut fleets, 250.0, |_| None);
        let report = fleets.report();
        assert_eq!((report.ticks, report.limits.len()), (20, limits.len()));
        for limit in &report.limits {
            assert!(limit.completed == limit.completed_in_force, "{limit:?}");
            let (ttft, e2e) = (limit.ttft_saving, limit.e2e_saving);
            assert!(
                ttft.is_some() && e2e.is_some_and(|saving| saving.value < 1.0),
                "{limit:?}"
            );
        }
    }
}
