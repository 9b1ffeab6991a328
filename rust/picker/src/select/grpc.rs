//! The selection service over gRPC: `proto/wardrop/v1/select.proto`.
//!
//! A repeated call gets the answer of the first call. A second `Reserve` with the same id and target finds the reservation. A second
//! `Free` answers that no reservation was open.
//!
//! Each call is O(1) beside its decision. Errors map to gRPC statuses in `From<SelectError>`.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use wardrop_core::{LocalHash, WorkerId};
use wardrop_service::Usage;

use super::error::SelectError;
use super::selection::{PromptKey, Selection, Target};
use super::selector::{Caller, Selector, blocks_with};
use super::workers::{DEFAULT, WorkerRecord};
use crate::headers::{TRACEPARENT, TRACESTATE};
use crate::proto::select as proto;
use crate::proto::select::selection_server::Selection as SelectionRpc;

/// The service that clients call.
pub(crate) struct SelectGrpc {
    /// Selections and reservations.
    pub selector: Arc<Selector>,
}

/// A response, or the status of a refusal.
type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl SelectionRpc for SelectGrpc {
    async fn upsert_worker(
        &self,
        request: Request<proto::UpsertWorkerRequest>,
    ) -> Answer<proto::UpsertWorkerResponse> {
        let worker = request.into_inner().worker.ok_or_else(|| missing("worker"))?;
        let known = |size: u64| Some(size).filter(|size| *size > 0);
        let record = WorkerRecord {
            worker_id: worker.worker_id,
            model_name: worker.model,
            routing_group: group(worker.routing_group),
            endpoint: Some(worker.endpoint),
            kv_events_endpoints: BTreeMap::new(),
            replay_endpoint: None,
            block_size: Some(worker.block_size),
            data_parallel_start_rank: Some(worker.first_rank),
            data_parallel_size: Some(worker.ranks.max(1)),
            max_num_batched_tokens: known(worker.max_batched_tokens),
            total_kv_blocks: known(worker.kv_blocks),
        };
        if let Some(reason) = record.reasons().first() {
            return Err(Status::invalid_argument(format!("worker: {reason}")));
        }
        self.selector.fleet.upsert(record)?;
        Ok(Response::new(proto::UpsertWorkerResponse {}))
    }

    async fn delete_worker(
        &self,
        request: Request<proto::DeleteWorkerRequest>,
    ) -> Answer<proto::DeleteWorkerResponse> {
        self.selector.delete_worker(request.into_inner().worker_id)?;
        Ok(Response::new(proto::DeleteWorkerResponse {}))
    }

    async fn list_workers(
        &self,
        _request: Request<proto::ListWorkersRequest>,
    ) -> Answer<proto::ListWorkersResponse> {
        let records = self.selector.fleet.records(None, None).into_iter();
        let workers = records.map(|record| proto::Worker {
            worker_id: record.worker_id,
            model: record.model_name,
            routing_group: record.routing_group,
            endpoint: record.endpoint.unwrap_or_default(),
            block_size: record.block_size.unwrap_or(0),
            first_rank: record.data_parallel_start_rank.unwrap_or(0),
            ranks: record.data_parallel_size.unwrap_or(1),
            kv_blocks: record.total_kv_blocks.unwrap_or(0),
            max_batched_tokens: record.max_num_batched_tokens.unwrap_or(0),
        });
        Ok(Response::new(proto::ListWorkersResponse {
            workers: workers.collect(),
        }))
    }

    async fn select(&self, request: Request<proto::SelectRequest>) -> Answer<proto::SelectResponse> {
        let request = request.into_inner();
        let target = read_target(request.target)?;
        let id = Some(request.selection_id).filter(|id| !id.is_empty());
        let selection = self.selector.select(id.as_deref(), &target)?;
        Ok(Response::new(proto::SelectResponse {
            choice: Some(choice(&selection)),
        }))
    }

    async fn reserve(&self, request: Request<proto::ReserveRequest>) -> Answer<proto::ReserveResponse> {
        let (metadata, _, request) = request.into_parts();
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let caller = Caller {
            traceparent: text(TRACEPARENT),
            tracestate: text(TRACESTATE),
            path: "/wardrop.v1.Selection/Reserve",
        };
        let id = request.selection_id;
        let target = read_target(request.target)?;
        if request.from_select && request.worker.is_some() {
            return Err(Status::invalid_argument(
                "got worker and from_select, expected at most one of them",
            ));
        }
        let selection = match request.worker {
            _ if request.from_select => {
                self.selector
                    .reserve_selected(&id, &target.model, &target.group, &caller)
            }
            Some(rank) => {
                self.selector
                    .reserve_on(&id, &target, WorkerId::new(rank.worker_id, rank.dp_rank), &caller)
            }
            None => self.selector.reserve(&id, &target, &caller),
        };
        let selection = match selection {
            Err(SelectError::Conflict(text)) => {
                let first = self.selector.reserved(&id, &target);
                first.ok_or(SelectError::Conflict(text))?
            }
            other => other?,
        };
        Ok(Response::new(proto::ReserveResponse {
            choice: Some(choice(&selection)),
        }))
    }

    async fn prefill_complete(
        &self,
        request: Request<proto::PrefillCompleteRequest>,
    ) -> Answer<proto::PrefillCompleteResponse> {
        self.selector
            .reservations
            .prefill_complete(&request.into_inner().selection_id)?;
        Ok(Response::new(proto::PrefillCompleteResponse {}))
    }

    async fn renew(&self, request: Request<proto::RenewRequest>) -> Answer<proto::RenewResponse> {
        self.selector
            .reservations
            .renew(&request.into_inner().selection_id)?;
        Ok(Response::new(proto::RenewResponse {}))
    }

    async fn free(&self, request: Request<proto::FreeRequest>) -> Answer<proto::FreeResponse> {
        let request = request.into_inner();
        let usage = Usage {
            cached_tokens: request.cached_tokens.map(u64::from),
            prompt_tokens: None,
            output_tokens: request.output_tokens,
        };
        let was_open = match self.selector.reservations.free(&request.selection_id, usage) {
            Ok(()) => true,
            Err(SelectError::NotFound(_)) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(Response::new(proto::FreeResponse { was_open }))
    }

    async fn loads(&self, request: Request<proto::LoadsRequest>) -> Answer<proto::LoadsResponse> {
        let request = request.into_inner();
        let target = Target {
            model: request.model,
            group: group(request.routing_group),
            prompt: request
                .prompt
                .map_or_else(|| Ok(PromptKey::Tokens(Vec::new())), read_prompt)?,
            allowed: None,
        };
        let (prepared, candidates) = self.selector.candidates(&target)?;
        let loads = candidates.iter().map(|candidate| {
            let cached = u64::from(candidate.device_blocks) * u64::from(prepared.block_size());
            proto::Load {
                rank: Some(rank(candidate.worker)),
                prefill_tokens: candidate.prefill_tokens
                    + u64::from(prepared.input_tokens()).saturating_sub(cached),
                decode_blocks: blocks_with(candidate, &prepared),
                active_requests: candidate.active_requests,
                device_blocks: candidate.device_blocks,
            }
        });
        Ok(Response::new(proto::LoadsResponse {
            loads: loads.collect(),
        }))
    }
}

impl From<SelectError> for Status {
    fn from(error: SelectError) -> Self {
        let text = error.to_string();
        match error {
            SelectError::Invalid(_) | SelectError::NoJson => Self::invalid_argument(text),
            SelectError::NotFound(_) => Self::not_found(text),
            SelectError::Conflict(_) => Self::already_exists(text),
            SelectError::NotReady(_) => Self::unavailable(text),
            SelectError::Full(_) => Self::resource_exhausted(text),
        }
    }
}

/// The status for a message without a field that it needs.
fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field}: got nothing, expected a value"))
}

/// Name of a group; protobuf's empty text stands for the default.
fn group(name: String) -> String {
    if name.is_empty() { DEFAULT.into() } else { name }
}

fn rank(worker: WorkerId) -> proto::Rank {
    proto::Rank {
        worker_id: worker.instance,
        dp_rank: worker.dp_rank,
    }
}

/// Reads pool, prompt and allowed workers. An empty list of workers allows all, because protobuf
/// has no absent list.
fn read_target(target: Option<proto::Target>) -> Result<Target, Status> {
    let target = target.ok_or_else(|| missing("target"))?;
    Ok(Target {
        model: target.model,
        group: group(target.routing_group),
        prompt: read_prompt(target.prompt.unwrap_or_default())?,
        allowed: Some(target.allowed_worker_ids).filter(|ids| !ids.is_empty()),
    })
}

/// Reads token ids, or hashes with a length, and refuses both together.
fn read_prompt(prompt: proto::Prompt) -> Result<PromptKey, Status> {
    if prompt.block_hashes.is_empty() && prompt.input_tokens == 0 {
        return Ok(PromptKey::Tokens(prompt.token_ids));
    }
    if !prompt.token_ids.is_empty() {
        return Err(Status::invalid_argument(
            "prompt: got token_ids and block_hashes, expected one of them",
        ));
    }
    Ok(PromptKey::Hashes {
        hashes: prompt.block_hashes.into_iter().map(LocalHash).collect(),
        input_tokens: prompt.input_tokens,
    })
}

fn choice(selection: &Selection) -> proto::Choice {
    proto::Choice {
        rank: Some(rank(selection.worker)),
        endpoint: selection.endpoint.clone(),
        cached_tokens: selection.cached_tokens,
        prefill_tokens: selection.prefill_tokens(),
    }
}
