//! Addresses of upstreams' host names. A few threads resolve all names, so a request waits for a name server at most once.
//!
//! A literal address needs nothing. A name is asked for at an interval and after a failed connection. The last known addresses stay in
//! use while the system's resolver fails.
//!
//! ```text
//! UpstreamSet ─▶ Resolver::follow ─▶ names by the time of their next question ─▶ up to MAX_THREADS threads
//! ```
//!
//! A question to the system's resolver may block for seconds, which an event loop must not do. While every thread is blocked, further
//! names wait for their question and keep their addresses. O(log names) per question.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;
use wardrop_service::metrics::THREAD_PREFIX;

/// Interval between two questions for a name.
const REFRESH: Duration = Duration::from_secs(10);
/// Shortest time between two questions for a name, regardless of the number of failed connections.
const REFRESH_FLOOR: Duration = Duration::from_millis(500);
/// Most threads that ask at one time, for all names together.
const MAX_THREADS: usize = 4;

/// A question to the system's resolver for a host and a port.
type Question = Box<dyn Fn(&str, u16) -> std::io::Result<Vec<SocketAddr>> + Send + Sync>;

/// Resolves the host names of all upstreams. Its threads end with the last name.
pub(super) struct Resolver {
    /// State that the threads share.
    shared: Arc<Shared>,
}

/// State of the callers and of the threads.
struct Shared {
    /// Names and threads. Held for one change of the queue, never while a question is asked.
    state: Mutex<State>,
    /// Signals an earlier question, or a name that is no longer followed.
    changed: Condvar,
    /// The question that a thread asks.
    question: Question,
}

/// Followed names, and the threads that ask for them.
#[derive(Default)]
struct State {
    /// Names that wait for their next question, by its time. A name that is being asked for is not here.
    queue: BTreeMap<Turn, Weak<Name>>,
    /// Names that are followed.
    names: usize,
    /// Running threads, at most [`MAX_THREADS`].
    threads: usize,
    /// Threads that wait for the answer to a question.
    asking: usize,
    /// Number of the next name; never reused.
    next_number: u64,
}

/// Place of a name in the queue: the time of its question, then its number.
type Turn = (Instant, u64);

/// One host name of an upstream.
struct Name {
    /// Host name.
    host: String,
    /// Port of the upstream.
    port: u16,
    /// Number of the name, unique in its resolver.
    number: u64,
    /// Last known addresses; empty before the first answer.
    known: Arc<ArcSwap<Vec<SocketAddr>>>,
    /// Whether the resolver has answered once.
    is_found: watch::Sender<bool>,
    /// Progress of the questions. Changed only under the lock of [`State`].
    asked: Mutex<Asked>,
}

/// Progress of the questions for one name.
struct Asked {
    /// Time of the waiting question; `None` while the question is asked.
    due: Option<Instant>,
    /// Time of the last question; `None` before the first.
    last: Option<Instant>,
    /// A connection failed while the question was asked, so the next one comes soon.
    is_wanted: bool,
}

/// Addresses of one host and port.
pub(super) struct Addresses {
    /// Last known addresses; empty before the first answer.
    known: Arc<ArcSwap<Vec<SocketAddr>>>,
    /// Whether the addresses are known.
    found: watch::Receiver<bool>,
    /// The name that is followed; `None` for a literal address.
    followed: Option<Followed>,
}

/// A name that its resolver asks for until this value is dropped.
struct Followed {
    /// Resolver that asks.
    shared: Arc<Shared>,
    /// The name.
    name: Arc<Name>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::asking(Box::new(|host, port| {
            Ok((host, port).to_socket_addrs()?.collect())
        }))
    }
}

impl Resolver {
    /// A resolver that asks this question.
    fn asking(question: Question) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                changed: Condvar::new(),
                question,
            }),
        }
    }

    /// The addresses of `host`. A host name is asked for from now on, until the addresses are dropped.
    ///
    /// # Errors
    /// The operating system gives no thread, and no other thread asks.
    pub fn follow(&self, host: &str, port: u16) -> std::io::Result<Addresses> {
        let known = Arc::new(ArcSwap::default());
        let (is_found, found) = watch::channel(false);
        if let Ok(address) = host.parse() {
            known.store(Arc::new(vec![SocketAddr::new(address, port)]));
            let _ = is_found.send(true);
            return Ok(Addresses {
                known,
                found,
                followed: None,
            });
        }
        let mut state = self.shared.state.lock();
        // The new name needs a thread that neither asks nor waits for another name.
        if state.threads < MAX_THREADS && state.threads - state.asking <= state.queue.len() {
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name(format!("{THREAD_PREFIX}names"));
            match thread.spawn(move || shared.ask_names()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => return Err(error),
                Err(error) => tracing::warn!(%error, "host names share fewer threads than they may"),
            }
        }
        let number = state.next_number;
        state.next_number += 1;
        state.names += 1;
        let name = Arc::new(Name {
            host: host.to_owned(),
            port,
            number,
            known: known.clone(),
            is_found,
            asked: Mutex::new(Asked {
                due: None,
                last: None,
                is_wanted: false,
            }),
        });
        state.push(&name, Instant::now());
        drop(state);
        self.shared.changed.notify_all();
        Ok(Addresses {
            known,
            found,
            followed: Some(Followed {
                shared: self.shared.clone(),
                name,
            }),
        })
    }
}

impl Addresses {
    /// The known addresses. Waits for the first answer of the resolver, within `limit`; empty without one.
    pub async fn get(&self, limit: Duration) -> Arc<Vec<SocketAddr>> {
        let mut found = self.found.clone();
        let _ = tokio::time::timeout(limit, found.wait_for(|found| *found)).await;
        self.known.load_full()
    }

    /// Asks the resolver soon, because a connection to the known addresses failed and the host may have moved.
    pub fn refresh(&self) {
        if let Some(followed) = &self.followed {
            followed.shared.ask_soon(&followed.name);
        }
    }
}

impl Shared {
    /// Loop of one thread: asks for the name whose turn is next, until no name is followed.
    fn ask_names(&self) {
        let mut state = self.state.lock();
        while state.names > 0 {
            let Some((&turn, _)) = state.queue.first_key_value() else {
                self.changed.wait(&mut state);
                continue;
            };
            if turn.0 > Instant::now() {
                self.changed.wait_until(&mut state, turn.0);
                continue;
            }
            let Some(name) = state.queue.remove(&turn).and_then(|name| name.upgrade()) else {
                continue;
            };
            name.asked.lock().due = None;
            state.asking += 1;
            drop(state);
            name.answer((self.question)(&name.host, name.port));
            state = self.state.lock();
            state.asking -= 1;
            let now = Instant::now();
            let pause = {
                let mut asked = name.asked.lock();
                asked.last = Some(now);
                if std::mem::take(&mut asked.is_wanted) {
                    REFRESH_FLOOR
                } else {
                    REFRESH
                }
            };
            // Only this thread holds the name when its upstream has left meanwhile.
            if Arc::strong_count(&name) > 1 {
                state.push(&name, now + pause);
                self.changed.notify_one();
            }
        }
        // A name that left during its question may have been queued again.
        state.queue.clear();
        state.threads -= 1;
        drop(state);
        // The other threads see that no name is left.
        self.changed.notify_all();
    }

    /// Moves the question for a name to the earliest time that [`REFRESH_FLOOR`] allows.
    fn ask_soon(&self, name: &Arc<Name>) {
        let mut state = self.state.lock();
        let moved = {
            let mut asked = name.asked.lock();
            let soon = asked
                .last
                .map_or_else(Instant::now, |last| (last + REFRESH_FLOOR).max(Instant::now()));
            match asked.due {
                None => {
                    asked.is_wanted = true;
                    None
                }
                Some(due) => (soon < due).then_some((due, soon)),
            }
        };
        if let Some((due, soon)) = moved {
            state.queue.remove(&(due, name.number));
            state.push(name, soon);
            drop(state);
            self.changed.notify_one();
        }
    }
}

impl State {
    /// Puts a name into the queue.
    fn push(&mut self, name: &Arc<Name>, due: Instant) {
        name.asked.lock().due = Some(due);
        self.queue.insert((due, name.number), Arc::downgrade(name));
    }
}

impl Name {
    /// Takes over the answer to a question. A failure and an empty list change nothing.
    fn answer(&self, answer: std::io::Result<Vec<SocketAddr>>) {
        match answer {
            Ok(addresses) if addresses.is_empty() => {}
            Ok(addresses) => {
                self.known.store(Arc::new(addresses));
                self.is_found.send_replace(true);
            }
            Err(error) => {
                tracing::warn!(host = self.host, %error, "the name of an upstream cannot be resolved");
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.names -= 1;
        if let Some(due) = self.name.asked.lock().due {
            state.queue.remove(&(due, self.name.number));
        }
        let is_last = state.names == 0;
        drop(state);
        if is_last {
            self.shared.changed.notify_all();
        }
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        let mut shown = out.debug_struct("Resolver");
        shown
            .field("names", &state.names)
            .field("threads", &state.threads);
        shown.finish_non_exhaustive()
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = out.debug_struct("Addresses");
        shown.field("known", &self.known.load()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// Longest wait for a thread of a test on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(future)
    }

    fn address() -> SocketAddr {
        "127.0.0.1:80".parse().unwrap()
    }

    fn wait_until(what: &str, is_true: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_true() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn literal_addresses_need_no_resolver_and_names_get_one() {
        block_on(async {
            let resolver = Resolver::default();
            let literal = resolver.follow("127.0.0.1", 80).unwrap();
            assert_eq!(*literal.get(PATIENCE).await, [address()]);
            let six = resolver.follow("::1", 80).unwrap();
            assert_eq!(*six.get(PATIENCE).await, ["[::1]:80".parse().unwrap()]);
            assert_eq!(resolver.shared.state.lock().threads, 0);
            let name = resolver.follow("localhost", 80).unwrap();
            let found = name.get(PATIENCE).await;
            assert!(found.iter().all(|address| address.ip().is_loopback()));
            assert!(!found.is_empty());
        });
    }

    #[test]
    fn many_names_share_a_few_threads_that_end_with_the_last_name() {
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let asking = Arc::new(AtomicUsize::new(0));
        let inside = asking.clone();
        let resolver = Resolver::asking(Box::new(move |_, _| {
            inside.fetch_add(1, Ordering::SeqCst);
            // Ends for all once the sender is dropped.
            let _ = gate.lock().recv();
            Ok(vec![address()])
        }));
        let names: Vec<_> = (0..50)
            .map(|number| resolver.follow(&format!("host-{number}"), 80).unwrap())
            .collect();
        wait_until("no name was asked for", || asking.load(Ordering::SeqCst) > 0);
        assert_eq!(resolver.shared.state.lock().threads, MAX_THREADS);
        drop(open);
        block_on(async {
            for name in &names {
                assert_eq!(*name.get(PATIENCE).await, [address()]);
            }
        });
        drop(names);
        wait_until("a thread outlived the last name", || {
            resolver.shared.state.lock().threads == 0
        });
        assert!(resolver.shared.state.lock().queue.is_empty());
    }

    #[test]
    fn name_whose_question_hangs_delays_no_other_name() {
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let resolver = Resolver::asking(Box::new(move |host, _| {
            if host == "hangs" {
                let _ = gate.lock().recv();
            }
            Ok(vec![address()])
        }));
        let hangs = resolver.follow("hangs", 80).unwrap();
        let works = resolver.follow("works", 80).unwrap();
        assert_eq!(*block_on(works.get(PATIENCE)), [address()]);
        assert!(block_on(hangs.get(Duration::ZERO)).is_empty());
        drop(open);
        assert_eq!(*block_on(hangs.get(PATIENCE)), [address()]);
    }

    #[test]
    fn failed_connection_has_its_name_asked_for_again_before_the_interval_is_over() {
        let asked = Arc::new(AtomicUsize::new(0));
        let inside = asked.clone();
        let resolver = Resolver::asking(Box::new(move |_, _| {
            inside.fetch_add(1, Ordering::SeqCst);
            Ok(vec![address()])
        }));
        let begun = Instant::now();
        let name = resolver.follow("moves", 80).unwrap();
        wait_until("the name was not asked for", || asked.load(Ordering::SeqCst) == 1);
        name.refresh();
        wait_until("the name was not asked for again", || {
            asked.load(Ordering::SeqCst) == 2
        });
        assert!(begun.elapsed() >= REFRESH_FLOOR);
        assert!(begun.elapsed() < REFRESH, "the question came with the interval");
    }
}
