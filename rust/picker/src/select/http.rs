//! The selection service over HTTP, with the routes, fields, statuses and error bodies of Dynamo 1.6's selection service.
//!
//! A client of `dynamo.select_service` works against this service unchanged. Unknown fields are ignored, as Dynamo ignores them.
//!
//! Bounds: 32 MiB per body, and those of `bodies` over all. `docs/how-to/select.md` shows the calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wardrop_core::{LocalHash, WorkerId};
use wardrop_service::{Service, Usage};

use super::dump::Dumps;
use super::error::SelectError;
use super::selection::{PromptKey, Selection, Target};
use super::selector::{Caller, Selector, blocks_with};
use super::workers::{DEFAULT, WorkerRecord, pool_name};
use crate::facts;
use crate::headers::{TRACEPARENT, TRACESTATE};

/// Largest body, bytes: a prompt of two million token ids.
const MAX_BODY_BYTES: usize = 32 << 20;

type Answer = Result<Response, SelectError>;
type Shared = State<Arc<SelectHttp>>;

/// State that the routes share.
pub(crate) struct SelectHttp {
    /// Selections and reservations.
    pub selector: Arc<Selector>,
    /// The routing service, for its metrics page, its state and its receipts.
    pub service: Arc<Service>,
    /// Receipts that the service keeps.
    pub receipts: usize,
    /// Writer of the blocks of all pools.
    pub dumps: Dumps,
}

/// The routes.
pub(crate) fn routes(shared: SelectHttp) -> Router {
    Router::new()
        .route("/health", get(|| async { ok(&json!({"status": "ok"})) }))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/workers", get(list_workers).post(upsert_worker))
        .route("/workers/{id}", patch(patch_worker).delete(delete_worker))
        .route("/select", post(select))
        .route("/select_and_reserve", post(select_and_reserve))
        .route("/reservations", post(create_reservation))
        .route("/reservations/{id}", delete(free))
        .route("/reservations/{id}/prefill_complete", post(prefill_complete))
        .route("/reservations/{id}/output_block", post(output_block))
        .route("/loads", get(loads))
        .route("/potential_loads", post(potential_loads))
        .route("/overlap_scores", post(overlap_scores))
        .route("/dump", get(dump))
        .route("/v1/status", get(status))
        .route("/v1/wiring", get(wiring))
        .route("/v1/receipts/{request_id}", get(receipt))
        .fallback(|| async { error(StatusCode::NOT_FOUND, "route not found") })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(shared))
}

/// A prompt with its pool, and a name where the call has one.
#[derive(Deserialize)]
struct PromptBody {
    /// Id of the selection or reservation, which the caller chose.
    #[serde(default)]
    selection_id: Option<String>,
    /// Name of the model; `default` where absent.
    #[serde(default = "default_name")]
    model_name: String,
    /// Group of the workers; `default` where absent.
    #[serde(default = "default_name")]
    routing_group: String,
    /// Token ids of the prompt. They win over hashes.
    #[serde(default)]
    token_ids: Option<Vec<u32>>,
    /// Local hashes of the full blocks.
    #[serde(default)]
    block_hashes: Option<Vec<Hash>>,
    /// Tokens of the whole prompt, needed with hashes.
    #[serde(default)]
    isl_tokens: Option<u32>,
    /// Instances that may be chosen; `None` allows all.
    #[serde(default)]
    allowed_worker_ids: Option<Vec<u64>>,
    /// Instance that the caller chose itself.
    #[serde(default)]
    worker_id: Option<u64>,
    /// Rank of that instance; 0 where absent.
    #[serde(default)]
    dp_rank: Option<u32>,
    /// Uncached tokens by the caller's count. The service counts by its own index, and checks this figure only.
    #[serde(default)]
    effective_prefill_tokens: Option<u32>,
}

/// A hash, signed or unsigned: Dynamo writes both.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Hash {
    Unsigned(u64),
    Signed(i64),
}

impl Hash {
    /// The hash as unsigned bits.
    fn bits(self) -> u64 {
        match self {
            Self::Unsigned(bits) => bits,
            Self::Signed(bits) => bits.cast_unsigned(),
        }
    }
}

/// Query of a list; an absent field matches all.
#[derive(Deserialize)]
struct Filter {
    model_name: Option<String>,
    routing_group: Option<String>,
}

fn default_name() -> String {
    DEFAULT.into()
}

impl PromptBody {
    /// Takes the prompt and its pool out of the body.
    ///
    /// # Errors
    /// [`SelectError::Invalid`] without a prompt, or with hashes and no length.
    fn target(&mut self) -> Result<Target, SelectError> {
        let prompt = match (self.token_ids.take(), self.block_hashes.take()) {
            (Some(tokens), _) => PromptKey::Tokens(tokens),
            (None, Some(hashes)) => PromptKey::Hashes {
                hashes: hashes.into_iter().map(|hash| LocalHash(hash.bits())).collect(),
                input_tokens: self
                    .isl_tokens
                    .ok_or_else(|| SelectError::Invalid("isl_tokens is required without token_ids".into()))?,
            },
            (None, None) => {
                return Err(SelectError::Invalid(
                    "block_hashes is required without token_ids".into(),
                ));
            }
        };
        Ok(Target {
            model: self.model_name.clone(),
            group: self.routing_group.clone(),
            prompt,
            allowed: self.allowed_worker_ids.take(),
        })
    }
}

async fn ready(State(shared): Shared) -> Response {
    let workers = shared.selector.fleet.list(None, None);
    let schedulable = workers
        .iter()
        .filter(|worker| worker["lifecycle"] == "schedulable");
    let count = schedulable.count();
    let body = json!({"ready": count > 0, "schedulable_workers": count, "workers": workers});
    let status = if count > 0 {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, ok(&body)).into_response()
}

async fn metrics(State(shared): Shared) -> Response {
    (
        [(CONTENT_TYPE, "text/plain; version=0.0.4")],
        shared.service.render_metrics(),
    )
        .into_response()
}

async fn status(State(shared): Shared) -> Response {
    let service = &shared.service;
    let shown = json!({
        "control": service.parts(),
        "models": service.model_reports(),
        "feeds": service.feed_reports(),
    });
    ok(&shown)
}

async fn wiring(State(shared): Shared) -> Response {
    facts::wiring("select", shared.receipts)
}

async fn receipt(State(shared): Shared, Path(request_id): Path<String>) -> Response {
    facts::receipt(&shared.service, &request_id)
}

async fn list_workers(State(shared): Shared, Query(filter): Query<Filter>) -> Response {
    let (model, group) = (filter.model_name.as_deref(), filter.routing_group.as_deref());
    ok(&Value::from(shared.selector.fleet.list(model, group)))
}

async fn upsert_worker(State(shared): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let record = WorkerRecord::from_json(parse(&headers, &body)?)?;
    let shown = shared.selector.fleet.upsert(record)?;
    Ok((StatusCode::CREATED, ok(&shown)).into_response())
}

async fn patch_worker(State(shared): Shared, Path(id): Path<u64>, headers: HeaderMap, body: Bytes) -> Answer {
    let shown = shared.selector.fleet.patch(id, parse(&headers, &body)?)?;
    Ok(ok(&shown))
}

async fn delete_worker(State(shared): Shared, Path(id): Path<u64>) -> Answer {
    Ok(ok(&shared.selector.delete_worker(id)?))
}

async fn select(State(shared): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let mut body: PromptBody = parse(&headers, &body)?;
    let target = body.target()?;
    let id = body.selection_id.as_deref();
    let selection = shared.selector.select(id, &target)?;
    let mut shown = json!({});
    if let Some(id) = id {
        shown["selection_id"] = id.into();
    }
    add_choice(&mut shown, &selection);
    Ok(ok(&shown))
}

async fn select_and_reserve(State(shared): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let mut body: PromptBody = parse(&headers, &body)?;
    let target = body.target()?;
    let id = body.selection_id.unwrap_or_else(|| shared.selector.next_id());
    let selection = shared
        .selector
        .reserve(&id, &target, &caller(&headers, "/select_and_reserve"))?;
    let signed: Vec<i64> = selection
        .sequence_hashes
        .iter()
        .map(|hash| hash.cast_signed())
        .collect();
    let mut shown = json!({
        "selection_id": id,
        "sequence_hashes": signed,
        "isl_tokens": selection.input_tokens,
        "track_prefill_tokens": true,
    });
    add_choice(&mut shown, &selection);
    Ok(ok(&shown))
}

async fn create_reservation(State(shared): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let mut body: PromptBody = parse(&headers, &body)?;
    let missing = || SelectError::Invalid("selection_id is required".into());
    let id = body.selection_id.clone().ok_or_else(missing)?;
    let caller = caller(&headers, "/reservations");
    let selection = match body.worker_id {
        None => {
            let (model, group) = (&body.model_name, &body.routing_group);
            shared.selector.reserve_selected(&id, model, group, &caller)?
        }
        Some(instance) => {
            if body.token_ids.is_none() && body.block_hashes.is_none() {
                // Sequence hashes alone match no block in the index, so only the length counts.
                body.block_hashes = Some(Vec::new());
            }
            let effective = body.effective_prefill_tokens;
            let target = body.target()?;
            check_effective(effective, &target)?;
            let worker = WorkerId::new(instance, body.dp_rank.unwrap_or(0));
            shared.selector.reserve_on(&id, &target, worker, &caller)?
        }
    };
    let shown = json!({
        "selection_id": id,
        "model_name": selection.model,
        "routing_group": selection.group,
        "worker_id": selection.worker.instance,
        "dp_rank": selection.worker.dp_rank,
        "endpoint": selection.endpoint,
    });
    Ok((StatusCode::CREATED, ok(&shown)).into_response())
}

/// The caller's span, and the call that it made.
fn caller<'a>(headers: &'a HeaderMap, path: &'a str) -> Caller<'a> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    Caller {
        traceparent: text(TRACEPARENT),
        tracestate: text(TRACESTATE),
        path,
    }
}

/// Refuses more uncached tokens than the prompt has.
fn check_effective(effective: Option<u32>, target: &Target) -> Result<(), SelectError> {
    let input_tokens = match &target.prompt {
        PromptKey::Tokens(tokens) => u32::try_from(tokens.len()).unwrap_or(u32::MAX),
        PromptKey::Hashes { input_tokens, .. } => *input_tokens,
    };
    match effective {
        Some(tokens) if tokens > input_tokens => Err(SelectError::Invalid(format!(
            "effective_prefill_tokens ({tokens}) must not exceed isl_tokens ({input_tokens})"
        ))),
        _ => Ok(()),
    }
}

async fn prefill_complete(State(shared): Shared, Path(id): Path<String>) -> Answer {
    shared.selector.reservations.prefill_complete(&id)?;
    Ok(done())
}

async fn output_block(
    State(shared): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let _: Value = parse(&headers, &body)?;
    shared.selector.reservations.renew(&id)?;
    Ok(done())
}

async fn free(State(shared): Shared, Path(id): Path<String>) -> Answer {
    shared.selector.reservations.free(&id, Usage::default())?;
    Ok(done())
}

async fn loads(State(shared): Shared, Query(filter): Query<Filter>) -> Response {
    let (model, group) = (filter.model_name.as_deref(), filter.routing_group.as_deref());
    let mut pools: BTreeMap<String, (String, String)> = BTreeMap::new();
    for record in shared.selector.fleet.records(model, group) {
        let pool = pool_name(&record.model_name, &record.routing_group);
        pools.insert(pool, (record.model_name, record.routing_group));
    }
    let shown = pools.into_values().filter_map(|(model, group)| {
        let nothing = Target {
            model,
            group,
            prompt: PromptKey::Tokens(Vec::new()),
            allowed: None,
        };
        let (_, candidates) = shared.selector.candidates(&nothing).ok()?;
        let loads = candidates.iter().map(|candidate| {
            json!({
                "worker_id": candidate.worker.instance,
                "dp_rank": candidate.worker.dp_rank,
                "potential_prefill_tokens": candidate.prefill_tokens,
                "potential_decode_blocks": candidate.decode_blocks,
                "active_requests": candidate.active_requests,
            })
        });
        Some(json!({
            "model_name": nothing.model,
            "routing_group": nothing.group,
            "loads": loads.collect::<Vec<_>>(),
            // The selection service has no queue: a choice is made at once.
            "pending_count": 0,
            "pending_isl_tokens": 0,
        }))
    });
    ok(&Value::from(shown.collect::<Vec<_>>()))
}

async fn potential_loads(State(shared): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let mut body: PromptBody = parse(&headers, &body)?;
    let (prepared, candidates) = shared.selector.candidates(&body.target()?)?;
    let shown = candidates.iter().map(|candidate| {
        let cached = u64::from(candidate.device_blocks) * u64::from(prepared.block_size());
        let new = u64::from(prepared.input_tokens()).saturating_sub(cached);
        json!({
            "worker_id": candidate.worker.instance,
            "dp_rank": candidate.worker.dp_rank,
            "potential_prefill_tokens": candidate.prefill_tokens + new,
            "potential_decode_blocks": blocks_with(candidate, &prepared),
            "active_requests": candidate.active_requests,
        })
    });
    Ok(ok(&Value::from(shown.collect::<Vec<_>>())))
}

async fn overlap_scores(State(shared): Shared, headers: HeaderMap, body: Bytes) -> Answer {
    let mut body: PromptBody = parse(&headers, &body)?;
    let (prepared, candidates) = shared.selector.candidates(&body.target()?)?;
    let workers = candidates.iter().map(|candidate| {
        json!({
            "worker_id": candidate.worker.instance,
            "dp_rank": candidate.worker.dp_rank,
            "device_blocks": candidate.device_blocks,
            "host_pinned_blocks": candidate.host_blocks,
            "disk_blocks": candidate.disk_blocks,
            "host_pinned_extension_blocks": candidate.host_blocks,
            "disk_extension_blocks": candidate.disk_blocks,
            "shared_beyond_device_blocks": null,
        })
    });
    Ok(ok(&json!({
        "block_size": prepared.block_size(),
        "num_blocks": prepared.sequence_hashes().len(),
        "workers": workers.collect::<Vec<_>>(),
        "shared_cache": {"enabled": false, "total_hit_blocks": 0, "ranges": [], "error": null},
    })))
}

async fn dump(State(shared): Shared, Query(filter): Query<Filter>) -> Answer {
    let (model, group) = (filter.model_name.as_deref(), filter.routing_group.as_deref());
    shared.dumps.answer(&shared.selector.fleet.records(model, group))
}

/// Adds the choice under Dynamo's field names. Only the device tier is counted, so all tiers show
/// the same tokens.
fn add_choice(shown: &mut Value, selection: &Selection) {
    let cached = selection.cached_tokens;
    let mut ranks = serde_json::Map::new();
    ranks.insert(selection.worker.dp_rank.to_string(), cached.into());
    let choice = json!({
        "model_name": selection.model,
        "routing_group": selection.group,
        "worker_id": selection.worker.instance,
        "dp_rank": selection.worker.dp_rank,
        "endpoint": selection.endpoint,
        "block_size": selection.block_size,
        "overlap": {"longest_matched": cached, "gpu": cached, "dp": ranks, "cpu": cached, "disk": cached},
        "effective_prefill_tokens": selection.prefill_tokens(),
        "potential_decode_blocks": selection.decode_blocks,
    });
    if let (Value::Object(shown), Value::Object(choice)) = (shown, choice) {
        shown.extend(choice);
    }
}

/// Reads a body that is declared as JSON.
///
/// # Errors
/// [`SelectError::NoJson`] for another content type, [`SelectError::Invalid`] for JSON of another
/// form.
fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: &Bytes) -> Result<T, SelectError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/json")) {
        return Err(SelectError::NoJson);
    }
    serde_json::from_slice(body)
        .map_err(|error| SelectError::Invalid(format!("Failed to parse the request body as JSON: {error}")))
}

fn done() -> Response {
    ok(&json!({"status": "ok"}))
}

fn ok(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// An error in the form of Dynamo's selection service.
pub(super) fn error(status: StatusCode, text: &str) -> Response {
    (status, ok(&json!({"error": text}))).into_response()
}

impl IntoResponse for SelectError {
    fn into_response(self) -> Response {
        error(self.status(), &self.to_string())
    }
}
