//! A flag by which the caller of long work says that it has left.
//!
//! The prompt pool sets the flag of a prompt while a thread works on it. Tokenisers look at the flag between two pieces of a text. The
//! flag is a value of the thread, because the tokenisers' traits have no place for it. Cost: one atomic load per look.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the caller of one piece of work has left.
#[derive(Clone, Debug, Default)]
pub(crate) struct CancelFlag(Arc<AtomicBool>);

thread_local! {
    /// Flag of the work that runs on this thread; `None` for work that is never cancelled.
    static CURRENT: RefCell<Option<CancelFlag>> = const { RefCell::new(None) };
}

/// Puts the former flag of the thread back, also after a panic of the work.
struct Restore(Option<CancelFlag>);

impl CancelFlag {
    /// Says that the caller has left.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether the caller of the work on this thread has left; false for work that is never cancelled.
    pub fn has_caller_left() -> bool {
        CURRENT.with_borrow(|flag| flag.as_ref().is_some_and(|flag| flag.0.load(Ordering::Relaxed)))
    }

    /// Runs `work` with this flag as the flag of the thread.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let _restore = Restore(CURRENT.replace(Some(self.clone())));
        work()
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_belongs_to_the_work_and_not_to_the_thread() {
        let flag = CancelFlag::default();
        flag.set();
        assert!(flag.run(CancelFlag::has_caller_left));
        assert!(!CancelFlag::has_caller_left());
        let panics = std::panic::catch_unwind(|| flag.run(|| panic!("planted")));
        assert!(panics.is_err());
        assert!(!CancelFlag::has_caller_left(), "a panic leaves no flag behind");
    }
}
