//! The engine that decides: it sees the token ids of a preprocessed request, books its workers and pins them, and watches the answer.
//!
//! It stands below Dynamo's Migration, so each attempt of a request is decided anew. It stands above Dynamo's routed engine,
//! which obeys the pins in every router mode. Dynamo routes a request for which the service abstains. One decision is O(prompt
//! tokens + workers).

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use dynamo_llm::entrypoint::PrefillRoutedEngine;
use dynamo_llm::protocols::common::llm_backend::{LLMEngineOutput, PreprocessedRequest};
use dynamo_llm::protocols::common::preprocessor::RoutingHints;
use dynamo_llm::types::Annotated;
use dynamo_runtime::engine::{AsyncEngineContext, AsyncEngineContextProvider as _};
use dynamo_runtime::error::{DynamoError, ErrorType};
use dynamo_runtime::pipeline::{AsyncEngine, Context, Error, ManyOut, ResponseStream, SingleIn};
use wardrop_core::WorkerId;
use wardrop_service::{
    Abstention, ActiveRequest, Booking, PlaceHints, ReadyPrompt, Refusal, Role, Service, Unplaced,
};

use crate::adapters::Adapters;
use crate::fleet::Fleet;
use crate::silence::{Listening, Silences};
use crate::spans;
use crate::watched::{ANSWERED, Watched, is_workers_fault};

/// Annotation by which a client asks only for the worker that its request would get. Dynamo answers it without a worker.
const DRY_RUN: &str = "query_instance_id";

/// The decision for the requests of one model.
pub struct Selection {
    /// The routing service.
    pub service: Arc<Service>,
    /// Workers that Dynamo's discovery knows.
    pub fleet: Arc<Fleet>,
    /// Streams that wait for a worker.
    pub silences: Arc<Silences>,
    /// Workers with each LoRA adapter.
    pub adapters: Arc<Adapters>,
    /// Name of the model in the routing service.
    pub model: String,
    /// Whether decisions are spans below Dynamo's own.
    pub are_traced: bool,
    /// Dynamo's routed engine.
    pub next: PrefillRoutedEngine,
}

#[async_trait]
impl AsyncEngine<SingleIn<PreprocessedRequest>, ManyOut<Annotated<LLMEngineOutput>>, Error> for Selection {
    async fn generate(
        &self,
        mut request: SingleIn<PreprocessedRequest>,
    ) -> Result<ManyOut<Annotated<LLMEngineOutput>>, Error> {
        let started = Instant::now();
        let mut active = match self.begin(&request, started) {
            Ok(active) => active,
            Err(reason) => {
                self.service.count_abstention(reason);
                return self.next.generate(request).await;
            }
        };
        let context = request.context();
        if let Some(hints) = request.content().routing.as_ref().filter(|hints| has_pin(hints)) {
            // The client chose the worker: the booking counts the load, and the answer teaches the curves.
            active.book_client_choice(clients_choice(hints));
            let stream = self.next.generate(request).await?;
            return Ok(watch(stream, active, Vec::new()));
        }
        if !self.place(&request, &mut active, &*context).await? {
            return self.next.generate(request).await;
        }
        self.service.observe_decision_time(started, active.waited_s());
        let Some(booking) = active.booking().filter(|booking| self.is_discovered(booking)) else {
            // A worker left after the decision. Dynamo refuses a pin to it, so Dynamo chooses.
            drop(active.take_booking());
            self.service.count_abstention(Abstention::NoWorker);
            return self.next.generate(request).await;
        };
        let listening = self.listen(booking);
        let unpinned = request.content().clone();
        pin(request.routing_mut(), booking);
        match self.next.generate(request).await {
            Ok(stream) => Ok(watch(stream, active, listening)),
            Err(error) => {
                let gone = active
                    .booking()
                    .is_some_and(|booking| !self.is_discovered(booking));
                if is_workers_fault(error.as_ref())
                    && let Some(booking) = active.booking()
                {
                    booking.fail();
                }
                drop(active.take_booking());
                if !gone || context.is_stopped() {
                    active.unanswered(503);
                    return Err(error); // Migration, above, may try again
                }
                // The pin was refused because its worker left. Nothing has reached the client, so Dynamo may choose.
                let again =
                    Context::with_id_and_metadata(unpinned, context.id().to_owned(), Default::default());
                context.link_child(again.context());
                let stream = self.next.generate(again).await?;
                Ok(watch(stream, active, Vec::new()))
            }
        }
    }
}

impl Selection {
    /// Prepares a request for a placement by the service, or returns the reason why Dynamo places it.
    fn begin(
        &self,
        request: &SingleIn<PreprocessedRequest>,
        started: Instant,
    ) -> Result<ActiveRequest, Abstention> {
        let content = request.content();
        let hints = content.routing.as_ref();
        if content.get_annotation_value(DRY_RUN).is_some() {
            return Err(Abstention::DryRun);
        }
        if hints
            .is_some_and(|hints| hints.routing_constraints.is_some() || hints.allowed_worker_ids.is_some())
        {
            return Err(Abstention::Constraints);
        }
        if content.prompt_embeds.is_some() {
            return Err(Abstention::PromptEmbeds);
        }
        if content.multi_modal_data.is_some() || content.mm_routing_info.is_some() {
            return Err(Abstention::Multimodal);
        }
        let expected = hints.and_then(|hints| hints.expected_output_tokens);
        let ready = ReadyPrompt {
            tokens: &content.token_ids,
            lora: hints.and_then(|hints| hints.lora_name.as_deref()),
            tenant: hints.and_then(|hints| hints.cache_namespace.as_deref()),
            expected_output_tokens: expected.or(content.stop_conditions.max_tokens),
            // Tokens arrive one by one here, also for a client that waits for the whole answer.
            is_streamed: true,
        };
        let prepared = self.service.prepare_ready(&self.model, &ready)?;
        let mut active = self.service.begin(prepared, Some(request.id()), started);
        if self.are_traced
            && let Some(trace) = spans::begin()
        {
            active.door_trace(trace);
        }
        Ok(active)
    }

    /// Chooses and books the workers, and waits in the queue where the pool has one. `false` leaves the request to Dynamo.
    async fn place(
        &self,
        request: &SingleIn<PreprocessedRequest>,
        active: &mut ActiveRequest,
        context: &dyn AsyncEngineContext,
    ) -> Result<bool, Error> {
        let content = request.content();
        let hints = content.routing.as_ref();
        let adapter = hints.and_then(|hints| hints.lora_name.as_deref());
        let holders = adapter.and_then(|adapter| self.adapters.holders(adapter));
        let place = PlaceHints {
            tenant: hints.and_then(|hints| hints.cache_namespace.as_deref()),
            priority: hints.map_or(0, priority),
            deadline_ms: None,
            body_bytes: content.token_ids.len() * size_of::<u32>(),
            // A request with a subset of workers is left to Dynamo before this point. An adapter that no card names is on all workers.
            allowed: holders.as_deref(),
        };
        let placed = tokio::select! {
            biased;
            placed = active.place(&place) => placed,
            // A client that leaves while its request waits has no booking.
            () = context.stopped() => return Err(cancelled().into()),
        };
        match placed {
            Ok(()) => Ok(true),
            Err(Unplaced::Abstain(_)) => Ok(false),
            Err(Unplaced::Refuse(refusal)) => {
                active.refused(503);
                Err(refused(refusal).into())
            }
        }
    }

    fn is_discovered(&self, booking: &Booking) -> bool {
        booking
            .legs()
            .all(|leg| self.fleet.is_discovered(&self.model, leg.pool.role, leg.worker))
    }

    fn listen(&self, booking: &Booking) -> Vec<Listening> {
        let legs = booking.legs();
        legs.map(|leg| self.silences.listen(&leg.pool, leg.worker))
            .collect()
    }
}

fn watch(
    stream: ManyOut<Annotated<LLMEngineOutput>>,
    active: ActiveRequest,
    listening: Vec<Listening>,
) -> ManyOut<Annotated<LLMEngineOutput>> {
    let context = stream.context();
    let watched = Watched::new(stream, active.answer(ANSWERED), listening);
    ResponseStream::new(Box::pin(watched), context)
}

/// Whether the client named a worker.
fn has_pin(hints: &RoutingHints) -> bool {
    hints.backend_instance_id.is_some()
        || hints.decode_worker_id.is_some()
        || hints.prefill_worker_id.is_some()
        || hints.dp_rank.is_some()
        || hints.prefill_dp_rank.is_some()
}

/// The worker that the client named for the answer, where it named one.
fn clients_choice(hints: &RoutingHints) -> Option<WorkerId> {
    let instance = hints.backend_instance_id.or(hints.decode_worker_id)?;
    Some(WorkerId::new(instance, hints.dp_rank.unwrap_or(0)))
}

/// Writes the workers of a booking into the hints that Dynamo's routed engine obeys.
fn pin(hints: &mut RoutingHints, booking: &Booking) {
    for leg in booking.legs() {
        let WorkerId { instance, dp_rank } = leg.worker;
        match leg.pool.role {
            Role::Aggregated => {
                hints.backend_instance_id = Some(instance);
                hints.dp_rank = Some(dp_rank);
            }
            Role::Decode => {
                hints.decode_worker_id = Some(instance);
                hints.dp_rank = Some(dp_rank);
            }
            Role::Prefill => {
                hints.prefill_worker_id = Some(instance);
                hints.prefill_dp_rank = Some(dp_rank);
            }
        }
    }
}

/// Levels of the queue's priority: Dynamo's strict tier, or one level for each second that a request may jump ahead.
fn priority(hints: &RoutingHints) -> i32 {
    let tier = hints
        .strict_priority
        .map(|tier| i32::try_from(tier).unwrap_or(i32::MAX));
    let jump = hints.priority_jump.map(|seconds| seconds.round() as i32);
    tier.or(jump).unwrap_or(0)
}

fn cancelled() -> DynamoError {
    DynamoError::builder()
        .error_type(ErrorType::Cancelled)
        .message("the client left while its request waited for a worker")
        .build()
}

fn refused(refusal: Refusal) -> DynamoError {
    let (what, seconds) = match refusal {
        Refusal::QueueFull { retry_after_s } => ("the queue is full", retry_after_s),
        Refusal::TenantQueueFull { retry_after_s } => {
            ("the tenant's part of the queue is full", retry_after_s)
        }
        Refusal::DeadlineHopeless { retry_after_s } => ("no worker can meet the deadline", retry_after_s),
    };
    DynamoError::builder()
        .error_type(ErrorType::ResourceExhausted)
        .message(format!("{what}; try again in {seconds} s"))
        .build()
}
