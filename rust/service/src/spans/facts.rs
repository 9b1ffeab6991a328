//! What becomes known of one traced request, as attributes of spans, for every kind of export.
//!
//! Facts are collected while the request is served, and its spans are made from them once, at the end. Names of attributes: OpenTelemetry's
//! conventions for generative AI; the prefix `wardrop.` for all others. Memory: a few dozen attributes per sampled request.

use std::borrow::Cow;
use std::time::Instant;

use parking_lot::Mutex;

use crate::pool::Role;
use crate::receipts::{LegReceipt, ReceiptOutcome};

/// An attribute of a span.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    /// Name with its dots, for example `wardrop.cost`.
    pub name: Cow<'static, str>,
    /// Value in the unit that the name gives.
    pub value: AttributeValue,
}

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeValue {
    /// A text.
    Text(Cow<'static, str>),
    /// A count.
    Int(i64),
    /// A measure.
    Float(f64),
}

impl From<&'static str> for AttributeValue {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for AttributeValue {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<i64> for AttributeValue {
    fn from(count: i64) -> Self {
        Self::Int(count)
    }
}

impl From<f64> for AttributeValue {
    fn from(measure: f64) -> Self {
        Self::Float(measure)
    }
}

impl Attribute {
    /// An attribute of a name and a value.
    pub(crate) fn new(name: impl Into<Cow<'static, str>>, value: impl Into<AttributeValue>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }
}

/// What became known of a request so far.
#[derive(Debug, Default)]
pub struct TraceFacts {
    /// Name of the model; `None` before the prompt is known.
    pub model: Option<String>,
    /// Attributes of the request: its prompt and its end.
    pub attributes: Vec<Attribute>,
    /// How an answer that began failed; `None` for a whole answer.
    pub error: Option<&'static str>,
    /// The decision; `None` for a request that met none.
    pub decision: Option<DecisionFacts>,
}

/// One decision.
#[derive(Debug)]
pub struct DecisionFacts {
    /// Begin of the decision, before any wait in a queue.
    pub started: Instant,
    /// End of the latest placement or of the abstention.
    pub ended: Instant,
    /// Policy, chosen worker, costs and causes.
    pub attributes: Vec<Attribute>,
}

/// A trace that collects facts until its last handle is dropped.
pub(crate) trait CollectsFacts: Send + Sync {
    /// The facts so far.
    fn facts(&self) -> &Mutex<TraceFacts>;
}

impl TraceFacts {
    /// The prompt is known.
    pub(crate) fn prompt(&mut self, model: &str, input_tokens: u32) {
        self.model = Some(model.to_owned());
        self.attributes
            .push(Attribute::new("gen_ai.request.model", model.to_owned()));
        self.attributes
            .push(Attribute::new("wardrop.input_tokens", i64::from(input_tokens)));
    }

    /// The choice of a worker begins.
    pub(crate) fn deciding(&mut self, policy: &'static str) {
        let now = Instant::now();
        self.decision = Some(DecisionFacts {
            started: now,
            ended: now,
            attributes: vec![Attribute::new("wardrop.policy", policy)],
        });
    }

    /// A worker was chosen, with `block_size` tokens in a block.
    pub(crate) fn placed(&mut self, leg: &LegReceipt, block_size: u32) {
        if let Some(decision) = &mut self.decision {
            decision.ended = Instant::now();
            leg_attributes(&mut decision.attributes, leg, block_size);
        }
    }

    /// The choice was left to Dynamo.
    pub(crate) fn abstained(&mut self, reason: &'static str) {
        if let Some(decision) = &mut self.decision {
            decision.ended = Instant::now();
            decision
                .attributes
                .push(Attribute::new("wardrop.abstained", reason));
        }
    }

    /// The request ended.
    pub(crate) fn ended(&mut self, outcome: &ReceiptOutcome) {
        let attributes = &mut self.attributes;
        attributes.push(Attribute::new("wardrop.outcome", outcome.how));
        let counts = [
            ("gen_ai.usage.input_tokens", outcome.input_tokens),
            ("gen_ai.usage.output_tokens", outcome.output_tokens.map(u64::from)),
            ("gen_ai.usage.cache_read.input_tokens", outcome.cached_tokens),
            (
                "wardrop.cached_tokens.predicted",
                Some(outcome.predicted_cached_tokens),
            ),
        ];
        for (name, count) in counts {
            if let Some(count) = count {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                attributes.push(Attribute::new(name, count));
            }
        }
        if let Some(ttft_s) = outcome.ttft_s {
            attributes.push(Attribute::new("wardrop.ttft_seconds", ttft_s));
        }
        if matches!(outcome.how, "broken" | "client_left") {
            self.error = Some(outcome.how);
        }
    }
}

/// Attributes of one placement. A split has two, with the role in their names.
fn leg_attributes(attributes: &mut Vec<Attribute>, leg: &LegReceipt, block_size: u32) {
    let role = match leg.role {
        Role::Aggregated => "",
        Role::Prefill => "prefill.",
        Role::Decode => "decode.",
    };
    let name = |name: &str| format!("wardrop.{role}{name}");
    // An attribute is a signed number, and an instance has 64 bits.
    attributes.push(Attribute::new(
        name("worker.instance"),
        leg.worker.instance.to_string(),
    ));
    attributes.push(Attribute::new(
        name("worker.dp_rank"),
        i64::from(leg.worker.dp_rank),
    ));
    let cached = i64::from(leg.overlap_blocks) * i64::from(block_size);
    attributes.push(Attribute::new(name("cached_tokens.predicted"), cached));
    let candidates = i64::try_from(leg.candidates_in_all).unwrap_or(i64::MAX);
    attributes.push(Attribute::new(name("candidates"), candidates));
    attributes.push(Attribute::new(name("cost"), leg.cost));
    if let Some(margin) = leg.margin {
        attributes.push(Attribute::new(name("margin"), margin));
    }
    attributes.push(Attribute::new(name("waited_seconds"), leg.waited_s));
    attributes.push(Attribute::new(name("cause"), leg.cause));
    if let Some(gained_s) = leg.at_once.and_then(|at_once| at_once.gained_s) {
        attributes.push(Attribute::new(name("gained_seconds"), gained_s));
    }
    let chosen = leg.candidates.iter().find(|one| one.worker == leg.worker);
    for (part, cost) in chosen.iter().flat_map(|chosen| chosen.parts.iter()) {
        let part = part
            .strip_suffix("_s")
            .map_or_else(|| part.to_owned(), |part| format!("{part}_seconds"));
        attributes.push(Attribute::new(name(&format!("part.{part}")), cost));
    }
}
