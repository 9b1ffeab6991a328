//! `GET /dump`: the blocks of every pool as Dynamo's indexer writes them, so that an indexer of Dynamo can start from them.
//!
//! The answer is `{"model:group": {"block_size": N, "events": [RouterEvent…]}}`. Each event stores up to 64 blocks of one worker, and a
//! parent precedes its children. Ids of events count from 0 in each pool.
//!
//! One dump is written at a time, pool by pool, in pieces of 64 KiB. A reader that takes no piece for 30 s ends it. Memory: 16 bytes
//! per held block of the pool that is being written, and at most [`MAX_BLOCKS`] of them. O(blocks · holders).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use wardrop_core::{EngineHash, KvEvent, LocalHash, Tier, WorkerId};
use wardrop_service::{PoolName, Service};

use super::error::SelectError;
use super::workers::WorkerRecord;

/// Most (worker, tier, block) triples of one pool: 256 MB while it is written.
const MAX_BLOCKS: u64 = 1 << 24;
/// Bytes after which a piece is sent.
const PIECE_BYTES: usize = 64 << 10;
/// Pieces that wait for the reader.
const PIECES: usize = 4;
/// Longest time for which a reader may take no piece.
const READER_PATIENCE: Duration = Duration::from_secs(30);

/// A pool to write: its name in the routing service and in the answer.
struct Pool {
    /// Model of the routing service.
    name: String,
    /// `model:group`, as Dynamo names it.
    shown: String,
    /// Tokens of a block.
    block_size: u32,
}

/// One event in Dynamo's form.
#[derive(Serialize)]
struct RouterEvent {
    worker_id: u64,
    storage_tier: &'static str,
    residency_domain: &'static str,
    event: CacheEvent,
}

#[derive(Serialize)]
struct CacheEvent {
    event_id: u64,
    data: Data,
    dp_rank: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Data {
    Stored(Stored),
}

#[derive(Serialize)]
struct Stored {
    parent_hash: Option<EngineHash>,
    /// Dynamo's position of the first block, which its own dump leaves open too.
    start_position: Option<u32>,
    blocks: Vec<Held>,
}

#[derive(Serialize)]
struct Held {
    block_hash: EngineHash,
    tokens_hash: LocalHash,
    /// Objects in a block beside text, which the index keeps within the hash only.
    mm_extra_info: Option<()>,
}

/// Writer of dumps, one at a time.
pub(crate) struct Dumps {
    service: Arc<Service>,
    turn: Arc<Semaphore>,
    /// Longest time for which a reader may take no piece.
    reader_patience: Duration,
}

impl Dumps {
    /// A writer for the pools of a routing service.
    pub fn new(service: Arc<Service>) -> Self {
        Self {
            service,
            turn: Arc::new(Semaphore::new(1)),
            reader_patience: READER_PATIENCE,
        }
    }

    /// The pools of the given workers, as the body of an answer that is written while it is read.
    ///
    /// # Errors
    /// [`SelectError::NotReady`] while another dump is being written, [`SelectError::Full`] for a pool with too many blocks.
    pub fn answer(&self, workers: &[WorkerRecord]) -> Result<Response, SelectError> {
        let Ok(turn) = self.turn.clone().try_acquire_owned() else {
            let text = "another dump is being written; ask again once it is read to its end";
            return Err(SelectError::NotReady(text.into()));
        };
        let pools = pools(workers);
        for pool in &pools {
            let blocks = self.service.held_blocks(&aggregated(&pool.name)).unwrap_or(0);
            if blocks > MAX_BLOCKS {
                return Err(SelectError::Full(format!(
                    "{} holds {blocks} blocks, expected at most {MAX_BLOCKS} in a dump; ask for other pools by model_name and routing_group",
                    pool.shown
                )));
            }
        }
        let body = Body::from_stream(self.begin(turn, pools));
        Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
    }

    /// Starts to write. The pieces end with an error where the dump ended early.
    ///
    /// Without this error the end of the body would look regular to a reader that parses no JSON.
    fn begin(
        &self,
        turn: OwnedSemaphorePermit,
        pools: Vec<Pool>,
    ) -> impl Stream<Item = io::Result<Bytes>> + use<> {
        let (pieces, reader) = mpsc::channel(PIECES);
        let is_whole = Arc::new(AtomicBool::new(false));
        let mut writer = Writer {
            pieces,
            runtime: tokio::runtime::Handle::current(),
            buffer: Vec::with_capacity(2 * PIECE_BYTES),
            reader_patience: self.reader_patience,
            _turn: turn,
        };
        let (service, written) = (self.service.clone(), is_whole.clone());
        tokio::task::spawn_blocking(move || {
            let result = writer.write(&service, &pools);
            written.store(result.is_ok(), Ordering::Release);
        });
        let mut is_over = false;
        let end = std::iter::from_fn(move || {
            let is_broken = !std::mem::replace(&mut is_over, true) && !is_whole.load(Ordering::Acquire);
            is_broken.then(|| Err(io::Error::other("the dump ended early")))
        });
        ReceiverStream::new(reader).map(Ok).chain(tokio_stream::iter(end))
    }
}

/// The distinct pools of the workers, by name.
fn pools(workers: &[WorkerRecord]) -> Vec<Pool> {
    let mut by_name = BTreeMap::new();
    for worker in workers {
        let Some(block_size) = worker.block_size else {
            continue;
        };
        let shown = format!("{}:{}", worker.model_name, worker.routing_group);
        by_name.insert(shown, (worker.pool(), block_size));
    }
    let pools = by_name.into_iter().map(|(shown, (name, block_size))| Pool {
        name,
        shown,
        block_size,
    });
    pools.collect()
}

/// The pool of the routing service behind a pool of the selection service.
const fn aggregated(model: &str) -> PoolName<'_> {
    PoolName {
        model,
        role: "aggregated",
    }
}

/// A dump that is being written.
struct Writer {
    pieces: mpsc::Sender<Bytes>,
    runtime: tokio::runtime::Handle,
    buffer: Vec<u8>,
    reader_patience: Duration,
    /// Free again when the writer is dropped.
    _turn: OwnedSemaphorePermit,
}

impl Writer {
    /// Writes all pools.
    ///
    /// # Errors
    /// The reader left, or took no piece for `reader_patience`.
    fn write(&mut self, service: &Service, pools: &[Pool]) -> io::Result<()> {
        self.buffer.push(b'{');
        for (number, pool) in pools.iter().enumerate() {
            if number > 0 {
                self.buffer.push(b',');
            }
            serde_json::to_writer(&mut self.buffer, &pool.shown)?;
            self.buffer
                .extend(format!(":{{\"block_size\":{},\"events\":[", pool.block_size).bytes());
            // A pool that left since the call has no blocks.
            let stores = service.stores(&aggregated(&pool.name)).unwrap_or_default();
            for (event_id, (worker, event)) in (0u64..).zip(stores) {
                let Some(event) = router_event(worker, event_id, event) else {
                    continue;
                };
                if event_id > 0 {
                    self.buffer.push(b',');
                }
                serde_json::to_writer(&mut self.buffer, &event)?;
                self.send_if_full()?;
            }
            self.buffer.extend(b"]}");
            self.send_if_full()?;
        }
        self.buffer.push(b'}');
        self.send()
    }

    /// Hands what is written to the reader, once it is a piece.
    ///
    /// # Errors
    /// As [`Writer::write`].
    fn send_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() < PIECE_BYTES {
            return Ok(());
        }
        self.send()
    }

    /// Hands what is written to the reader.
    ///
    /// # Errors
    /// As [`Writer::write`].
    fn send(&mut self) -> io::Result<()> {
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        // The timer belongs to the runtime, so the future is made inside it.
        let sent = self
            .runtime
            .block_on(async { tokio::time::timeout(self.reader_patience, self.pieces.send(piece)).await });
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(io::Error::other("the reader left")),
            Err(_) => Err(io::Error::other("the reader takes no piece")),
        }
    }
}

/// A store in Dynamo's form; `None` for another event, which no dump has.
fn router_event(worker: WorkerId, event_id: u64, event: KvEvent) -> Option<RouterEvent> {
    let KvEvent::Stored { parent, blocks, tier } = event else {
        return None;
    };
    let blocks = blocks.into_iter().map(|block| Held {
        block_hash: block.engine_hash,
        tokens_hash: block.local_hash,
        mm_extra_info: None,
    });
    Some(RouterEvent {
        worker_id: worker.instance,
        storage_tier: match tier {
            Tier::Device => "device",
            Tier::Host => "host_pinned",
            Tier::Disk => "disk",
        },
        residency_domain: "worker",
        event: CacheEvent {
            event_id,
            data: Data::Stored(Stored {
                parent_hash: parent,
                start_position: None,
                blocks: blocks.collect(),
            }),
            dp_rank: worker.dp_rank,
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wardrop_service::config::ServiceConfig;

    use super::*;
    use crate::select::fleet::Fleet;

    /// Pools whose names alone fill more pieces than the channel holds.
    fn many_pools() -> Vec<Pool> {
        let long = "x".repeat(PIECE_BYTES);
        let pools = (0..3 * PIECES).map(|number| Pool {
            name: format!("unknown {number}"),
            shown: format!("{long}{number}"),
            block_size: 16,
        });
        pools.collect()
    }

    fn dumps(reader_patience: Duration) -> Dumps {
        let service = Service::new(ServiceConfig::default()).expect("the defaults must be a configuration");
        Dumps {
            reader_patience,
            ..Dumps::new(service)
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dump_whose_reader_stops_ends_with_an_error_and_frees_the_turn() {
        let dumps = dumps(Duration::from_millis(1));
        let turn = dumps.turn.clone().try_acquire_owned().expect("the turn is free");
        let pieces = dumps.begin(turn, many_pools());
        // The turn is free once the writer has given the reader up.
        let next = dumps.turn.clone().acquire_owned().await;
        assert!(next.is_ok());
        let pieces: Vec<_> = pieces.collect().await;
        assert!(
            pieces.last().is_some_and(Result::is_err),
            "the end must say that a part is missing"
        );
        assert!(pieces.iter().filter(|piece| piece.is_err()).count() == 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_dump_that_is_read_ends_without_an_error_and_is_json() {
        let dumps = dumps(READER_PATIENCE);
        let turn = dumps.turn.clone().try_acquire_owned().expect("the turn is free");
        let pieces: io::Result<Vec<Bytes>> = dumps.begin(turn, many_pools()).collect().await;
        let text = pieces.expect("the reader took every piece").concat();
        let dump: serde_json::Value = serde_json::from_slice(&text).expect("the whole must be JSON");
        assert_eq!(dump.as_object().map(serde_json::Map::len), Some(3 * PIECES));
    }

    #[test]
    fn pools_have_the_names_of_dynamo_and_need_a_block_size() {
        let service = Service::new(ServiceConfig::default()).expect("the defaults must be a configuration");
        let fleet = Fleet::new(service);
        for record in [
            json!({"worker_id": 1, "endpoint": "http://a:1", "block_size": 16}),
            json!({"worker_id": 2, "endpoint": "http://a:2", "block_size": 16, "routing_group": "b"}),
            json!({"worker_id": 3, "endpoint": "http://a:3", "model_name": "other"}),
        ] {
            let record = WorkerRecord::from_json(record).expect("a record");
            fleet.upsert(record).expect("the worker fits");
        }
        let pools = pools(&fleet.records(None, None));
        let shown: Vec<_> = pools
            .iter()
            .map(|pool| (pool.shown.as_str(), pool.block_size))
            .collect();
        assert_eq!(shown, [("default:b", 16), ("default:default", 16)]);
    }
}
