//! The books: bookings, first tokens and ends as a price reads them.

use super::*;

fn ledger() -> Ledger {
    let mut ledger = Ledger::new(&Prior::default(), Learning::default());
    ledger.add_worker(Slot(0), &WorkerSpec::default(), 16);
    ledger
}

#[test]
fn id_that_is_used_again_outlives_the_expiry_of_its_first_booking() {
    let mut ledger = ledger();
    let request = RequestId(7);
    ledger.book(request, Slot(0), Work::default(), 0.0, (0.0, 10.0));
    ledger.release(request, 0.0, Outcome::default(), 1.0);
    ledger.book(request, Slot(0), Work::default(), 0.0, (5.0, 15.0));
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
        ledger.book(request, Slot(0), Work::default(), 0.0, (at_s, at_s + 600.0));
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

/// Seconds that a prompt of `tokens` would wait for KV blocks, where `held` tokens are in flight.
fn memory_wait_s(ledger: &mut Ledger, (held, tokens): (f64, u64), now_s: f64) -> f64 {
    let work = Work {
        new_tokens: tokens,
        cached_tokens: 0,
    };
    let kv = (held, held + tokens as f64);
    ledger.advance(now_s);
    ledger.seconds(Slot(0), work, kv, 100.0, now_s).memory_wait_s
}

#[test]
fn memory_comes_back_in_lumps() {
    let wait_s = |requests: u64| {
        let mut ledger = Ledger::new(&Prior::default(), Learning::default());
        let spec = WorkerSpec::default().with_total_kv_blocks(1000);
        ledger.add_worker(Slot(0), &spec, 16);
        for id in 0..requests {
            // Their first tokens are out, and 12,000 of 16,000 tokens are held by all of them together.
            let work = Work {
                new_tokens: 12_000 / requests,
                cached_tokens: 0,
            };
            ledger.book(RequestId(id), Slot(0), work, 12_000.0, (0.0, 60.0));
            ledger.prefill_done(RequestId(id), 0.0);
        }
        let stay_s = {
            let seconds = ledger.seconds(
                Slot(0),
                Work {
                    new_tokens: 5000,
                    cached_tokens: 0,
                },
                (12_000.0, 17_000.0),
                100.0,
                0.0,
            );
            seconds.wait_s + seconds.prefill_s + 100.0 * seconds.step_with_s
        };
        memory_wait_s(&mut ledger, (12_000.0, 5000), 0.0) / stay_s
    };
    // One request has to end, and all of it: half of its stay is left. Of many that hold as much, a part.
    assert!((wait_s(1) - 0.5).abs() < 1e-9, "{}", wait_s(1));
    assert!((0.1..0.5).contains(&wait_s(24)), "{}", wait_s(24));
    assert!(wait_s(2) < wait_s(1));
}

#[test]
fn first_token_that_is_late_tells_that_the_worker_is_stuck() {
    let mut ledger = ledger();
    let work = Work {
        new_tokens: 4000,
        cached_tokens: 0,
    };
    let (stuck, next) = (RequestId(1), RequestId(2));
    ledger.book(stuck, Slot(0), work, 4000.0, (0.0, 600.0));
    ledger.book(next, Slot(0), work, 8000.0, (1.0, 600.0));
    let takes_s = ledger.curves.of(0).prefill_s(4000, 0);
    assert_eq!(memory_wait_s(&mut ledger, (8000.0, 100), takes_s), 0.0);
    assert!((memory_wait_s(&mut ledger, (8000.0, 100), takes_s + 10.0) - 10.0).abs() < 1e-9);
    ledger.prefill_done(stuck, takes_s + 10.0);
    // The next one was expected after both.
    let late_s = memory_wait_s(&mut ledger, (8000.0, 100), takes_s + 10.0);
    assert!((late_s - (9.0 - takes_s)).abs() < 1e-9, "{late_s}");
    ledger.release(next, 4000.0, Outcome::default(), takes_s + 11.0);
    assert_eq!(memory_wait_s(&mut ledger, (4000.0, 100), takes_s + 50.0), 0.0);
    // Behind one that is stuck for good not every booking is remembered.
    ledger.book(RequestId(3), Slot(0), work, 4000.0, (100.0, 900.0));
    for id in 10..10_000 {
        ledger.book(RequestId(id), Slot(0), work, 4000.0, (100.0, 900.0));
        ledger.prefill_done(RequestId(id), 100.0);
        ledger.release(RequestId(id), 4000.0, Outcome::default(), 100.0);
    }
    let remembered = ledger.accounts[0].due.len();
    assert!(remembered <= 68, "{remembered} are remembered");
}

#[test]
fn answer_in_one_piece_is_no_prefill_for_longer_than_expected_and_teaches_nothing_of_steps() {
    let mut ledger = ledger();
    let work = Work {
        new_tokens: 4000,
        cached_tokens: 0,
    };
    let takes_s = ledger.curves.of(0).prefill_s(4000, 0);
    let step_s = ledger.curves.of(0).step_s(1.0, 0.0);
    let request = RequestId(1);
    ledger.book(request, Slot(0), work, 4000.0, (0.0, 600.0));
    ledger.in_one_piece(request);
    assert!(ledger.expire(0.5 * takes_s).is_empty());
    assert_eq!(ledger.pressure(0, 0.5 * takes_s).prefills, 1);
    assert_eq!(ledger.expire(takes_s), [request]);
    let after = ledger.pressure(0, takes_s);
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
    assert_eq!(ledger.pressure(0, 30.0).requests, 0);
    // One that ends before it is due is not taken for another of its name.
    ledger.book(request, Slot(0), work, 4000.0, (40.0, 600.0));
    ledger.in_one_piece(request);
    ledger.release(request, 0.0, Outcome::default(), 40.1);
    ledger.book(request, Slot(0), work, 4000.0, (40.2, 600.0));
    assert!(ledger.expire(90.0).is_empty());
    assert_eq!(ledger.pressure(0, 90.0).prefills, 1);
}

#[test]
fn where_nobody_tells_of_first_tokens_none_is_late() {
    let mut ledger = ledger();
    let work = Work {
        new_tokens: 4000,
        cached_tokens: 0,
    };
    for id in 0..20 {
        ledger.book(RequestId(id), Slot(0), work, 4000.0, (id as f64, 600.0));
        ledger.release(RequestId(id), 0.0, Outcome::default(), id as f64 + 0.5);
    }
    ledger.book(RequestId(99), Slot(0), work, 4000.0, (30.0, 600.0));
    assert_eq!(memory_wait_s(&mut ledger, (4000.0, 100), 60.0), 0.0);
}

#[test]
fn expiries_of_ended_requests_do_not_pile_up() {
    let mut ledger = ledger();
    for n in 0..10_000 {
        ledger.book(RequestId(n), Slot(0), Work::default(), 0.0, (0.0, 600.0));
        ledger.release(RequestId(n), 0.0, Outcome::default(), 0.1);
    }
    assert!(ledger.expiries() <= 66, "{} are remembered", ledger.expiries());
}

/// What a price reads of an account and its curves, written down from both as they are now.
fn stands(ledger: &Ledger, slot: Slot) -> (f64, f64, f64, f64, u64) {
    let stand = ledger.standing.lanes().at(slot.index());
    let rate = stand.arrivals / (Rate::unit_per_s(ledger.unit) * stand.seen);
    (
        stand.wait_s,
        stand.requests,
        stand.token_s,
        rate,
        stand.prefill_token.to_bits(),
    )
}

#[test]
fn standing_follows_every_change_of_account_and_curves() {
    let mut ledger = ledger();
    ledger.add_worker(Slot(1), &WorkerSpec::default(), 16);
    let mut rng = crate::rng::Rng::new(1);
    let (mut open, mut now_s) = (Vec::new(), 0.0);
    for id in 0..3000 {
        // A jump beyond the range of the decayed sums makes them all be scaled anew.
        now_s += if id == 1500 { 3000.0 } else { 0.2 * rng.unit() };
        let slot = Slot(rng.below(2) as u32);
        match rng.below(5) {
            0 | 1 => {
                let work = Work {
                    new_tokens: 1 + rng.below(5000) as u64,
                    cached_tokens: 100,
                };
                ledger.book(RequestId(id), slot, work, 1e4, (now_s, now_s + 60.0));
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
                ledger.teach(slot, |curves, at| curves.step(at, (4.0, 1e4), 0.02));
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
                marginal_token_s(curves, account.chunk_tokens),
                account.arrivals.per_s(ledger.unit, now_s),
                curves.coefficients().prefill[1].to_bits(),
            );
            assert_eq!(stands(&ledger, slot), own, "after step {id}");
        }
    }
}
