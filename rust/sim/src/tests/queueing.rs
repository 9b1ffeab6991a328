//! Mean waits of the simulator against queueing theory.

use wardrop_core::rng::Rng;

use super::{engine, exponential, run, workload};
use crate::{EngineSpec, FleetSpec, Timing};

#[test]
fn waiting_times_are_those_of_the_m_d_1_queue() {
    // Service 10 ms, load 0.7: mean wait ρ S / (2 (1 − ρ)) = 11.667 ms (Pollaczek and Khinchine).
    let timing = Timing::Affine {
        prefill_base_ms: 10.0,
        prefill_per_token_ms: 0.0,
        decode_base_ms: 0.0,
        decode_per_kv_token_ms: 0.0,
        decode_per_sequence_ms: 0.0,
    };
    let spec = FleetSpec::aggregated(
        1,
        EngineSpec {
            max_num_seqs: 1,
            timing,
            ..engine()
        },
    );
    let mut rng = Rng::new(3);
    let mut at_ms = 0.0;
    let rows: Vec<_> = (0..200_000)
        .map(|i| {
            at_ms += exponential(&mut rng, 10.0 / 0.7);
            (at_ms, 16, 1, i)
        })
        .collect();
    let outcome = run(&spec, &workload(&rows));
    let waits: f64 = (0..rows.len())
        .map(|i| outcome.requests.first_token_ms[i] - outcome.requests.arrival_ms[i] - 10.0)
        .sum::<f64>()
        / rows.len() as f64;
    assert!((waits / 11.667 - 1.0).abs() < 0.03, "mean wait {waits} ms");
}

#[test]
fn waiting_times_are_those_of_the_m_m_c_queue() {
    // Four places, service of a geometric number of 1 ms steps with mean 200, load 0.85. Erlang C gives the mean wait, and
    // the discrete steps add at most one step to it.
    let timing = Timing::Affine {
        prefill_base_ms: 0.0,
        prefill_per_token_ms: 0.0,
        decode_base_ms: 1.0,
        decode_per_kv_token_ms: 0.0,
        decode_per_sequence_ms: 0.0,
    };
    let places = 4.0;
    let (service_ms, load) = (200.0, 0.85);
    let spec = FleetSpec::aggregated(
        1,
        EngineSpec {
            max_num_seqs: 4,
            timing,
            ..engine()
        },
    );
    let mut rng = Rng::new(5);
    let mut at_ms = 0.0;
    let rows: Vec<_> = (0..200_000)
        .map(|i| {
            at_ms += exponential(&mut rng, service_ms / (places * load));
            (at_ms, 16, exponential(&mut rng, service_ms).ceil() as u32, i)
        })
        .collect();
    let outcome = run(&spec, &workload(&rows));
    let admitted = &outcome.requests.admit_ms;
    let wait = (0..rows.len())
        .map(|i| admitted[i] - outcome.requests.arrival_ms[i])
        .sum::<f64>()
        / rows.len() as f64;
    let offered: f64 = places * load;
    let mut sum = 0.0;
    let mut term = 1.0;
    for k in 0..4 {
        sum += term;
        term *= offered / f64::from(k + 1);
    }
    let queue = term / (1.0 - load);
    let want = queue / (sum + queue) * service_ms / (places * (1.0 - load));
    assert!(
        (wait / want - 1.0).abs() < 0.05,
        "mean wait {wait} ms, Erlang C {want} ms"
    );
}
