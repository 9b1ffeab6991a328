//! Properties that hold in every fleet, over random cases.

use proptest::prelude::*;

use super::{case, play};
use crate::End;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_request_ends_once_and_every_token_is_accounted_for(case in case()) {
        let outcome = play(&case);
        let requests = &outcome.requests;
        let len = case.workload.len();
        let mut delivered = 0u64;
        for i in 0..len {
            prop_assert_ne!(requests.end[i], End::Open as u8);
            prop_assert!(requests.end_ms[i] >= requests.arrival_ms[i]);
            if requests.end[i] == End::Complete as u8 {
                delivered += u64::from(case.workload.output_tokens[i]);
                prop_assert!(requests.first_token_ms[i] > requests.arrival_ms[i]);
                prop_assert!(requests.first_token_ms[i] <= requests.end_ms[i]);
                prop_assert!(requests.cached_tokens[i] < case.workload.input_tokens[i]);
            }
        }
        prop_assert!(outcome.totals.peak_active_blocks <= case.spec.pools[0].engine.num_blocks);
        let split = case.spec.pools.len() == 2;
        let calm = requests.retries.iter().chain(&requests.preemptions).all(|count| *count == 0);
        if calm && !split {
            let prefilled: u64 = (0..len)
                .filter(|i| requests.end[*i] == End::Complete as u8)
                .map(|i| u64::from(case.workload.input_tokens[i] - requests.cached_tokens[i]))
                .sum();
            prop_assert_eq!(outcome.totals.prefill_tokens, prefilled);
        }
        if calm {
            prop_assert!(outcome.totals.output_tokens >= delivered);
            if !split {
                prop_assert_eq!(outcome.totals.output_tokens, delivered);
            }
        }
    }

    #[test]
    fn one_seed_gives_one_result(case in case()) {
        prop_assert_eq!(format!("{:?}", play(&case)), format!("{:?}", play(&case)));
    }

    #[test]
    fn planning_many_iterations_at_once_changes_nothing(case in case()) {
        let mut single = case.clone();
        for pool in &mut single.spec.pools {
            pool.engine.longest_run = 1;
        }
        let (many, one) = (play(&case), play(&single));
        prop_assert_eq!(format!("{:?}", many.requests), format!("{:?}", one.requests));
        prop_assert_eq!(&many.gaps.counts, &one.gaps.counts);
        prop_assert_eq!(many.totals.iterations, one.totals.iterations);
    }
}
