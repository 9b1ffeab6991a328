//! From a whole request to its workers: the model's name, the prompt, the queue, the decision, the destination.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use prost_types::value::Kind;
use wardrop_core::WorkerId;
use wardrop_service::{
    Abstention, ActiveRequest, Booking, PlaceHints, Prepared, RequestTrace, Unplaced, UnreadPrompt,
};

use crate::config::Dialect;
use crate::destination::Destination;
use crate::headers::RequestHead;
use crate::model_name;
use crate::proto::ext_proc::Metadata;
use crate::refusal::Refusal;
use crate::shared::Shared;

/// Namespace and key of the subset of endpoints in the metadata of a request.
const SUBSET_NAMESPACE: &str = "envoy.lb.subset_hint";
/// Key of the subset, in its namespace.
const SUBSET_KEY: &str = "x-gateway-destination-endpoint-subset";
/// Bytes of a prompt for each token, where the tokens are unknown.
const BYTES_PER_TOKEN: usize = 4;

/// A request whose body is complete.
pub(super) struct Placing {
    /// State of the picker.
    pub shared: Arc<Shared>,
    /// Facts from the headers.
    pub head: RequestHead,
    /// The whole body; empty for a request without one.
    pub body: Bytes,
    /// Workers that Envoy allows; `None` allows all.
    pub allowed: Option<Vec<WorkerId>>,
    /// Trace of the request, where spans are exported.
    pub trace: Option<Arc<RequestTrace>>,
}

/// A decision that is ready for Envoy.
pub(super) struct Choice {
    /// The booking, for the answer.
    pub chosen: Chosen,
    /// Where Envoy sends the request.
    pub destination: Destination,
    /// Headers of the client that no worker may see.
    pub stripped: Vec<&'static str>,
    /// The body, with another model name where the configuration or the client asks for it.
    pub body: Bytes,
}

/// The booking on a worker, for the answer.
pub(super) enum Chosen {
    /// A request with a prompt, booked until its end.
    Active(Box<ActiveRequest>),
    /// A request without a prompt, such as a list of models: no work that a price depends on.
    Passing,
}

impl Placing {
    /// Chooses the workers. Dropping the future before its end releases all bookings and the place in the queue.
    ///
    ///
    /// # Errors
    /// The refusal for the client. A receipt then holds its status.
    pub async fn run(mut self) -> Result<Choice, Refusal> {
        let started = Instant::now();
        self.rewrite_model();
        let stripped = std::mem::take(&mut self.head.stripped);
        if self.head.endpoint.is_none() {
            let booking = self.place_passing()?;
            let destination = self.destination(&booking)?;
            return Ok(Choice {
                chosen: Chosen::Passing,
                destination,
                stripped,
                body: self.body,
            });
        }
        let prepared = self.prepare().await?;
        let service = &self.shared.service;
        let mut request = service.begin(prepared, self.head.request_id.as_deref(), started);
        if let Some(trace) = &self.trace {
            request.trace(trace);
        }
        let refused = |request: &ActiveRequest, refusal: Refusal| {
            request.refused(refusal.status());
            refusal
        };
        let hints = self.hints();
        match request.place(&hints).await {
            Ok(()) => {}
            Err(Unplaced::Refuse(refusal)) => return Err(refused(&request, Refusal::Queue(refusal))),
            Err(Unplaced::Abstain(_)) => return Err(refused(&request, Refusal::NoWorker)),
        }
        let booking = request.booking().expect("a placed request must have a booking");
        if self.head.if_available && booking.legs().all(|leg| leg.overlap_blocks == 0) {
            return Err(refused(&request, Refusal::NoCachedPrefix));
        }
        let destination = match self.destination(booking) {
            Ok(destination) => destination,
            Err(refusal) => return Err(refused(&request, refusal)),
        };
        service.observe_decision_time(started, request.waited_s());
        Ok(Choice {
            chosen: Chosen::Active(Box::new(request)),
            destination,
            stripped,
            body: self.body,
        })
    }

    /// Replaces the model's name in the body: by the client's header first, then by the
    /// configuration.
    fn rewrite_model(&mut self) {
        let rewrites = &self.shared.config.model_rewrites;
        let to = match &self.head.model_rewrite {
            Some(to) => Some(to.clone()),
            None if rewrites.is_empty() => None,
            None => model_name::read(&self.body)
                .model
                .and_then(|name| rewrites.get(&*name).cloned()),
        };
        if let Some(body) = to.and_then(|to| model_name::rewrite(&self.body, &to)) {
            self.body = body;
        }
    }

    /// The prompt of the body, or a guess of its length.
    ///
    /// # Errors
    /// [`Refusal::ClientPin`] for a pin in the body under Dynamo's dialect, [`Refusal::NoWorker`]
    /// without a model.
    async fn prepare(&self) -> Result<Prepared, Refusal> {
        let config = &self.shared.config;
        let service = &self.shared.service;
        let Some(endpoint) = self.head.endpoint.filter(|_| !self.body.is_empty()) else {
            return self.prepare_unread();
        };
        let tenant = self.head.tenant.as_deref();
        match service.prepare(endpoint, &self.body, tenant).await {
            Ok(prepared) => Ok(prepared),
            Err(Abstention::ClientPin)
                if config.dialect == Dialect::Dynamo && !config.service.routing.allow_client_pins =>
            {
                Err(Refusal::ClientPin)
            }
            Err(reason) => {
                service.count_abstention(reason);
                self.prepare_unread()
            }
        }
    }

    /// Prepares a request whose prompt cannot be read. It is placed by load, because no other router stands behind the picker.
    fn prepare_unread(&self) -> Result<Prepared, Refusal> {
        let facts = model_name::read(&self.body);
        let tokens = self.body.len() / BYTES_PER_TOKEN;
        let unread = UnreadPrompt {
            input_tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            is_streamed: facts.is_streamed,
        };
        let default = self.shared.default_model.load();
        let names = [facts.model.as_deref(), default.as_deref()];
        names
            .into_iter()
            .flatten()
            .find_map(|name| self.shared.service.prepare_unread(name, unread).ok())
            .ok_or(Refusal::NoWorker)
    }

    /// Books a worker for a request without a prompt; the booking ends with the decision.
    fn place_passing(&self) -> Result<Booking, Refusal> {
        let prepared = self.prepare_unread()?;
        let placed = self
            .shared
            .service
            .place_among(&prepared, self.allowed.as_deref());
        placed.map_err(|_| Refusal::NoWorker)
    }

    /// Address and headers of a booking.
    fn destination(&self, booking: &Booking) -> Result<Destination, Refusal> {
        let endpoints = self.shared.endpoints.load();
        Destination::new(booking, &endpoints, self.shared.config.dialect).ok_or(Refusal::NoWorker)
    }

    /// What the headers ask of the queue. The fairness id of the Gateway API comes before the
    /// tenant.
    fn hints(&self) -> PlaceHints<'_> {
        let config = &self.shared.config;
        let objective = self.head.objective.as_ref();
        PlaceHints {
            tenant: self.head.fairness_id.as_deref().or(self.head.tenant.as_deref()),
            priority: objective
                .and_then(|name| config.objectives.get(name))
                .copied()
                .unwrap_or(0),
            deadline_ms: self
                .head
                .deadline_ms
                .filter(|_| config.service.routing.queue_hints),
            body_bytes: self.body.len(),
            allowed: self.allowed.as_deref(),
        }
    }
}

/// Workers in the subset that Envoy names, and in the selection of a conformance test. `None` allows every worker.
pub(super) fn allowed_workers(
    shared: &Shared,
    head: &RequestHead,
    context: Option<&Metadata>,
) -> Option<Vec<WorkerId>> {
    let subset = context.and_then(subset);
    let test = head
        .test_selection
        .as_deref()
        .filter(|_| shared.config.conformance_headers)
        .map(|text| {
            text.split(',')
                .map(str::trim)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        });
    if subset.is_none() && test.is_none() {
        return None;
    }
    let contains = |names: &Option<Vec<String>>, address: &SocketAddr| {
        names
            .as_ref()
            .is_none_or(|names| names.iter().any(|name| is_at(name, address)))
    };
    let endpoints = shared.endpoints.load();
    Some(endpoints.workers_at(|address| contains(&subset, address) && contains(&test, address)))
}

/// Whether a name, `ip` or `ip:port`, is an address.
fn is_at(name: &str, address: &SocketAddr) -> bool {
    name.parse::<SocketAddr>().map_or_else(
        |_| name.parse::<IpAddr>().is_ok_and(|ip| ip == address.ip()),
        |named| named == *address,
    )
}

/// The subset of endpoints in the metadata: a list of texts, or one text with commas.
fn subset(context: &Metadata) -> Option<Vec<String>> {
    let value = context
        .filter_metadata
        .get(SUBSET_NAMESPACE)?
        .fields
        .get(SUBSET_KEY)?;
    let split = |text: &str| -> Vec<String> {
        let names = text.split(',').map(str::trim);
        names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
    };
    match value.kind.as_ref()? {
        Kind::ListValue(list) => {
            let texts = list.values.iter().filter_map(|value| match &value.kind {
                Some(Kind::StringValue(text)) => Some(split(text)),
                _ => None,
            });
            Some(texts.flatten().collect())
        }
        Kind::StringValue(text) => Some(split(text)),
        _ => None,
    }
}
