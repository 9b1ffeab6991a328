//! The upstreams of the gateway: frontends, or the workers themselves, with their addresses and whether they answer.
//!
//! Where the workers themselves are the upstreams, each upstream has the id of its instance, and a placed request goes to its worker's upstream.
//!
//! The list is replaced as a whole, so a reader never waits. Replacing it is O(upstreams²), every other operation O(upstreams).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::TcpStream;

use super::resolver::{Addresses, Resolver};
use super::stream::Stream;
use super::tls::{Tls, TlsUpstream};
use super::transfer::Transfer;
use crate::ServiceError;

/// One `dynamo.frontend` process, or one worker.
#[derive(Debug)]
pub struct Upstream {
    /// Number of the upstream in this set; never used again.
    pub(super) id: u64,
    /// Instance of the worker; `None` for a frontend.
    pub(super) instance: Option<u64>,
    /// Host name or literal address, without brackets.
    host: String,
    /// Port.
    port: u16,
    /// Connector of a worker that runs prefill or decode alone; `None` for any other upstream.
    transfer: Option<Transfer>,
    /// How TLS begins; `None` for `http://`.
    tls: Option<TlsUpstream>,
    /// Addresses of the host; those of a name change with the answers of the resolver.
    addresses: Addresses,
    /// Time on [`UpstreamSet::now_ms`], milliseconds, until which this upstream is tried after all others.
    down_until_ms: AtomicU64,
    /// Connections that were refused or timed out.
    failures: AtomicU64,
    /// Whether the upstream gave no useful answer. It takes part again after a useful answer to a probe.
    is_distrusted: AtomicBool,
}

/// All upstreams, shared by all threads and replaced as a whole.
#[derive(Debug)]
pub struct UpstreamSet {
    /// Present upstreams, in the order given.
    list: ArcSwap<Vec<Arc<Upstream>>>,
    /// Id of the next upstream.
    next_id: AtomicU64,
    /// Idle connections over all pools of this set.
    idle: AtomicUsize,
    /// Changes of the list, and changes of an upstream between up and down.
    incarnation: AtomicU64,
    /// Origin of [`UpstreamSet::now_ms`].
    started: Instant,
    /// Whether the upstreams are workers.
    has_workers: AtomicBool,
    /// Resolver of the upstreams' host names.
    resolver: Resolver,
    /// Roots of `https://` upstreams.
    tls: Tls,
}

/// Address of a worker's HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerUpstream {
    /// Id of the worker's instance.
    pub instance: u64,
    /// `http://host[:port]` or `https://host[:port]`.
    pub url: String,
    /// Name that the certificate of an `https://` worker must have; `None` for the host of the URL.
    #[serde(default)]
    pub server_name: Option<String>,
    /// Connector of a worker that runs prefill or decode alone.
    #[serde(default)]
    pub transfer: Option<Transfer>,
}

impl Upstream {
    /// Takes the result of a probe.
    pub(super) fn probed(&self, answers: bool) {
        if self.is_distrusted.swap(!answers, Ordering::Relaxed) == answers {
            tracing::info!(upstream = self.authority(), answers, "an upstream was probed");
        }
    }

    /// Opens a connection, with TLS where the upstream has it. The caller sets a deadline.
    ///
    /// # Errors
    /// The address refuses, or the TLS session does not begin.
    pub(super) async fn open(&self, tls: &Tls, limit: Duration) -> std::io::Result<Stream> {
        let addresses = self.addresses.get(limit).await;
        let socket = TcpStream::connect(addresses.as_slice()).await?;
        // With Nagle's algorithm the second small write of a request would wait for an acknowledgement.
        let _ = socket.set_nodelay(true);
        let Some(upstream) = &self.tls else {
            return Ok(Stream::Plain(socket));
        };
        match upstream.connect(socket).await {
            Ok(session) => Ok(Stream::Tls(Box::new(session))),
            Err(error) => {
                tls.count_failure();
                // A few lines for each outage: a failure marks the upstream as down, a failed probe as distrusted.
                let is_known = self.down_until_ms.load(Ordering::Relaxed) != 0
                    || self.is_distrusted.load(Ordering::Relaxed);
                if !is_known {
                    tracing::warn!(upstream = self.authority(), %error, "TLS with an upstream fails; check its certificate, the \
                     host in its URL, and --upstream-ca");
                }
                Err(error)
            }
        }
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Number of refused or timed-out connections.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

impl Default for UpstreamSet {
    fn default() -> Self {
        Self {
            list: ArcSwap::default(),
            next_id: AtomicU64::new(1),
            idle: AtomicUsize::new(0),
            incarnation: AtomicU64::new(0),
            started: Instant::now(),
            has_workers: AtomicBool::new(false),
            resolver: Resolver::default(),
            tls: Tls::default(),
        }
    }
}

impl UpstreamSet {
    /// An empty set, whose `https://` upstreams are believed by these roots.
    pub fn with_tls(tls: Tls) -> Self {
        Self {
            tls,
            ..Self::default()
        }
    }

    /// Roots of `https://` upstreams.
    pub(super) fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Replaces the list by frontends. An upstream that stays keeps its connections.
    ///
    /// # Errors
    /// [`ServiceError::Config`] for a URL that is neither `http://host[:port]` nor `https://host[:port]`, and for roots that cannot
    /// be read.
    pub fn replace(&self, urls: &[String]) -> Result<(), ServiceError> {
        self.replace_all(urls.iter().map(|url| Wanted {
            instance: None,
            url,
            server_name: None,
            transfer: None,
        }))
    }

    /// Replaces the list by workers. A worker that stays under the same address keeps its connections.
    ///
    /// # Errors
    /// As [`UpstreamSet::replace`].
    pub fn replace_workers(&self, workers: &[WorkerUpstream]) -> Result<(), ServiceError> {
        self.replace_all(workers.iter().map(|worker| Wanted {
            instance: Some(worker.instance),
            url: &worker.url,
            server_name: worker.server_name.as_deref(),
            transfer: worker.transfer.as_ref(),
        }))?;
        self.has_workers.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Connector of a worker that runs prefill or decode alone; `None` for any other worker.
    pub fn transfer(&self, instance: u64) -> Option<Transfer> {
        let list = self.list.load();
        let upstream = list.iter().find(|upstream| upstream.instance == Some(instance))?;
        upstream.transfer.clone()
    }

    /// Instances of the workers that run prefill or decode alone and can also run whole requests. O(upstreams).
    pub fn able_to_run_whole(&self) -> HashSet<u64> {
        let list = self.list.load();
        let able = list.iter().filter(|upstream| {
            upstream
                .transfer
                .as_ref()
                .is_some_and(Transfer::runs_whole_requests)
        });
        able.filter_map(|upstream| upstream.instance).collect()
    }

    /// Whether the upstreams are workers, so that a placed request goes to one of them.
    pub fn are_workers(&self) -> bool {
        self.has_workers.load(Ordering::Relaxed)
    }

    /// Builds a new list from known and new upstreams, and swaps it whole.
    ///
    /// # Errors
    /// As [`UpstreamSet::replace`], and [`ServiceError::Io`] when a host name gets no thread for
    /// its resolver. The old list stays then.
    fn replace_all<'a>(&self, all: impl Iterator<Item = Wanted<'a>>) -> Result<(), ServiceError> {
        let old = self.list.load();
        let mut list = Vec::new();
        for wanted in all {
            let Place { host, port, has_tls } = parse_url(wanted.url)?;
            let name = wanted.server_name.unwrap_or(&host);
            let known = old.iter().find(|known| {
                known.instance == wanted.instance
                    && (&known.host, known.port) == (&host, port)
                    && known.transfer.as_ref() == wanted.transfer
                    && known
                        .tls
                        .as_ref()
                        .map_or(!has_tls, |tls| has_tls && tls.has_name(name))
            });
            if let Some(known) = known {
                list.push(known.clone());
                continue;
            }
            let tls = if has_tls {
                Some(self.tls.upstream(name)?)
            } else {
                None
            };
            let addresses = self
                .resolver
                .follow(&host, port)
                .map_err(|source| ServiceError::Io {
                    what: format!("starting the resolver of {host}"),
                    source,
                })?;
            list.push(Arc::new(Upstream {
                id: self.next_id.fetch_add(1, Ordering::Relaxed),
                instance: wanted.instance,
                host,
                port,
                transfer: wanted.transfer.cloned(),
                tls,
                addresses,
                down_until_ms: AtomicU64::new(0),
                failures: AtomicU64::new(0),
                is_distrusted: AtomicBool::new(false),
            }));
        }
        let ids = |list: &[Arc<Upstream>]| list.iter().map(|u| u.id).collect::<Vec<_>>();
        if ids(&list) != ids(&old) {
            self.incarnation.fetch_add(1, Ordering::Relaxed);
        }
        self.list.store(Arc::new(list));
        Ok(())
    }

    /// A number that changes when an upstream joined, left, or may have restarted.
    pub fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Relaxed)
    }

    /// The current list.
    pub fn list(&self) -> Arc<Vec<Arc<Upstream>>> {
        self.list.load_full()
    }

    /// Whether an upstream takes part in the round robin: it refused no connection recently, and it answers.
    pub fn is_up(&self, upstream: &Upstream) -> bool {
        upstream.down_until_ms.load(Ordering::Relaxed) <= self.now_ms()
            && !upstream.is_distrusted.load(Ordering::Relaxed)
    }

    /// Whether another upstream takes part in the round robin while the one with this id does not answer, or has left the list.
    ///
    /// The control plane takes a frontend that does not answer off the list. A worker that leaves the list may end its requests.
    pub fn has_better_than(&self, id: u64) -> bool {
        let list = self.list.load();
        let known = list.iter().find(|upstream| upstream.id == id);
        known.map_or(!self.are_workers(), |upstream| {
            upstream.is_distrusted.load(Ordering::Relaxed)
        }) && list
            .iter()
            .any(|upstream| upstream.id != id && self.is_up(upstream))
    }

    /// Keeps an upstream out of the round robin until a probe of it succeeds. Returns whether another upstream takes part.
    ///
    /// Without another upstream the flag changes nothing for requests: the only upstream is still
    /// tried.
    pub fn distrust(&self, id: u64) -> bool {
        let list = self.list.load();
        for upstream in list.iter().filter(|upstream| upstream.id == id) {
            upstream.is_distrusted.store(true, Ordering::Relaxed);
        }
        list.iter()
            .any(|upstream| upstream.id != id && self.is_up(upstream))
    }

    /// Records a connection that an upstream accepted.
    pub(super) fn accepted(&self, upstream: &Upstream) {
        if upstream.down_until_ms.swap(0, Ordering::Relaxed) != 0 {
            self.incarnation.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Moves an upstream that refused a connection behind all others for a while, and asks the resolver again.
    pub(super) fn refused(&self, upstream: &Upstream, for_ms: u64) {
        upstream.addresses.refresh();
        upstream.failures.fetch_add(1, Ordering::Relaxed);
        let until = self.now_ms() + for_ms;
        if upstream.down_until_ms.swap(until, Ordering::Relaxed) == 0 {
            self.incarnation.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Idle connections over all pools of this set.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.idle.load(Ordering::Relaxed)
    }

    /// Milliseconds since the set was made; monotonic.
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

/// An upstream that a new list has.
struct Wanted<'a> {
    /// Instance of a worker; `None` for a frontend.
    instance: Option<u64>,
    /// Base URL.
    url: &'a str,
    /// Name of the certificate, where it is not the host of the URL.
    server_name: Option<&'a str>,
    /// Connector of a worker that runs prefill or decode alone.
    transfer: Option<&'a Transfer>,
}

/// The parts of an upstream's URL.
struct Place {
    /// Host name or literal address, without brackets.
    host: String,
    /// Port.
    port: u16,
    /// The scheme is `https`.
    has_tls: bool,
}

/// The parts of `http://host[:port]` or `https://host[:port]`. Without a port it is 80 or 443.
///
/// # Errors
/// [`ServiceError::Config`] for another scheme, a path or a query.
fn parse_url(url: &str) -> Result<Place, ServiceError> {
    let wrong = || {
        ServiceError::Config(format!(
            "upstreams: got {url:?}, expected http://host[:port] or https://host[:port] without a path"
        ))
    };
    let uri: hyper::Uri = url.parse().map_err(|_| wrong())?;
    let has_tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong()),
    };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(wrong());
    }
    let host = uri.host().ok_or_else(wrong)?.trim_matches(['[', ']']).to_string();
    let port = uri.port_u16().unwrap_or(if has_tls { 443 } else { 80 });
    Ok(Place { host, port, has_tls })
}

/// One of `upstream.all_idle_connections` places; dropping it frees the place.
#[derive(Debug)]
pub(super) struct IdlePlace(Arc<UpstreamSet>);

impl IdlePlace {
    /// The count is raised before it is compared; a refused place lowers it when it is dropped.
    pub fn take(set: &Arc<UpstreamSet>, limit: usize) -> Option<Self> {
        let place = Self(set.clone());
        (set.idle.fetch_add(1, Ordering::Relaxed) < limit).then_some(place)
    }
}

impl Drop for IdlePlace {
    fn drop(&mut self) {
        self.0.idle.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_another_scheme_is_refused() {
        let set = UpstreamSet::default();
        assert!(set.replace(&["ftp://x:1".into()]).is_err());
        assert!(set.replace(&["localhost:8000".into()]).is_err());
        assert!(set.replace(&["http://x:1/path".into()]).is_err());
    }

    #[test]
    fn upstream_that_stays_keeps_its_identity() {
        let set = UpstreamSet::default();
        set.replace(&["http://a:1".into(), "http://b:2".into()]).unwrap();
        let before = set.list()[1].id;
        set.replace(&["http://b:2/".into()]).unwrap();
        assert_eq!(set.list()[0].id, before);
        assert_eq!(set.list()[0].authority(), "b:2");
    }

    #[test]
    fn an_upstream_that_is_distrusted_or_off_the_list_gives_way_to_another() {
        let set = UpstreamSet::default();
        let (one, other) = ("http://127.0.0.1:1".to_string(), "http://127.0.0.1:2".to_string());
        set.replace(&[one.clone(), other.clone()]).unwrap();
        let id = set.list()[0].id;
        assert!(
            !set.has_better_than(id),
            "an upstream that answers is as good as another"
        );
        assert!(set.distrust(id) && set.has_better_than(id));
        set.replace(std::slice::from_ref(&other)).unwrap();
        assert!(set.has_better_than(id), "the upstream is off the list");
        set.replace(&[]).unwrap();
        assert!(!set.has_better_than(id), "no other upstream answers");
    }
}
