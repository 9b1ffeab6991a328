//! Exact assignments against brute force, and the properties that every estimator must have.

use proptest::prelude::*;
use wardrop_core::anarchy::{
    CostMatrix, DecisionCosts, Meter, MeterConfig, Window, WindowWorker, assign, assign_congested,
};

/// The least total over every matching, by exhaustion.
fn brute_force_assign(costs: &CostMatrix) -> f64 {
    fn best(costs: &CostMatrix, row: usize, used: &mut Vec<bool>, skips: usize) -> f64 {
        if row == costs.rows() {
            return 0.0;
        }
        let mut low = if skips > 0 {
            best(costs, row + 1, used, skips - 1)
        } else {
            f64::INFINITY
        };
        for column in 0..costs.columns() {
            if !used[column] {
                used[column] = true;
                low = low.min(costs.at(row, column) + best(costs, row + 1, used, skips));
                used[column] = false;
            }
        }
        low
    }
    let skips = costs.rows().saturating_sub(costs.columns());
    best(costs, 0, &mut vec![false; costs.columns()], skips)
}

/// The least social cost over all m^n assignments.
fn brute_force_congested(costs: &CostMatrix, marginal: &dyn Fn(usize, usize) -> f64) -> f64 {
    fn best(
        costs: &CostMatrix,
        marginal: &dyn Fn(usize, usize) -> f64,
        row: usize,
        count: &mut Vec<usize>,
    ) -> f64 {
        if row == costs.rows() {
            return 0.0;
        }
        (0..costs.columns())
            .map(|column| {
                count[column] += 1;
                let here = costs.at(row, column) + marginal(column, count[column]);
                let total = here + best(costs, marginal, row + 1, count);
                count[column] -= 1;
                total
            })
            .fold(f64::INFINITY, f64::min)
    }
    best(costs, marginal, 0, &mut vec![0; costs.columns()])
}

fn matrix(
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
) -> impl Strategy<Value = CostMatrix> {
    (rows, columns).prop_flat_map(|(rows, columns)| {
        // Small integers make ties, and ties are where assignment solvers break.
        let entry = prop_oneof![(0..6_u8).prop_map(f64::from), 0.0..10.0_f64, -3.0..3.0_f64];
        prop::collection::vec(entry, rows * columns)
            .prop_map(move |values| CostMatrix::new(rows, columns, values).unwrap())
    })
}

fn placements(workers: usize, count: usize) -> impl Strategy<Value = Vec<DecisionCosts>> {
    let cost = move || prop::collection::vec(0.0..5.0_f64, workers);
    let one = (0.0..0.5_f64, 0..workers, cost(), cost(), cost());
    prop::collection::vec(one, 1..=count).prop_map(|rows| {
        let mut at_s = 100.0;
        rows.into_iter()
            .map(|(gap, chosen, prefill_s, decode_s, wait_s)| {
                at_s += gap;
                DecisionCosts {
                    at_s,
                    chosen,
                    prefill_s,
                    decode_s,
                    wait_s,
                }
            })
            .collect()
    })
}

fn window() -> impl Strategy<Value = (Vec<WindowWorker>, Vec<DecisionCosts>)> {
    (1..6_usize).prop_flat_map(|workers| {
        let state = (0.0..3.0_f64, 0.0..0.2_f64).prop_map(|(wait_s, peer_decode_s)| WindowWorker {
            wait_s,
            peer_decode_s,
        });
        (prop::collection::vec(state, workers), placements(workers, 24))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn assignment_is_exact_and_valid(costs in matrix(1..6, 1..6)) {
        let found = assign(&costs);
        let mut used = vec![false; costs.columns()];
        for column in found.column_of.iter().flatten() {
            prop_assert!(!std::mem::replace(&mut used[*column], true), "a column twice");
        }
        let pairs = found.column_of.iter().flatten().count();
        prop_assert_eq!(pairs, costs.rows().min(costs.columns()));
        prop_assert!((found.total - brute_force_assign(&costs)).abs() < 1e-9);
    }

    #[test]
    fn congested_assignment_is_exact(
        costs in matrix(1..6, 1..4),
        slopes in prop::collection::vec((0.0..3.0_f64, 0.0..2.0_f64), 4),
    ) {
        let marginal = |j: usize, k: usize| slopes[j].0 + slopes[j].1 * (k * k - (k - 1) * (k - 1)) as f64;
        let found = assign_congested(&costs, marginal).unwrap();
        let best = brute_force_congested(&costs, &marginal);
        prop_assert!((found.total() - best).abs() < 1e-9, "{} against {best}", found.total());
    }

    #[test]
    fn congested_with_one_slot_each_is_the_assignment(costs in matrix(1..9, 9..12)) {
        let found = assign_congested(&costs, |_, k| if k == 1 { 0.0 } else { 1e6 }).unwrap();
        prop_assert!((found.total() - assign(&costs).total).abs() < 1e-9);
    }

    #[test]
    fn poa_is_never_below_one_and_its_parts_add_up((workers, placed) in window()) {
        let e = Window::new(workers, placed).unwrap().estimate().unwrap();
        prop_assert!(e.actual_s >= e.optimum_s - 1e-9, "{} < {}", e.actual_s, e.optimum_s);
        let parts = e.loss.free_s + e.loss.split_s + e.loss.cache_s + e.loss.load_s;
        prop_assert!((parts - e.actual_s).abs() < 1e-9);
        prop_assert!(e.loss.split_s >= -1e-9);
        prop_assert!(e.regret_s >= 0.0);
    }

    #[test]
    fn poa_is_invariant_under_renamed_workers_and_other_units((workers, placed) in window(), scale in 1e-3..1e3_f64, shift in 0..6_usize) {
        let before = Window::new(workers.clone(), placed.clone()).unwrap().estimate().unwrap();
        let m = workers.len();
        let turn = |values: &[f64]| (0..m).map(|j| scale * values[(j + shift) % m]).collect::<Vec<_>>();
        let workers = (0..m)
            .map(|j| workers[(j + shift) % m])
            .map(|w| WindowWorker { wait_s: scale * w.wait_s, peer_decode_s: scale * w.peer_decode_s })
            .collect();
        let placed = placed
            .iter()
            .map(|p| DecisionCosts {
                at_s: scale * p.at_s,
                chosen: (p.chosen + m * 6 - shift) % m,
                prefill_s: turn(&p.prefill_s),
                decode_s: turn(&p.decode_s),
                wait_s: turn(&p.wait_s),
            })
            .collect();
        let after = Window::new(workers, placed).unwrap().estimate().unwrap();
        prop_assert!((before.poa() - after.poa()).abs() < 1e-6 * before.poa());
        prop_assert!((before.poa_paper() - after.poa_paper()).abs() < 1e-6 * before.poa_paper());
    }

    #[test]
    fn optimal_placement_has_poa_one((workers, placed) in window()) {
        // Equal requests, spread as the solver spreads them.
        let m = workers.len();
        let alike: Vec<DecisionCosts> = placed
            .iter()
            .map(|p| DecisionCosts { prefill_s: vec![1.0; m], decode_s: vec![0.5; m], ..p.clone() })
            .collect();
        let idle: Vec<WindowWorker> = workers.iter().map(|w| WindowWorker { wait_s: 0.0, ..*w }).collect();
        let even: Vec<WindowWorker> = idle.iter().map(|_| idle[0]).collect();
        let turned = alike.iter().enumerate().map(|(i, p)| DecisionCosts { chosen: i % m, ..p.clone() });
        let e = Window::new(even, turned.collect()).unwrap().estimate().unwrap();
        prop_assert!((e.poa() - 1.0).abs() < 1e-9, "{}", e.poa());
    }
}

/// N equal requests spread evenly over m idle workers without caches: no cost is lost, and the paper's estimator gives N/m.
#[test]
fn the_papers_estimator_gives_n_over_m_where_no_cost_is_lost() {
    for (n, m) in [(37, 2), (37, 5), (64, 8)] {
        let placed: Vec<DecisionCosts> = (0..n)
            .map(|i| DecisionCosts {
                at_s: i as f64 * 0.01,
                chosen: i % m,
                prefill_s: vec![0.02; m],
                decode_s: vec![1.0; m],
                wait_s: vec![0.0; m],
            })
            .collect();
        let e = Window::new(vec![WindowWorker::default(); m], placed)
            .unwrap()
            .estimate()
            .unwrap();
        assert!(
            (e.poa_paper() - n as f64 / m as f64).abs() < 1e-9,
            "{n}/{m}: {}",
            e.poa_paper()
        );
        assert!((e.poa() - 1.0).abs() < 1e-9, "{n}/{m}: {}", e.poa());
    }
}

#[test]
fn crowding_one_worker_is_a_load_loss_and_a_cold_one_a_cache_loss() {
    let placement = |chosen: usize, prefill_s: Vec<f64>| DecisionCosts {
        at_s: 0.0,
        chosen,
        prefill_s,
        decode_s: vec![0.0; 2],
        wait_s: vec![0.0; 2],
    };
    let idle = vec![WindowWorker::default(); 2];
    let crowded = (0..8).map(|_| placement(0, vec![1.0; 2])).collect();
    let e = Window::new(idle.clone(), crowded).unwrap().estimate().unwrap();
    assert!(e.loss.load_s > 1.0 && e.loss.cache_s.abs() < 1e-9, "{:?}", e.loss);
    assert!(e.poa() > 1.5);

    let cold = (0..2)
        .map(|i| placement(1 - i, if i == 0 { vec![0.0, 1.0] } else { vec![1.0, 0.0] }))
        .collect();
    let e = Window::new(idle, cold).unwrap().estimate().unwrap();
    assert!(
        (e.loss.cache_s - 2.0).abs() < 1e-9 && e.loss.load_s.abs() < 1e-9,
        "{:?}",
        e.loss
    );
}

#[test]
fn the_meter_keeps_the_last_windows_bounds_the_pending_ones_and_reports() {
    let config = MeterConfig {
        window_requests: 16,
        keep_windows: 4,
        max_pending: 2,
        ..MeterConfig::default()
    };
    let mut meter = Meter::new(config);
    let one = |i: usize| DecisionCosts {
        at_s: i as f64 * 0.01,
        chosen: 0,
        prefill_s: vec![1.0, 1.0],
        decode_s: vec![0.1, 0.1],
        wait_s: vec![i as f64 * 0.5, 0.0],
    };
    assert!(meter.report().is_none());
    for i in 0..160 {
        meter.record(&one(i), &[0.0, 0.0]).unwrap();
    }
    assert_eq!(meter.pending(), 4, "the queue of closed windows must be bounded");
    meter.finish().unwrap();
    for i in 160..400 {
        meter.record(&one(i), &[0.0, 0.0]).unwrap();
        while meter.solve().unwrap() {}
    }
    for i in 1..100 {
        meter.record_outcome(1.5 * f64::from(i), f64::from(i));
    }
    let report = meter.report().unwrap();
    assert!(report.windows <= 4 && report.dropped_windows > 0);
    let interval = report.poa_interval.unwrap();
    assert!(interval.low >= 1.0 && interval.low <= report.poa && report.poa <= interval.high);
    assert!(
        report.poa > 1.0 && report.regret_mean_s > 0.0 && report.poa_square_max >= report.poa_square_median
    );
    assert!((report.model_error.bias - 1.5).abs() < 1e-9);
    assert!((report.model_error.mean_absolute_share - 0.5).abs() < 1e-9);
}

#[test]
fn bad_costs_are_refused_and_counted() {
    assert!(CostMatrix::new(2, 2, vec![0.0; 3]).is_err());
    assert!(CostMatrix::new(1, 2, vec![0.0, f64::NAN]).is_err());
    assert!(assign_congested(&CostMatrix::new(2, 1, vec![0.0; 2]).unwrap(), |_, k| -(k as f64)).is_err());
    let mut meter = Meter::new(MeterConfig::default());
    let bad = DecisionCosts {
        at_s: 0.0,
        chosen: 2,
        prefill_s: vec![1.0; 2],
        decode_s: vec![1.0; 2],
        wait_s: vec![0.0; 2],
    };
    assert!(meter.record(&bad, &[0.0, 0.0]).is_err());
    assert!(meter.record(&DecisionCosts { chosen: 0, ..bad }, &[0.0]).is_err());
}

/// Times 512 × 512 uniform costs. `--nocapture` prints the times; the bound holds on a busy machine too.
#[test]
#[ignore = "a measurement"]
fn cost_of_large_assignments() {
    let n = 512;
    let mut rng = wardrop_core::rng::Rng::new(7);
    let costs = CostMatrix::new(n, n, (0..n * n).map(|_| rng.unit()).collect()).unwrap();
    let wide = CostMatrix::new(n, 8, (0..n * 8).map(|_| rng.unit()).collect()).unwrap();
    let time_ms = |run: &dyn Fn() -> f64| {
        (0..5)
            .map(|_| {
                let start = std::time::Instant::now();
                assert!(run().is_finite());
                start.elapsed().as_secs_f64() * 1e3
            })
            .fold(f64::INFINITY, f64::min)
    };
    let square = time_ms(&|| assign(&costs).total);
    let convex = time_ms(&|| {
        assign_congested(&costs, |_, k| 0.01 * (2 * k - 1) as f64)
            .unwrap()
            .total()
    });
    let few = time_ms(&|| {
        assign_congested(&wide, |_, k| 0.01 * (2 * k - 1) as f64)
            .unwrap()
            .total()
    });
    println!("512 × 512: {square:.2} ms; convex 512 × 512: {convex:.2} ms; convex 512 × 8: {few:.2} ms");
    assert!(square < 100.0 && convex < 200.0 && few < 100.0);
}
