//! The three kinds of lines in a file of decision records: a request, the settings that its version number names, and a window of
//! the price of anarchy with the fleet behind its bound.
//!
//!
//! `docs/reference/records.md` describes every field for readers. A field that a schema version has
//! keeps its name and its unit.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};
use wardrop_core::control::Routing;
use wardrop_core::{HashKey, Misfit, Parts, SequenceHash, WorkerId};
use wardrop_sim::bound::{BoundFleet, PaidAndLower, WindowPrice};

use crate::Clock;
use crate::models::Model;
use crate::pool::Role;
use crate::prompt::Prompt;
use crate::receipts::{AtOnce, LegReceipt, ReceiptOutcome};
use crate::request::PlaceHints;

/// Schema of a line that records a request.
pub(super) const RECORD_SCHEMA: &str = "wardrop.record/1";
/// Schema of a line that holds settings.
pub(super) const SETTINGS_SCHEMA: &str = "wardrop.settings/1";
/// Schema of a line that holds a window of the price of anarchy.
pub(super) const WINDOW_SCHEMA: &str = "wardrop.window/1";
/// Bits of a name in a line. Every reader of JSON holds a whole number of 53 bits exactly.
const NAME_BITS: u32 = 53;

/// Settings in force at a decision. The version counts the changes since the router started.
#[derive(Serialize)]
pub(super) struct Settings {
    /// [`SETTINGS_SCHEMA`].
    schema: &'static str,
    /// Number of the settings, from 1; every record names one.
    pub version: u64,
    /// Id of the router, as in its metrics.
    router_id: String,
    /// Policy and queue.
    #[serde(flatten)]
    routing: Routing,
}

impl Settings {
    /// The settings with which the router starts: version 1.
    pub fn first(router_id: &str, routing: Routing) -> Self {
        Self::numbered(1, router_id, routing)
    }

    /// The settings after a change.
    pub fn next(&self, routing: Routing) -> Self {
        Self::numbered(self.version + 1, &self.router_id, routing)
    }

    fn numbered(version: u64, router_id: &str, routing: Routing) -> Self {
        Self {
            schema: SETTINGS_SCHEMA,
            version,
            router_id: router_id.to_owned(),
            routing,
        }
    }
}

/// Facts with which a record begins.
pub(crate) struct Facts<'a> {
    /// Id of the request; `None` for a door without ids.
    pub request_id: Option<&'a str>,
    /// When the whole request had arrived.
    pub started: Instant,
    /// Model that the request asked for.
    pub model: &'a Model,
    /// The prompt, of which the record keeps hashes and lengths.
    pub prompt: &'a Prompt,
    /// Regime of the fleet; `None` when the control plane reports none.
    pub regime: Option<&'static str>,
    /// Window of the price of anarchy; `None` for a request that no window took.
    pub window: Option<u64>,
}

/// A window of the price of anarchy, as its line will say it.
pub(crate) struct WindowFacts {
    /// Name of the model.
    pub model: String,
    /// Number of the window in the records of the model.
    pub number: u64,
    /// Workers and curves behind the bound.
    pub fleet: BoundFleet,
    /// What its requests paid, and what no routing could go below.
    pub price: WindowPrice,
}

/// One request, as its line will say it.
pub(crate) struct Record {
    /// Id of the request; `None` for a door without ids.
    request_id: Option<String>,
    /// Arrival of the whole request, in seconds since 1970.
    arrived_s: f64,
    /// Name of the model, shared with its pools.
    model: Arc<str>,
    /// Tokens per block.
    block_size: u32,
    /// Tokens of the prompt.
    input_tokens: u32,
    /// The length is a guess, and there are no blocks.
    is_estimated: bool,
    /// Tokens of the answer that the client expects.
    expected_output_tokens: Option<u32>,
    /// The client asked for a stream.
    is_streamed: bool,
    /// Sequence hashes of the full blocks. The writer replaces them by names under a secret key.
    sequence: Vec<SequenceHash>,
    /// Tenant of the request; written as a name under a secret key.
    tenant: Option<String>,
    /// Priority as the client asked for it.
    priority: i32,
    /// Deadline of the first token after the arrival, in milliseconds.
    deadline_ms: Option<u64>,
    /// Regime of the fleet at the arrival.
    regime: Option<&'static str>,
    window: Option<u64>,
    /// Settings in force at the arrival.
    pub(super) settings: Arc<Settings>,
    /// Seconds in the queue, over all legs.
    queued_s: f64,
    /// Reason of the abstention; `None` for a placed request.
    abstained: Option<&'static str>,
    /// Placements in order, retries included.
    legs: Vec<LegRecord>,
    /// Outcome; the default until the request ends.
    pub(super) outcome: ReceiptOutcome,
}

/// One placement: the chosen worker with the parts of its cost, and how far the next worker was.
#[derive(Serialize)]
struct LegRecord {
    /// Role of the pool.
    role: Role,
    /// Chosen worker.
    worker: WorkerId,
    /// Cost of the chosen worker, in the unit of the policy.
    cost: f64,
    /// Cost of the cheapest other candidate minus `cost`; `None` without another candidate.
    margin: Option<f64>,
    /// Parts of the cost by name; empty for a policy without parts.
    parts: Parts,
    /// Number of candidates.
    candidates: usize,
    /// Leading blocks that the index listed for the worker.
    overlap_blocks: u32,
    /// Seconds in the queue.
    waited_s: f64,
    /// What ended the wait.
    cause: &'static str,
    /// Why a static rule decided in place of the policy; `None` where the policy decided.
    misfit: Option<Misfit>,
    /// Placement without a wait; `None` for a request that did not wait.
    at_once: Option<AtOnce>,
}

impl Record {
    /// O(blocks), for the copy of the hashes.
    pub(super) fn new(facts: &Facts<'_>, arrived_s: f64, settings: Arc<Settings>) -> Self {
        let Facts {
            request_id,
            model,
            prompt,
            regime,
            window,
            ..
        } = *facts;
        Self {
            request_id: request_id.map(str::to_owned),
            arrived_s,
            model: model.pools()[0].model.clone(),
            block_size: model.spec.block_size,
            input_tokens: prompt.input_tokens,
            is_estimated: prompt.is_estimated,
            expected_output_tokens: prompt.expected_output_tokens,
            is_streamed: prompt.is_streamed,
            sequence: prompt.sequence.clone(),
            tenant: None,
            priority: 0,
            deadline_ms: None,
            regime,
            window,
            settings,
            queued_s: 0.0,
            abstained: None,
            legs: Vec::new(),
            outcome: ReceiptOutcome::default(),
        }
    }

    /// Adds what the client asked of the queue.
    pub fn hints(&mut self, hints: &PlaceHints<'_>) {
        self.tenant = hints.tenant.map(str::to_owned);
        self.priority = hints.priority;
        self.deadline_ms = hints.deadline_ms;
    }

    /// Adds a placement.
    pub fn placed(&mut self, leg: &LegReceipt) {
        self.queued_s += leg.waited_s;
        let chosen = leg.candidates.iter().find(|other| other.worker == leg.worker);
        self.legs.push(LegRecord {
            role: leg.role,
            worker: leg.worker,
            cost: leg.cost,
            margin: leg.margin,
            parts: chosen.map_or_else(Parts::default, |chosen| chosen.parts),
            candidates: leg.candidates_in_all,
            overlap_blocks: leg.overlap_blocks,
            waited_s: leg.waited_s,
            cause: leg.cause,
            misfit: leg.misfit,
            at_once: leg.at_once,
        });
    }

    /// Adds the reason for which the choice was left to Dynamo.
    pub fn abstained(&mut self, reason: &'static str) {
        self.abstained = Some(reason);
    }

    /// Block hashes that the record holds in memory.
    pub(super) fn blocks(&self) -> usize {
        self.sequence.len()
    }
}

/// Keys under which a line names blocks and tenants.
pub(super) struct NameKeys {
    /// Key of block names.
    blocks: HashKey,
    /// Key of tenant names. Two keys keep a tenant's name from being compared with a block's.
    tenants: HashKey,
}

impl NameKeys {
    /// Keys for blocks and tenants, both derived from one secret.
    pub fn new(key: &HashKey) -> Self {
        Self {
            blocks: key.derive("block ids of records"),
            tenants: key.derive("tenants of records"),
        }
    }

    /// Name of a block and of all blocks before it.
    fn block(&self, hash: SequenceHash) -> u64 {
        self.blocks.pseudonym(&hash.0.to_le_bytes()) >> (u64::BITS - NAME_BITS)
    }

    /// Name of a tenant.
    fn tenant(&self, name: &str) -> u64 {
        self.tenants.pseudonym(name.as_bytes()) >> (u64::BITS - NAME_BITS)
    }
}

/// A record in the order and with the names of its JSON.
#[derive(Serialize)]
struct Line<'a> {
    schema: &'static str,
    request_id: Option<&'a str>,
    arrived_s: f64,
    model: &'a str,
    block_size: u32,
    input_tokens: u32,
    is_estimated: bool,
    expected_output_tokens: Option<u32>,
    is_streamed: bool,
    block_ids: BlockIds<'a>,
    tenant_id: Option<u64>,
    priority: i32,
    deadline_ms: Option<u64>,
    regime: Option<&'static str>,
    window: Option<u64>,
    policy: &'a str,
    settings_version: u64,
    queued_s: f64,
    abstained: Option<&'static str>,
    legs: &'a [LegRecord],
    outcome: &'a ReceiptOutcome,
}

/// Block names, computed while they are written, without a list in memory.
struct BlockIds<'a> {
    keys: &'a NameKeys,
    sequence: &'a [SequenceHash],
}

impl Serialize for BlockIds<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut ids = serializer.serialize_seq(Some(self.sequence.len()))?;
        for &hash in self.sequence {
            ids.serialize_element(&self.keys.block(hash))?;
        }
        ids.end()
    }
}

/// Appends the line of a record. O(blocks).
pub(super) fn write_record(line: &mut Vec<u8>, record: &Record, keys: &NameKeys) {
    let said = Line {
        schema: RECORD_SCHEMA,
        request_id: record.request_id.as_deref(),
        arrived_s: record.arrived_s,
        model: &record.model,
        block_size: record.block_size,
        input_tokens: record.input_tokens,
        is_estimated: record.is_estimated,
        expected_output_tokens: record.expected_output_tokens,
        is_streamed: record.is_streamed,
        block_ids: BlockIds {
            keys,
            sequence: &record.sequence,
        },
        tenant_id: record.tenant.as_deref().map(|name| keys.tenant(name)),
        priority: record.priority,
        deadline_ms: record.deadline_ms,
        regime: record.regime,
        window: record.window,
        policy: record.settings.routing.policy.name(),
        settings_version: record.settings.version,
        queued_s: record.queued_s,
        abstained: record.abstained,
        legs: &record.legs,
        outcome: &record.outcome,
    };
    write_line(line, &said);
}

#[derive(Serialize)]
struct WindowLine<'a> {
    schema: &'static str,
    model: &'a str,
    window: u64,
    fleet: &'a BoundFleet,
    ttft: CostsLine,
    e2e: CostsLine,
}

#[derive(Serialize)]
struct CostsLine {
    requests: usize,
    paid_s: f64,
    lower_s: f64,
}

impl From<PaidAndLower> for CostsLine {
    fn from(costs: PaidAndLower) -> Self {
        Self {
            requests: costs.requests,
            paid_s: costs.paid_s,
            lower_s: costs.lower_s,
        }
    }
}

/// Appends the line of a window. O(workers).
pub(super) fn write_window(line: &mut Vec<u8>, window: &WindowFacts) {
    let said = WindowLine {
        schema: WINDOW_SCHEMA,
        model: &window.model,
        window: window.number,
        fleet: &window.fleet,
        ttft: window.price.ttft.into(),
        e2e: window.price.e2e.into(),
    };
    write_line(line, &said);
}

/// Appends the line of settings.
pub(super) fn write_settings(line: &mut Vec<u8>, settings: &Settings) {
    write_line(line, settings);
}

/// Appends one JSON object and a line feed.
fn write_line(line: &mut Vec<u8>, value: &impl Serialize) {
    serde_json::to_writer(&mut *line, value).expect("plain values must serialise");
    line.push(b'\n');
}

/// Unix time of an arrival, in seconds to the microsecond.
pub(super) fn arrived_s(origin_s: f64, clock: Clock, started: Instant) -> f64 {
    ((origin_s + clock.seconds_at(started)) * 1e6).round() / 1e6
}

#[cfg(test)]
impl Record {
    /// A record with these blocks and nothing else.
    pub(super) fn of_blocks(sequence: Vec<SequenceHash>, settings: Arc<Settings>) -> Self {
        Self {
            request_id: None,
            arrived_s: 0.0,
            model: "m".into(),
            block_size: 16,
            input_tokens: 0,
            is_estimated: false,
            expected_output_tokens: None,
            is_streamed: false,
            sequence,
            tenant: None,
            priority: 0,
            deadline_ms: None,
            regime: None,
            window: None,
            settings,
            queued_s: 0.0,
            abstained: None,
            legs: Vec::new(),
            outcome: ReceiptOutcome::default(),
        }
    }
}
