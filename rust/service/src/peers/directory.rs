//! From the names of peers to links: one link for each address that a name has.
//!
//! Names are resolved again every few seconds, so that a name in Kubernetes' DNS follows the routers behind it. An address that no
//! name has any more loses its link once its stream is over. O(addresses) per look.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Shared;
use super::link::{Link, LinkStatus};

/// Time between two looks at the names.
const RESOLVE_EVERY: Duration = Duration::from_secs(2);
/// Longest wait for the addresses of a name.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The links of this router.
pub(super) struct Directory {
    shared: Arc<Shared>,
    links: Vec<(Arc<LinkStatus>, Task)>,
    /// Whether the last look found more addresses than links may be.
    was_full: bool,
}

/// A task that ends with this value.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Directory {
    /// No links yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            links: Vec::new(),
            was_full: false,
        }
    }

    /// Looks at the names for as long as the task lives.
    pub async fn run(mut self) {
        if self.shared.options.routers.is_empty() {
            return;
        }
        loop {
            let (addresses, is_whole) = self.resolve().await;
            self.follow(&addresses, is_whole);
            tokio::time::sleep(RESOLVE_EVERY).await;
        }
    }

    /// Every address of every name, and whether every name had an answer.
    async fn resolve(&self) -> (BTreeSet<SocketAddr>, bool) {
        let mut addresses = BTreeSet::new();
        let mut is_whole = true;
        for name in &self.shared.options.routers {
            let looking = tokio::net::lookup_host(name.as_str());
            if let Ok(Ok(found)) = tokio::time::timeout(RESOLVE_TIMEOUT, looking).await {
                addresses.extend(found);
            } else {
                is_whole = false;
                tracing::debug!(name, "the name of a peer has no address now");
            }
        }
        (addresses, is_whole)
    }

    /// Begins links to new addresses, and ends those without a stream that no name leads to.
    fn follow(&mut self, addresses: &BTreeSet<SocketAddr>, is_whole: bool) {
        // A name without an answer says nothing of its addresses.
        if is_whole {
            self.links
                .retain(|(status, _)| addresses.contains(&status.address) || status.is_connected());
        }
        let most = self.shared.options.max_peers;
        for &address in addresses {
            if self.links.iter().any(|(status, _)| status.address == address) {
                continue;
            }
            if self.links.len() >= most {
                if !std::mem::replace(&mut self.was_full, true) {
                    tracing::warn!(
                        most,
                        "more peers than peers.max_peers; the others are not followed"
                    );
                }
                break;
            }
            let status = Arc::new(LinkStatus::new(address));
            let link = Link::new(self.shared.clone(), status.clone());
            self.links.push((status, Task(tokio::spawn(link.run()))));
        }
        *self.shared.links.lock() = self.links.iter().map(|(status, _)| status.clone()).collect();
    }
}
