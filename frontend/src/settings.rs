//! Settings of the frontend: the settings of Dynamo, read by Dynamo's own parser, and the settings of the routing service.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use dynamo_kv_router::KvRouterConfig;
use dynamo_llm::discovery::LoadThresholdConfig;
use dynamo_llm::entrypoint::RouterConfig;
use dynamo_llm::local_model::runtime_config::TokenizerBackend;
use dynamo_llm::local_model::{LocalModel, LocalModelBuilder};
use dynamo_runtime::pipeline::RouterMode;
use serde::Deserialize;
use wardrop_service::config::ServiceConfig;

use crate::control_plane::ControlPlaneSettings;

/// Everything that `wardrop frontend` hands over.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Settings of Dynamo's frontend.
    pub frontend: FrontendSettings,
    /// Settings of the routing service.
    #[serde(default)]
    pub wardrop: ServiceConfig,
    /// Whether Wardrop decides. Otherwise Dynamo routes every request, and no worker is followed.
    #[serde(default = "yes")]
    pub decides: bool,
    /// The process of admin API, live page and controller; `None` runs none.
    #[serde(default)]
    pub control_plane: Option<ControlPlaneSettings>,
}

/// Settings of Dynamo's frontend. The names are those of `FrontendConfig` in Dynamo's Python package.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrontendSettings {
    /// Address to listen on.
    pub http_host: String,
    /// Port to listen on.
    pub http_port: u16,
    /// Certificate for HTTPS, with `tls_key_path`.
    #[serde(default)]
    pub tls_cert_path: Option<PathBuf>,
    /// Key of the certificate.
    #[serde(default)]
    pub tls_key_path: Option<PathBuf>,
    /// Certificate authority that client certificates must come from.
    #[serde(default)]
    pub tls_client_ca_cert_path: Option<PathBuf>,
    /// Whether to serve KServe over gRPC in place of HTTP.
    #[serde(default)]
    pub kserve_grpc_server: bool,
    /// Port of the metrics beside gRPC; `None` takes Dynamo's default.
    #[serde(default)]
    pub grpc_metrics_port: Option<u16>,
    /// Prefix of Dynamo's metric names.
    #[serde(default)]
    pub metrics_prefix: Option<String>,
    /// Tokens per KV block for cards that name none.
    #[serde(default)]
    pub kv_cache_block_size: Option<u32>,
    /// Namespace that models are taken from; `None` takes every namespace.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Start of the namespaces that models are taken from.
    #[serde(default)]
    pub namespace_prefix: Option<String>,
    /// Name of a model whose folder is on this machine.
    #[serde(default)]
    pub model_name: Option<String>,
    /// Folder with tokeniser and template that replaces the worker's own.
    #[serde(default)]
    pub model_path: Option<PathBuf>,
    /// Times that one request may move to another worker.
    #[serde(default)]
    pub migration_limit: u32,
    /// Longest sequence that may still move, in tokens.
    #[serde(default)]
    pub migration_max_seq_len: Option<u32>,
    /// Whether to serve `/v1/messages`.
    #[serde(default)]
    pub enable_anthropic_api: bool,
    /// Whether to remove the billing preamble of some Anthropic clients.
    #[serde(default = "yes")]
    pub strip_anthropic_preamble: bool,
    /// Whether to send a separate event for each complete tool call.
    #[serde(default)]
    pub enable_streaming_tool_dispatch: bool,
    /// Whether to send a separate event for the complete reasoning.
    #[serde(default)]
    pub enable_streaming_reasoning_dispatch: bool,
    /// Field of answers that carries the reasoning.
    #[serde(default)]
    pub reasoning_field_name: Option<String>,
    /// Tokeniser library.
    #[serde(default)]
    pub tokenizer_backend: Option<TokenizerBackend>,
    /// Whether to use the default library where the chosen library cannot load a tokeniser.
    #[serde(default)]
    pub tokenizer_fallback: Option<bool>,
    /// Dynamo's own router: it chooses wherever Wardrop abstains.
    pub router: DynamoRouterSettings,
}

/// Settings of Dynamo's own router.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamoRouterSettings {
    /// How Dynamo chooses a worker.
    pub router_mode: RouterMode,
    /// Settings of the KV router, for the mode `kv`.
    #[serde(default)]
    pub kv_router_config: Option<KvRouterConfig>,
    /// Policy instance for prefill workers. The configuration type of Dynamo does not read it from JSON.
    #[serde(default)]
    pub router_prefill_policy: Option<String>,
    /// Policy instance for decode workers. The configuration type of Dynamo does not read it from JSON.
    #[serde(default)]
    pub router_decode_policy: Option<String>,
    /// Thresholds of a busy worker.
    #[serde(default)]
    pub load_threshold_config: LoadThresholdConfig,
    /// Idle time after which a session loses its worker, in seconds.
    #[serde(default)]
    pub session_affinity_ttl_secs: Option<u64>,
    /// Whether a session's worker is a must (`hard`) or a preference (`soft`).
    #[serde(default)]
    pub session_affinity_mode: Option<serde_json::Value>,
}

fn yes() -> bool {
    true
}

impl Settings {
    /// Reads `--settings FILE`, a file of JSON.
    ///
    /// # Errors
    /// What was received, and what is expected.
    pub fn from_arguments(mut arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let (flag, file) = (arguments.next(), arguments.next());
        let (Some("--settings"), Some(file), None) = (flag.as_deref(), file, arguments.next()) else {
            bail!("expected --settings FILE; start it as `wardrop frontend [any flag of dynamo.frontend]`");
        };
        let json = std::fs::read(&file).with_context(|| format!("--settings {file}"))?;
        let settings: Self = serde_json::from_slice(&json).context("--settings")?;
        settings.wardrop.check()?;
        Ok(settings)
    }
}

impl FrontendSettings {
    /// Dynamo's own view of these settings.
    ///
    /// # Errors
    /// A value that Dynamo refuses.
    pub async fn local_model(&self) -> anyhow::Result<LocalModel> {
        let mut builder = LocalModelBuilder::default();
        builder
            .http_host(Some(self.http_host.clone()))
            .http_port(self.http_port)
            .tls_cert_path(self.tls_cert_path.clone())
            .tls_key_path(self.tls_key_path.clone())
            .tls_client_ca_cert_path(self.tls_client_ca_cert_path.clone())
            .metrics_prefix(self.metrics_prefix.clone())
            .kv_cache_block_size(self.kv_cache_block_size)
            .namespace(self.namespace.clone())
            .namespace_prefix(self.namespace_prefix.clone())
            .model_name(self.model_name.clone())
            .migration_limit(Some(self.migration_limit))
            .migration_max_seq_len(self.migration_max_seq_len)
            .enable_anthropic_api(self.enable_anthropic_api)
            .strip_anthropic_preamble(self.strip_anthropic_preamble)
            .enable_streaming_tool_dispatch(self.enable_streaming_tool_dispatch)
            .enable_streaming_reasoning_dispatch(self.enable_streaming_reasoning_dispatch)
            .tokenizer_backend(self.tokenizer_backend)
            .router_config(Some(self.router.router_config()?));
        if let Some(field) = &self.reasoning_field_name {
            builder.reasoning_field(field.parse().map_err(anyhow::Error::msg)?);
        }
        if let Some(path) = &self.model_path {
            builder.model_path(path.clone());
        }
        builder.build().await
    }
}

impl DynamoRouterSettings {
    fn router_config(&self) -> anyhow::Result<RouterConfig> {
        let mut kv = self.kv_router_config.clone().unwrap_or_default();
        kv.router_prefill_policy.clone_from(&self.router_prefill_policy);
        kv.router_decode_policy.clone_from(&self.router_decode_policy);
        let mut config = RouterConfig::new(self.router_mode, kv);
        config.load_threshold_config = self.load_threshold_config.clone();
        config.session_affinity_ttl_secs = self.session_affinity_ttl_secs;
        if let Some(mode) = &self.session_affinity_mode {
            config.session_affinity_mode =
                serde_json::from_value(mode.clone()).context("session_affinity_mode")?;
        }
        Ok(config)
    }
}
