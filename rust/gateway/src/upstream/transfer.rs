//! How the KV blocks of a prompt get from a prefill worker to a decode worker: what a router has to send for each connector.
//!
//! Sources: `NixlConnector` of vLLM with the proxy of its integration tests; the mini load balancer of `SGLang`.

use serde::Deserialize;

/// Connector of a worker that runs prefill or decode alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Transfer {
    /// vLLM: the prefill worker answers first, and its answer says where the decode worker finds the blocks.
    ///
    /// A worker with this connector also runs whole requests.
    Vllm,
    /// `SGLang`: both workers get the request at once, with the address at which they meet.
    Sglang {
        /// Host of the prefill worker's bootstrap server, as the decode worker reaches it.
        bootstrap_host: String,
        /// Port of the bootstrap server.
        bootstrap_port: u16,
        /// Data-parallel ranks of the worker. `SGLang` takes the remainder of the room as the prefill rank.
        ranks: u32,
    },
}

impl Transfer {
    /// Whether a decode worker with this connector also runs prefills.
    pub fn runs_whole_requests(&self) -> bool {
        matches!(self, Self::Vllm)
    }
}
