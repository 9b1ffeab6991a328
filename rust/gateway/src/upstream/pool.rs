//! Choice of upstream and connection: round robin over the upstreams that answer, with idle connections kept per serving thread.
//!
//! Bounds: `upstream.idle_connections` per upstream and thread, `upstream.all_idle_connections`
//! over all threads. Cost of a checkout: O(1) with an idle connection, O(upstreams) while some
//! refuse. Connections in use are bounded by the requests in flight.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::connection::Connection;
use super::set::{IdlePlace, Upstream, UpstreamSet};
use crate::config::UpstreamOptions;

/// Idle connections of one serving thread.
#[derive(Debug)]
pub struct ConnectionPool {
    /// The upstreams.
    set: Arc<UpstreamSet>,
    /// Limits and times.
    options: UpstreamOptions,
    /// Position of the round robin.
    next: AtomicUsize,
    /// Idle connections by upstream, the latest last. Latest out first keeps few connections warm
    /// and lets the others age.
    idle: Mutex<HashMap<u64, Vec<Connection>>>,
}

impl ConnectionPool {
    /// An empty pool over `set`; `offset` spreads the round robin of several threads.
    pub fn new(set: Arc<UpstreamSet>, options: UpstreamOptions, offset: usize) -> Self {
        Self {
            set,
            options,
            next: AtomicUsize::new(offset),
            idle: Mutex::default(),
        }
    }

    /// A connection to the worker with this instance. With `fresh`, idle connections are not used. `None` when the worker refuses, or
    /// is no upstream any more.
    pub async fn checkout_worker(&self, instance: u64, fresh: bool) -> Option<Connection> {
        let list = self.set.list();
        let upstream = list.iter().find(|upstream| upstream.instance == Some(instance))?;
        if !fresh && let Some(connection) = self.take_idle(upstream.id) {
            return Some(connection);
        }
        self.connect(upstream).await
    }

    /// A connection to the next upstream that accepts one. With `fresh`, idle connections are not used. `None` when all refused.
    ///
    /// Upstreams that answer come first, the others only when none of these accepts. A single dead
    /// frontend therefore costs one attempt.
    pub async fn checkout(&self, fresh: bool) -> Option<Connection> {
        let list = self.set.list();
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        for want_up in [true, false] {
            for step in 0..list.len() {
                let upstream = &list[(start.wrapping_add(step)) % list.len()];
                if self.set.is_up(upstream) != want_up {
                    continue;
                }
                if !fresh && let Some(connection) = self.take_idle(upstream.id) {
                    return Some(connection);
                }
                if let Some(connection) = self.connect(upstream).await {
                    return Some(connection);
                }
            }
        }
        None
    }

    /// Opens a connection within the limit. A failure moves the upstream behind all others for a
    /// while.
    async fn connect(&self, upstream: &Upstream) -> Option<Connection> {
        let limit = Duration::from_millis(self.options.connect_timeout_ms);
        let connect = upstream.open(self.set.tls(), limit);
        if let Ok(Ok(stream)) = tokio::time::timeout(limit, connect).await {
            self.set.accepted(upstream);
            return Some(Connection::new(stream, upstream.id));
        }
        self.set.refused(upstream, self.options.retry_after_ms);
        None
    }

    /// An idle connection that is young enough and still open; others are closed on the way.
    fn take_idle(&self, upstream: u64) -> Option<Connection> {
        let ttl = Duration::from_millis(self.options.idle_connection_ttl_ms);
        loop {
            let mut connection = self.idle.lock().get_mut(&upstream)?.pop()?;
            connection.idle_place = None;
            if connection.idle_since.elapsed() < ttl && connection.is_alive() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for later, up to the limit.
    pub(super) fn put(&self, mut connection: Connection) {
        connection.served = connection.served.saturating_add(1);
        connection.idle_since = Instant::now();
        let mut idle = self.idle.lock();
        let list = idle.entry(connection.upstream).or_default();
        if list.len() < self.options.idle_connections {
            connection.idle_place = IdlePlace::take(&self.set, self.options.all_idle_connections);
            if connection.idle_place.is_some() {
                list.push(connection);
            }
        }
    }

    /// Drops connections that were idle too long and connections to upstreams that left the list.
    ///
    /// It runs at an interval, so that idle connections close even when no request looks at them.
    pub fn prune(&self) {
        let ttl = Duration::from_millis(self.options.idle_connection_ttl_ms);
        let known: Vec<u64> = self.set.list().iter().map(|u| u.id).collect();
        let mut idle = self.idle.lock();
        idle.retain(|id, list| {
            list.retain(|connection| connection.idle_since.elapsed() < ttl);
            known.contains(id) && !list.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::WorkerUpstream;

    #[test]
    fn placed_request_goes_to_its_worker_and_to_no_other() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let set = Arc::new(UpstreamSet::default());
            assert!(!set.are_workers());
            let worker = |instance, url: &str| WorkerUpstream {
                instance,
                url: url.into(),
                server_name: None,
                transfer: None,
            };
            let url = format!("http://{}", live.local_addr().unwrap());
            set.replace_workers(&[worker(7, &url), worker(8, "http://127.0.0.1:1")])
                .unwrap();
            assert!(set.are_workers());
            let pool = ConnectionPool::new(set.clone(), UpstreamOptions::default(), 0);
            let first = pool.checkout_worker(7, false).await.unwrap();
            pool.put(first);
            assert!(pool.checkout_worker(7, false).await.unwrap().was_reused());
            assert!(pool.checkout_worker(8, false).await.is_none());
            assert!(pool.checkout_worker(9, false).await.is_none());
        });
    }

    #[test]
    fn idle_connections_are_bounded_over_all_pools() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let set = Arc::new(UpstreamSet::default());
            set.replace(&[format!("http://{}", live.local_addr().unwrap())])
                .unwrap();
            let options = UpstreamOptions {
                all_idle_connections: 3,
                ..UpstreamOptions::default()
            };
            let pools = [0, 1].map(|offset| ConnectionPool::new(set.clone(), options.clone(), offset));
            for pool in &pools {
                let mut busy = Vec::new();
                for _ in 0..2 {
                    busy.push(pool.checkout(true).await.unwrap());
                }
                for connection in busy {
                    pool.put(connection);
                }
            }
            assert_eq!(set.idle(), 3);
            let taken = pools[0].checkout(false).await.unwrap();
            assert!(taken.was_reused());
            assert_eq!(set.idle(), 2);
            drop(pools);
            assert_eq!(set.idle(), 0);
        });
    }

    #[test]
    fn refused_upstream_is_left_for_the_next() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let live = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let dead = {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                listener.local_addr().unwrap()
            };
            let set = Arc::new(UpstreamSet::default());
            let urls = [
                format!("http://{dead}"),
                format!("http://{}", live.local_addr().unwrap()),
            ];
            set.replace(&urls).unwrap();
            let pool = ConnectionPool::new(set.clone(), UpstreamOptions::default(), 0);
            assert!(pool.checkout(false).await.is_some());
            assert_eq!(set.list()[0].failures(), 1);
            assert!(!set.is_up(&set.list()[0]));
        });
    }
}
