//! Bookings, first tokens and ends, as a price and a queue read them.

use super::account::chunk_token_s;
use super::*;
use crate::latency::Pass;

/// Books a request at `at_s` for 600 s.
fn book(ledger: &mut Ledger, id: u64, work: Work, kv_tokens: f64, at_s: f64) {
    ledger.book(&booking(id, work, kv_tokens, at_s));
}

fn booking(id: u64, work: Work, kv_tokens: f64, now_s: f64) -> NewBooking {
    NewBooking {
        request: RequestId(id),
        slot: Slot(0),
        work,
        kv_tokens,
        is_unstreamed: false,
        is_unsure: false,
        is_of_peer: false,
        now_s,
        expires_at_s: now_s + 600.0,
    }
}

/// A request of `new_tokens` to compute where `kv_tokens` are in flight.
fn inputs(new_tokens: u64, kv_tokens: f64) -> CandidateInputs {
    CandidateInputs {
        new_tokens: new_tokens as f64,
        cached_tokens: 0.0,
        kv_tokens,
        kv_tokens_with: kv_tokens + new_tokens as f64,
    }
}

fn ledger() -> Ledger {
    let mut ledger = Ledger::new(&Prior::default(), Learning::default());
    ledger.add_worker(Slot(0), &WorkerSpec::default(), 16);
    ledger
}

#[test]
fn id_that_is_used_again_outlives_the_expiry_of_its_first_booking() {
    let mut ledger = ledger();
    let request = RequestId(7);
    let lives_10_s = |now_s| NewBooking {
        expires_at_s: now_s + 10.0,
        ..booking(7, Work::default(), 0.0, now_s)
    };
    ledger.book(&lives_10_s(0.0));
    ledger.release(request, 0.0, Outcome::default(), 1.0);
    ledger.book(&lives_10_s(5.0));
    ledger.expire(12.0);
    assert_eq!(ledger.len(), 1);
    ledger.expire(15.0);
    assert_eq!(ledger.len(), 0);
}

#[test]
fn step_of_a_decode_pool_is_learned_from_the_first_token_on() {
    let mut ledger = ledger();
    let outcome = Outcome {
        output_tokens: Some(11),
        ..Outcome::default()
    };
    for n in 0..100 {
        let at_s = 10.0 * n as f64;
        let request = RequestId(n);
        book(&mut ledger, n, Work::default(), 0.0, at_s);
        ledger.prefill_done(request, at_s);
        ledger.answer_began(request, at_s + 2.0);
        ledger.release(request, 0.0, outcome, at_s + 2.5);
    }
    let step_s = ledger.curves.of(0).step_s(1.0, 0.0);
    assert!(
        (step_s - 0.05).abs() < 0.005,
        "{step_s} s for ten steps in half a second"
    );
}

/// Seconds that a prompt of `tokens` waits for KV blocks where `held` tokens are in flight.
fn memory_wait_s(ledger: &mut Ledger, (held, tokens): (f64, u64), now_s: f64) -> f64 {
    ledger.advance(now_s);
    let found = ledger.estimate(Slot(0), &inputs(tokens, held), 100.0, now_s);
    found.memory_wait_s
}

#[test]
fn memory_comes_back_in_lumps() {
    let wait_s = |requests: u64| {
        let mut ledger = Ledger::new(&Prior::default(), Learning::default());
        let spec = WorkerSpec::default().with_total_kv_blocks(1000);
        ledger.add_worker(Slot(0), &spec, 16);
        for id in 0..requests {
            // All first tokens came. The requests together hold 12,000 of 16,000 tokens.
            let work = Work {
                new_tokens: 12_000 / requests,
                cached_tokens: 0,
            };
            book(&mut ledger, id, work, 12_000.0, 0.0);
            ledger.prefill_done(RequestId(id), 0.0);
        }
        let stay_s = {
            let found = ledger.estimate(Slot(0), &inputs(5000, 12_000.0), 100.0, 0.0);
            found.wait_s + found.prefill_s + 100.0 * found.step_with_s
        };
        memory_wait_s(&mut ledger, (12_000.0, 5000), 0.0) / stay_s
    };
    // The only request must end, and half of its stay is left on average. Of 24 requests that hold as much, only some
    // must end.
    assert!((wait_s(1) - 0.5).abs() < 1e-9, "{}", wait_s(1));
    assert!((0.1..0.5).contains(&wait_s(24)), "{}", wait_s(24));
    assert!(wait_s(2) < wait_s(1));
}

#[test]
fn overdue_first_token_shows_that_the_worker_is_stuck() {
    let mut ledger = ledger();
    let work = Work {
        new_tokens: 4000,
        cached_tokens: 0,
    };
    let (stuck, next) = (RequestId(1), RequestId(2));
    book(&mut ledger, stuck.0, work, 4000.0, 0.0);
    book(&mut ledger, next.0, work, 8000.0, 1.0);
    let takes_s = ledger.curves.of(0).prefill_s(4000, 0);
    assert_eq!(memory_wait_s(&mut ledger, (8000.0, 100), takes_s), 0.0);
    assert!((memory_wait_s(&mut ledger, (8000.0, 100), takes_s + 10.0) - 10.0).abs() < 1e-9);
    ledger.prefill_done(stuck, takes_s + 10.0);
    // The next first token was expected after both prefills.
    let late_s = memory_wait_s(&mut ledger, (8000.0, 100), takes_s + 10.0);
    assert!((late_s - (9.0 - takes_s)).abs() < 1e-9, "{late_s}");
    ledger.release(next, 4000.0, Outcome::default(), takes_s + 11.0);
    assert_eq!(memory_wait_s(&mut ledger, (4000.0, 100), takes_s + 50.0), 0.0);
    // Behind a request that is stuck for good not every booking is remembered.
    book(&mut ledger, 3, work, 4000.0, 100.0);
    for id in 10..10_000 {
        book(&mut ledger, id, work, 4000.0, 100.0);
        ledger.prefill_done(RequestId(id), 100.0);
        ledger.release(RequestId(id), 4000.0, Outcome::default(), 100.0);
    }
    let remembered = ledger.accounts[0].due.len();
    assert!(remembered <= 68, "{remembered} are remembered");
}

#[test]
fn unstreamed_answer_is_no_prefill_for_longer_than_expected_and_teaches_nothing_of_steps() {
    let mut ledger = ledger();
    let work = Work {
        new_tokens: 4000,
        cached_tokens: 0,
    };
    let takes_s = ledger.curves.of(0).prefill_s(4000, 0);
    let step_s = ledger.curves.of(0).step_s(1.0, 0.0);
    let request = RequestId(1);
    let unstreamed = |now_s| NewBooking {
        is_unstreamed: true,
        ..booking(1, work, 4000.0, now_s)
    };
    ledger.book(&unstreamed(0.0));
    assert!(ledger.expire(0.5 * takes_s).is_empty());
    assert_eq!(ledger.occupancy(0, 0.5 * takes_s).prefills, 1);
    assert_eq!(ledger.expire(takes_s), [request]);
    let after = ledger.occupancy(0, takes_s);
    assert_eq!((after.prefills, after.backlog_s, after.requests), (0, 0.0, 1));
    assert_eq!(
        memory_wait_s(&mut ledger, (4000.0, 100), 30.0),
        0.0,
        "nothing is late"
    );
    let outcome = Outcome {
        output_tokens: Some(100),
        ..Outcome::default()
    };
    ledger.release(request, 0.0, outcome, 30.0);
    assert_eq!(ledger.curves.of(0).step_s(1.0, 0.0), step_s);
    assert_eq!(ledger.occupancy(0, 30.0).requests, 0);
    // A request that ends before its first token is due is not mistaken for a later booking with the same id.
    ledger.book(&unstreamed(40.0));
    ledger.release(request, 0.0, Outcome::default(), 40.1);
    book(&mut ledger, request.0, work, 4000.0, 40.2);
    assert!(ledger.expire(90.0).is_empty());
    assert_eq!(ledger.occupancy(0, 90.0).prefills, 1);
}

#[test]
fn where_first_tokens_go_unreported_none_is_late() {
    let mut ledger = ledger();
    let work = Work {
        new_tokens: 4000,
        cached_tokens: 0,
    };
    for id in 0..20 {
        book(&mut ledger, id, work, 4000.0, id as f64);
        ledger.release(RequestId(id), 0.0, Outcome::default(), id as f64 + 0.5);
    }
    book(&mut ledger, 99, work, 4000.0, 30.0);
    assert_eq!(memory_wait_s(&mut ledger, (4000.0, 100), 60.0), 0.0);
}

#[test]
fn expiries_of_ended_requests_do_not_pile_up() {
    let mut ledger = ledger();
    for n in 0..10_000 {
        book(&mut ledger, n, Work::default(), 0.0, 0.0);
        ledger.release(RequestId(n), 0.0, Outcome::default(), 0.1);
    }
    assert!(ledger.expiries() <= 66, "{} are remembered", ledger.expiries());
}

/// Some of what a price reads of a worker: wait, requests, seconds per token, arrival rate, prefill seconds per token.
fn row_of(ledger: &Ledger, slot: Slot) -> (f64, f64, f64, f64, u64) {
    let row = ledger.columns.slices().row(slot.index());
    let rate = row.arrivals / (Rate::unit_per_s(ledger.decay_weight) * row.seen);
    (
        row.wait_s,
        row.requests,
        row.token_s,
        rate,
        row.prefill_token.to_bits(),
    )
}

#[test]
fn row_follows_every_change_of_account_and_curves() {
    let mut ledger = ledger();
    ledger.add_worker(Slot(1), &WorkerSpec::default(), 16);
    let mut rng = crate::rng::Rng::new(1);
    let (mut open, mut now_s) = (Vec::new(), 0.0);
    for id in 0..3000 {
        // A jump beyond the range of the decayed sums rebases all of them.
        now_s += if id == 1500 { 3000.0 } else { 0.2 * rng.unit() };
        let slot = Slot(rng.below(2) as u32);
        match rng.below(5) {
            0 | 1 => {
                let work = Work {
                    new_tokens: 1 + rng.below(5000) as u64,
                    cached_tokens: 100,
                };
                ledger.book(&NewBooking {
                    slot,
                    expires_at_s: now_s + 60.0,
                    ..booking(id, work, 1e4, now_s)
                });
                open.push(RequestId(id));
            }
            2 if !open.is_empty() => {
                ledger.prefill_done(open[rng.below(open.len())], now_s);
            }
            3 if !open.is_empty() => {
                let outcome = Outcome {
                    output_tokens: Some(50),
                    ..Outcome::default()
                };
                ledger.release(open.swap_remove(rng.below(open.len())), 1e4, outcome, now_s);
            }
            _ => {
                ledger.cache_changed(slot, 64, rng.below(64));
                let pass = Pass {
                    decodes: 1 + rng.below(8) as u64,
                    decode_kv_tokens: 10_000,
                    seconds: 0.02,
                    ..Pass::default()
                };
                ledger.report_pass(slot, &pass);
                ledger.expire(now_s);
            }
        }
        ledger.advance(now_s);
        for slot in [Slot(0), Slot(1)] {
            let account = &ledger.accounts[slot.index()];
            let curves = ledger.curves.of(slot.index());
            let own = (
                account.prefill_s,
                f64::from(account.requests),
                chunk_token_s(curves, account.chunk_tokens),
                account.arrivals.per_s(ledger.decay_weight, now_s),
                curves.coefficients().prefill[1].to_bits(),
            );
            assert_eq!(row_of(&ledger, slot), own, "after step {id}");
        }
    }
}

#[test]
fn a_worker_whose_index_misleads_teaches_by_what_its_engine_reports() {
    let learned = |is_unsure: bool, reported: Option<u32>| {
        let mut ledger = ledger();
        let mut at_s = 0.0;
        for id in 0..40 {
            // The index lists nothing of 4,000 tokens. The engine finds 3,000, and computes the rest at 10,000 per second.
            let work = Work {
                new_tokens: 4_000,
                cached_tokens: 0,
            };
            ledger.book(&NewBooking {
                is_unsure,
                ..booking(id, work, 4_000.0, at_s)
            });
            ledger.prefill_done(RequestId(id), at_s + 0.1);
            let outcome = Outcome {
                cached_tokens: reported,
                ..Outcome::default()
            };
            ledger.release(RequestId(id), 0.0, outcome, at_s + 0.2);
            at_s += 1.0;
        }
        ledger.curves.of(0).samples().0
    };
    assert_eq!(learned(false, Some(3_000)), 39, "the last pass is still open");
    assert_eq!(learned(true, Some(3_000)), 39);
    assert_eq!(learned(true, None), 0, "an unknown part teaches nothing");
}

#[test]
fn a_pass_waits_for_the_last_report_of_its_prompts_and_learns_their_computed_tokens() {
    let seconds = |is_unsure: bool| {
        let mut ledger = ledger();
        let mut at_s = 0.0;
        for id in 0..200 {
            let work = Work {
                new_tokens: if is_unsure { 4_000 } else { 1_000 },
                cached_tokens: if is_unsure { 0 } else { 3_000 },
            };
            ledger.book(&NewBooking {
                is_unsure,
                ..booking(id, work, 4_000.0, at_s)
            });
            ledger.prefill_done(RequestId(id), at_s + 0.1);
            if id > 0 {
                // The request ends after the next first token, so its pass is closed by then.
                let outcome = Outcome {
                    cached_tokens: Some(3_000),
                    ..Outcome::default()
                };
                ledger.release(RequestId(id - 1), 0.0, outcome, at_s + 0.2);
            }
            at_s += 1.0;
        }
        ledger.curves.of(0).prefill_s(1_000, 3_000)
    };
    let (by_index, by_report) = (seconds(false), seconds(true));
    // The answer before it decodes meanwhile, which takes a part of the 0.1 s.
    assert!((0.06..0.11).contains(&by_index), "{by_index}");
    assert!(
        (by_report - by_index).abs() < 0.005,
        "{by_report} instead of {by_index}"
    );
}
