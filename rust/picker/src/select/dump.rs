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
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
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
}

impl Dumps {
    /// A writer for the pools of a routing service.
    pub fn new(service: Arc<Service>) -> Self {
        Self {
            service,
            turn: Arc::new(Semaphore::new(1)),
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
        let (pieces, reader) = mpsc::channel(PIECES);
        let (service, runtime) = (self.service.clone(), tokio::runtime::Handle::current());
        tokio::task::spawn_blocking(move || {
            let writer = Writer {
                pieces,
                runtime,
                buffer: Vec::with_capacity(2 * PIECE_BYTES),
                _turn: turn,
            };
            writer.write(&service, &pools);
        });
        let body = Body::from_stream(ReceiverStream::new(reader));
        Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
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
    pieces: mpsc::Sender<io::Result<Bytes>>,
    runtime: tokio::runtime::Handle,
    buffer: Vec<u8>,
    /// Free again when the writer is dropped.
    _turn: OwnedSemaphorePermit,
}

impl Writer {
    /// Writes all pools. A reader that left or does not read ends it.
    fn write(mut self, service: &Service, pools: &[Pool]) {
        if self.write_pools(service, pools).is_err() {
            // Without the end of its JSON and with an error behind it, a reader cannot take the part for the whole.
            let broken = io::Error::other("the dump ended early");
            let _ = self.pieces.try_send(Err(broken));
        }
    }

    /// # Errors
    /// The reader left, or took no piece for [`READER_PATIENCE`].
    fn write_pools(&mut self, service: &Service, pools: &[Pool]) -> io::Result<()> {
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
                if self.buffer.len() >= PIECE_BYTES {
                    self.send()?;
                }
            }
            self.buffer.extend(b"]}");
        }
        self.buffer.push(b'}');
        self.send()
    }

    /// Hands what is written to the reader.
    ///
    /// # Errors
    /// As [`Writer::write_pools`].
    fn send(&mut self) -> io::Result<()> {
        let piece = Bytes::from(std::mem::take(&mut self.buffer));
        // The timer belongs to the runtime, so the future is made inside it.
        let sent = self
            .runtime
            .block_on(async { tokio::time::timeout(READER_PATIENCE, self.pieces.send(Ok(piece))).await });
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
