//! Recovery of the index: workers answer with all their blocks, at the start and after lost events.
//!
//! Each publisher of KV events serves an endpoint `worker_kv_query_source_ID` beside the worker's own. A worker whose events are incomplete
//! is asked over Dynamo's request plane, a few workers at a time. After a failed answer the worker's blocks stay suspect, and the worker is asked again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use dynamo_kv_router::indexer::{WorkerKvQueryKind, WorkerKvQueryRequest, WorkerKvQueryResponse};
use dynamo_kv_router::protocols::RouterEvent;
use dynamo_runtime::component::{Endpoint, Instance};
use dynamo_runtime::discovery::{DiscoveryInstance, DiscoveryQuery};
use dynamo_runtime::pipeline::{AddressedPushRouter, AddressedRequest, AsyncEngine as _, ManyOut, SingleIn};
use dynamo_runtime::traits::DistributedRuntimeProvider as _;
use futures::StreamExt as _;
use wardrop_core::WorkerId;
use wardrop_service::DoorFeed;

/// Name of the query endpoints, before the publisher's id.
const QUERY_PREFIX: &str = "worker_kv_query_source_";
/// Time between two looks for workers whose index is incomplete.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Most workers that are asked at the same time, because each answer may hold all blocks of a worker.
const QUERIES: usize = 8;
/// Longest wait for one worker's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Events in one payload for the routing service, below its decoder's limit.
const EVENTS_PER_PAYLOAD: usize = 4096;

/// Recovers the workers of one pool for the life of the process.
pub async fn run(endpoint: Endpoint, feed: Arc<DoorFeed>) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let needing = feed.needing_dump();
        if needing.is_empty() {
            continue;
        }
        let sources = match sources(&endpoint).await {
            Ok(sources) => sources,
            Err(error) => {
                tracing::debug!(%error, "the query endpoints of workers cannot be listed");
                continue;
            }
        };
        // A worker that does not answer must not delay the other workers.
        futures::stream::iter(needing)
            .for_each_concurrent(QUERIES, |worker| {
                recover_from_any(&endpoint, &feed, worker, &sources)
            })
            .await;
    }
}

/// Asks the query endpoints of one worker in turn.
async fn recover_from_any(endpoint: &Endpoint, feed: &DoorFeed, worker: WorkerId, sources: &[Instance]) {
    let own = sources
        .iter()
        .filter(|source| source.instance_id == worker.instance);
    for source in own {
        match recover(endpoint, feed, worker, source).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(%worker, error = format!("{error:#}"), "the blocks of a worker cannot be recovered")
            }
        }
    }
}

/// The query endpoints of all workers beside `endpoint`.
async fn sources(endpoint: &Endpoint) -> anyhow::Result<Vec<Instance>> {
    let id = endpoint.id();
    let query = DiscoveryQuery::ComponentEndpoints {
        namespace: id.namespace,
        component: id.component,
    };
    let instances = endpoint.drt().discovery().list(query).await?;
    Ok(instances
        .into_iter()
        .filter_map(|instance| match instance {
            DiscoveryInstance::Endpoint(instance) => Some(instance),
            _ => None,
        })
        .filter(|instance| instance.endpoint.starts_with(QUERY_PREFIX))
        .collect())
}

async fn recover(
    endpoint: &Endpoint,
    feed: &DoorFeed,
    worker: WorkerId,
    source: &Instance,
) -> anyhow::Result<()> {
    let request = WorkerKvQueryRequest {
        worker_id: worker.instance,
        dp_rank: worker.dp_rank,
        start_event_id: None,
        end_event_id: None,
        supports_tree_dump_failed: true,
        kind: WorkerKvQueryKind::Recovery,
    };
    // From here on the service keeps the live events and joins them with the answer.
    if !feed.begin_dump(worker) {
        return Ok(());
    }
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, ask(endpoint, request, source.clone()));
    let events = match answer.await.context("no answer in time")?? {
        WorkerKvQueryResponse::TreeDump { events, .. } | WorkerKvQueryResponse::Events { events, .. } => {
            events
        }
        WorkerKvQueryResponse::TreeDumpFailed { message, .. } | WorkerKvQueryResponse::Error(message) => {
            bail!(message)
        }
        _ => bail!("an answer of another kind"),
    };
    let payloads = payloads(&events)?;
    if feed.load_dump(worker, &payloads)? {
        tracing::info!(%worker, events = events.len(), "the blocks of a worker are known");
    }
    Ok(())
}

async fn ask(
    endpoint: &Endpoint,
    request: WorkerKvQueryRequest,
    source: Instance,
) -> anyhow::Result<WorkerKvQueryResponse> {
    let router = AddressedPushRouter::from_runtime_provider(endpoint).await?;
    let request = SingleIn::new(request).map(|request| AddressedRequest::for_instance(request, source));
    let mut answers: ManyOut<WorkerKvQueryResponse> = router.generate(request).await?;
    answers.next().await.context("an empty answer")
}

/// The events as payloads of the topic `kv-events`, so that the service reads them with its own limits.
fn payloads(events: &[RouterEvent]) -> anyhow::Result<Vec<Vec<u8>>> {
    let chunks = events.chunks(EVENTS_PER_PAYLOAD);
    chunks.map(|chunk| Ok(rmp_serde::to_vec_named(chunk)?)).collect()
}
