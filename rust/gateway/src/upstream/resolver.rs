//! Addresses of an upstream's host name. A thread resolves the name, so a request waits for a name server at most once.
//!
//! A literal address needs nothing. A name has a thread that asks the system's resolver at an interval and after a failed connection.
//! The last known addresses stay in use while the resolver fails.
//!
//! A question to the system's resolver may block for seconds, which an event loop must not do. One
//! thread per host name follows from that.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use wardrop_service::metrics::THREAD_PREFIX;

/// Interval between two questions to the resolver.
const REFRESH: Duration = Duration::from_secs(10);
/// Shortest time between two questions, regardless of the number of failed connections.
const REFRESH_FLOOR: Duration = Duration::from_millis(500);

/// Addresses of one host and port.
#[derive(Debug)]
pub struct Addresses {
    /// Last known addresses; empty before the first answer.
    known: Arc<ArcSwap<Vec<SocketAddr>>>,
    /// Set for a host name: asks for a question to the resolver now. Dropping it ends the thread.
    asks: Option<SyncSender<()>>,
    /// Whether the resolver has answered once.
    found: watch::Receiver<bool>,
}

impl Addresses {
    /// The addresses of `host`. A host name is resolved from now on, on a thread of its own.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn follow(host: &str, port: u16) -> std::io::Result<Self> {
        let known = Arc::new(ArcSwap::default());
        let (is_found, found) = watch::channel(false);
        if let Ok(address) = host.parse() {
            known.store(Arc::new(vec![SocketAddr::new(address, port)]));
            let _ = is_found.send(true);
            return Ok(Self {
                known,
                asks: None,
                found,
            });
        }
        let (asks, asked) = sync_channel(1);
        let (host, shared) = (host.to_owned(), known.clone());
        std::thread::Builder::new()
            .name(format!("{THREAD_PREFIX}names"))
            .spawn(move || {
                resolve(&asked, || match (host.as_str(), port).to_socket_addrs() {
                    Ok(addresses) => {
                        let addresses: Vec<_> = addresses.collect();
                        if !addresses.is_empty() {
                            shared.store(Arc::new(addresses));
                            let _ = is_found.send(true);
                        }
                    }
                    Err(error) => tracing::warn!(host, %error, "the name of an upstream cannot be resolved"),
                });
            })?;
        Ok(Self {
            known,
            asks: Some(asks),
            found,
        })
    }

    /// The known addresses. Waits for the first answer of the resolver, within `limit`; empty without one.
    pub async fn get(&self, limit: Duration) -> Arc<Vec<SocketAddr>> {
        let mut found = self.found.clone();
        let _ = tokio::time::timeout(limit, found.wait_for(|found| *found)).await;
        self.known.load_full()
    }

    /// Asks the resolver soon, because a connection to the known addresses failed and the host may have moved.
    pub fn refresh(&self) {
        if let Some(asks) = &self.asks {
            // A full channel means that a question is under way.
            let _ = asks.try_send(());
        }
    }
}

/// Runs `question` at an interval and on demand, until the other end of `asked` is dropped.
fn resolve(asked: &Receiver<()>, question: impl Fn()) {
    loop {
        question();
        match asked.recv_timeout(REFRESH) {
            Ok(()) => std::thread::sleep(REFRESH_FLOOR),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literal_addresses_need_no_resolver_and_names_get_one() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(async {
            let limit = Duration::from_secs(20);
            let literal = Addresses::follow("127.0.0.1", 80).unwrap();
            assert!(literal.asks.is_none());
            assert_eq!(*literal.get(limit).await, ["127.0.0.1:80".parse().unwrap()]);
            let six = Addresses::follow("::1", 80).unwrap();
            assert_eq!(*six.get(limit).await, ["[::1]:80".parse().unwrap()]);
            let name = Addresses::follow("localhost", 80).unwrap();
            let found = name.get(limit).await;
            assert!(found.iter().all(|address| address.ip().is_loopback()));
            assert!(!found.is_empty());
        });
    }

    #[test]
    fn thread_ends_with_its_upstream() {
        let (asks, asked) = sync_channel::<()>(1);
        let thread = std::thread::spawn(move || resolve(&asked, || {}));
        drop(asks);
        thread.join().unwrap();
    }
}
