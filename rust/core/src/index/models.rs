//! Loom models of the protocols between threads: every order that the memory model allows, on small data.
//!
//! Each model has a negative control: the same protocol without its guard, in which loom must find the fault.
//! The models run the functions of [`super::seqlock`], as the index does; only the data around them is small.
//!
//! | model | protocol | guard that the control leaves out |
//! |---|---|---|
//! | `sections` | a valid section of a frame is one state | the fence of `begin_write` |
//! | `step` | a walk from a frame to its child stays on its path | the check of the parent's identity |
//! | `freed_extent` | a freed extent is never read as a frame's | the fence of `begin_write` |
//! | `split` | a bucket split hides no frame | the check of the version `splits` |
//! | `slot_reuse` | a worker is not credited with the blocks of another | the check of the roster under the lock |
//! | `decision` | two decisions at once see each other's bookings | choosing and booking under one lock |
//!
//! Loom explores at most three preemptions per run. More would multiply the runs, and every fault of the
//! controls shows within three.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use loom::sync::atomic::{AtomicU64, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;

use super::seqlock::{Stamp, Word, begin_read, begin_write, end_write, has_same_identity, is_valid};

/// An atomic word under loom's control. Its loads and stores are relaxed, like those of the index, unless a
/// model says otherwise.
struct Watched(AtomicU64);

impl Watched {
    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }
    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

impl Word for Watched {
    fn load(&self, order: Ordering) -> u64 {
        self.0.load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// Whether loom finds a fault: an assertion of the model that fails in some order.
fn is_faulty(model: impl Fn() + Sync + Send + 'static) -> bool {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    catch_unwind(AssertUnwindSafe(|| builder.check(model))).is_err()
}

/// Whether the protocol keeps its guard. The negative control leaves it out and must fail.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guard {
    Kept,
    LeftOut,
}

/// Read and write sections of one frame: a valid read section must see one state.
///
/// The writer sets two words to 1. A reader that accepts its copy must see both old or both new.
fn sections(guard: Guard) {
    let frame = Arc::new([Watched::new(0), Watched::new(0), Watched::new(0)]);
    let writer = {
        let frame = frame.clone();
        thread::spawn(move || {
            let [version, left, right] = &*frame;
            if guard == Guard::Kept {
                begin_write(version);
            } else {
                version.set(version.get() | 1);
            }
            left.set(1);
            right.set(1);
            end_write(version, false);
        })
    };
    let [version, left, right] = &*frame;
    if let Some(stamp) = begin_read(version) {
        let view = (left.get(), right.get());
        if is_valid(version, stamp) {
            assert_eq!(view.0, view.1, "a valid section must be one state");
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_valid_section_is_one_state() {
    assert!(!is_faulty(|| sections(Guard::Kept)));
    assert!(
        is_faulty(|| sections(Guard::LeftOut)),
        "loom must find the missing fence"
    );
}

/// A step from a frame to its child, while the writer recycles both for another path with an equal link.
///
/// The word `path` names the path that a frame belongs to: 1 at first, 0 while free, 2 afterwards. A step
/// that ends on another path than it began is the fault.
fn step(guard: Guard) {
    struct Frames {
        parent: [Watched; 2],
        child: [Watched; 2],
    }
    let frame = || [Watched::new(0), Watched::new(1)];
    let frames = Arc::new(Frames {
        parent: frame(),
        child: frame(),
    });
    let writer = {
        let frames = frames.clone();
        thread::spawn(move || {
            for [version, path] in [&frames.child, &frames.parent] {
                begin_write(version);
                path.set(0);
                end_write(version, true);
            }
            for [version, path] in [&frames.parent, &frames.child] {
                begin_write(version);
                path.set(2);
                end_write(version, false);
            }
        })
    };
    let read = |[version, path]: &[Watched; 2]| -> Option<(Stamp, u64)> {
        let stamp = begin_read(version)?;
        let path = path.get();
        is_valid(version, stamp).then_some((stamp, path))
    };
    if let Some((stamp, from)) = read(&frames.parent)
        && from != 0
        && let Some((_, to)) = read(&frames.child)
        && to != 0
        && (guard == Guard::LeftOut || has_same_identity(&frames.parent[0], stamp))
    {
        assert_eq!(from, to, "a step must stay on its path");
    }
    writer.join().unwrap();
}

#[test]
fn a_step_to_a_child_stays_on_its_path() {
    assert!(!is_faulty(|| step(Guard::Kept)));
    assert!(
        is_faulty(|| step(Guard::LeftOut)),
        "loom must find the recycled frame"
    );
}

/// An extent or a chunk that a frame freed: the writer then links it into a free list, outside the frame's
/// section.
///
/// A reader that still follows the old frame must notice.
fn freed_extent(guard: Guard) {
    struct State {
        version: Watched,
        /// Place of the frame's words: 1, or 0 for none.
        place: Watched,
        words: Watched,
    }
    let state = Arc::new(State {
        version: Watched::new(0),
        place: Watched::new(1),
        words: Watched::new(7),
    });
    let writer = {
        let state = state.clone();
        thread::spawn(move || {
            if guard == Guard::Kept {
                begin_write(&state.version);
            } else {
                state.version.set(state.version.get() | 1);
            }
            state.place.set(0);
            end_write(&state.version, false);
            state.words.set(9);
        })
    };
    if let Some(stamp) = begin_read(&state.version)
        && state.place.get() == 1
    {
        let words = state.words.get();
        if is_valid(&state.version, stamp) {
            assert_eq!(words, 7, "a freed extent must not count as the frame's");
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_freed_extent_is_never_read_as_a_frames() {
    assert!(!is_faulty(|| freed_extent(Guard::Kept)));
    assert!(
        is_faulty(|| freed_extent(Guard::LeftOut)),
        "loom must find the read of the free list"
    );
}

/// The child table: a bucket splits while a reader looks for a frame that is in the table all the time.
///
/// The frame is in the table before, during and after the split, so a reader that believes "missing" is
/// wrong.
fn split(guard: Guard) {
    struct Table {
        splits: Watched,
        len: Watched,
        /// First frame plus 1 of each chain; the only frame has hash 1.
        buckets: [Watched; 2],
    }
    let table = Arc::new(Table {
        splits: Watched::new(0),
        len: Watched::new(1),
        buckets: [Watched::new(1), Watched::new(0)],
    });
    let writer = {
        let table = table.clone();
        thread::spawn(move || {
            begin_write(&table.splits);
            table.buckets[0].store(0, Ordering::Release);
            table.len.store(2, Ordering::Release);
            table.buckets[1].store(1, Ordering::Release);
            end_write(&table.splits, false);
        })
    };
    if let Some(splits) = begin_read(&table.splits) {
        let len = table.len.load(Ordering::Acquire);
        let bucket = &table.buckets[(len - 1) as usize];
        let missing = bucket.load(Ordering::Acquire) == 0;
        let believed = guard == Guard::LeftOut || is_valid(&table.splits, splits);
        assert!(!(missing && believed), "a frame in the table must be found");
    }
    writer.join().unwrap();
}

#[test]
fn a_bucket_split_hides_no_frame() {
    assert!(!is_faulty(|| split(Guard::Kept)));
    assert!(
        is_faulty(|| split(Guard::LeftOut)),
        "loom must find the hidden frame"
    );
}

/// A worker leaves and another one takes its slot, while a match that saw the first worker's blocks is in
/// progress.
///
/// The mutex stands for the router's state lock, and the number in it for the worker that has the slot.
fn slot_reuse(guard: Guard) {
    struct State {
        roster: Watched,
        frame: [Watched; 2],
        /// Worker in the slot.
        slot_owner: Mutex<u64>,
    }
    let state = Arc::new(State {
        roster: Watched::new(0),
        frame: [Watched::new(0), Watched::new(1)],
        slot_owner: Mutex::new(1),
    });
    let writer = {
        let state = state.clone();
        thread::spawn(move || {
            {
                let mut owner = state.slot_owner.lock().unwrap();
                begin_write(&state.roster);
                end_write(&state.roster, false);
                *owner = 0;
            }
            begin_write(&state.frame[0]);
            state.frame[1].set(0);
            end_write(&state.frame[0], false);
            let mut owner = state.slot_owner.lock().unwrap();
            *owner = 2;
            begin_write(&state.roster);
            end_write(&state.roster, false);
        })
    };
    let fleet = begin_read(&state.roster);
    let frame = begin_read(&state.frame[0]);
    let held = state.frame[1].get();
    if let (Some(fleet), Some(frame)) = (fleet, frame)
        && is_valid(&state.frame[0], frame)
    {
        let owner = state.slot_owner.lock().unwrap();
        if guard == Guard::LeftOut || is_valid(&state.roster, fleet) {
            assert!(
                held == 0 || *owner != 2,
                "a worker must not get credit for another worker's blocks"
            );
        }
    }
    writer.join().unwrap();
}

#[test]
fn a_new_worker_is_not_credited_with_the_blocks_of_the_old_one() {
    assert!(!is_faulty(|| slot_reuse(Guard::Kept)));
    assert!(
        is_faulty(|| slot_reuse(Guard::LeftOut)),
        "loom must find the wrong credit"
    );
}

/// Two simultaneous decisions on two idle workers: each must go to the less loaded worker.
///
/// Without the guard, both decisions read the idle load before either books, and both choose the first
/// worker.
fn decision(guard: Guard) {
    let loads = Arc::new(Mutex::new([0_u32; 2]));
    let route = move |loads: &Mutex<[u32; 2]>| {
        let cheapest = |load: &[u32; 2]| usize::from(load[1] < load[0]);
        if guard == Guard::Kept {
            let mut load = loads.lock().unwrap();
            let chosen = cheapest(&load);
            load[chosen] += 1;
        } else {
            let chosen = cheapest(&loads.lock().unwrap());
            loads.lock().unwrap()[chosen] += 1;
        }
    };
    let other = {
        let loads = loads.clone();
        thread::spawn(move || route(&loads))
    };
    route(&loads);
    other.join().unwrap();
    assert_eq!(
        *loads.lock().unwrap(),
        [1, 1],
        "a decision must see all earlier bookings"
    );
}

#[test]
fn choosing_and_booking_is_one_step() {
    assert!(!is_faulty(|| decision(Guard::Kept)));
    assert!(
        is_faulty(|| decision(Guard::LeftOut)),
        "loom must find the two decisions on one worker"
    );
}
