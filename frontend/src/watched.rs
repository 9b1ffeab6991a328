//! A worker's answer on its way to the client, and what the routing service learns from it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use dynamo_llm::protocols::common::llm_backend::LLMEngineOutput;
use dynamo_llm::types::Annotated;
use dynamo_runtime::engine::AsyncEngineContextProvider as _;
use dynamo_runtime::error::{BackendError, DynamoError, ErrorType, match_error_chain};
use dynamo_runtime::pipeline::ManyOut;
use futures::Stream;
use wardrop_service::{Answer, Usage};

use crate::silence::Listening;

/// Status that a door reports for an answer that begins: HTTP's, as in the gateway's receipts.
pub const ANSWERED: u16 = 200;

/// Errors that do not show a fault of the worker: errors of the client, and refusals because of load.
const NOT_THE_WORKERS_FAULT: &[ErrorType] = &[
    ErrorType::Cancelled,
    ErrorType::InvalidArgument,
    ErrorType::InvalidRequest,
    ErrorType::NotFound,
    ErrorType::ResourceExhausted,
    ErrorType::WorkerOverloaded,
    ErrorType::CapacityExhausted,
    ErrorType::RateLimited,
    ErrorType::DeadlineExceeded,
    ErrorType::PayloadTooLarge,
    ErrorType::Backend(BackendError::Cancelled),
    ErrorType::Backend(BackendError::InvalidArgument),
];

/// Errors that a worker's death or silence causes.
const THE_WORKERS_FAULT: &[ErrorType] = &[
    ErrorType::CannotConnect,
    ErrorType::Disconnected,
    ErrorType::ConnectionTimeout,
    ErrorType::ResponseTimeout,
    ErrorType::WorkerUnavailable,
    ErrorType::Unavailable,
    ErrorType::Backend(BackendError::CannotConnect),
    ErrorType::Backend(BackendError::Disconnected),
    ErrorType::Backend(BackendError::ConnectionTimeout),
    ErrorType::Backend(BackendError::ResponseTimeout),
    ErrorType::Backend(BackendError::EngineShutdown),
    ErrorType::Backend(BackendError::StreamIncomplete),
];

/// Whether an error shows that its worker failed.
pub fn is_workers_fault(error: &(dyn std::error::Error + 'static)) -> bool {
    match_error_chain(error, THE_WORKERS_FAULT, NOT_THE_WORKERS_FAULT)
}

/// The stream of one placed request.
pub struct Watched {
    stream: ManyOut<Annotated<LLMEngineOutput>>,
    /// `None` after the end.
    answer: Option<Answer>,
    usage: Usage,
    /// One per worker of the booking.
    listening: Vec<Listening>,
    ended: bool,
}

impl Watched {
    /// Watches `stream` for the request behind `answer`.
    pub fn new(
        stream: ManyOut<Annotated<LLMEngineOutput>>,
        answer: Answer,
        listening: Vec<Listening>,
    ) -> Self {
        Self {
            stream,
            answer: Some(answer),
            usage: Usage::default(),
            listening,
            ended: false,
        }
    }

    fn item(&mut self, item: &Annotated<LLMEngineOutput>) {
        if let Some(error) = &item.error {
            self.broken(is_workers_fault(error));
            return;
        }
        let Some(output) = &item.data else { return };
        if !output.token_ids.is_empty() {
            if self.usage.output_tokens.is_none()
                && let Some(answer) = &self.answer
                && answer.booking().is_some_and(|booking| booking.legs().count() > 1)
            {
                // After the first token the prefill worker is done, so only the silence of the decode worker counts.
                self.listening.drain(..self.listening.len().saturating_sub(1));
            }
            let tokens = u32::try_from(output.token_ids.len()).unwrap_or(u32::MAX);
            let sum = self.usage.output_tokens.unwrap_or(0);
            self.usage.output_tokens = Some(sum.saturating_add(tokens));
            if let Some(answer) = &mut self.answer {
                answer.piece(Instant::now());
            }
        }
        if let Some(usage) = &output.completion_usage {
            self.usage.prompt_tokens = Some(u64::from(usage.prompt_tokens));
            let details = usage.prompt_tokens_details.as_ref();
            if let Some(cached) = details.and_then(|details| details.cached_tokens) {
                self.usage.cached_tokens = Some(u64::from(cached));
            }
        }
    }

    /// Records that the answer broke off. `by_worker` marks the workers of the booking as failed, so that none of them takes the next attempt.
    fn broken(&mut self, by_worker: bool) {
        self.listening.clear();
        if let Some(answer) = self.answer.take() {
            if by_worker && let Some(booking) = answer.booking() {
                booking.fail();
            }
            answer.broken();
        }
    }

    fn finished(&mut self) {
        self.listening.clear();
        if let Some(answer) = self.answer.take() {
            answer.finished(self.usage);
        }
    }
}

impl Stream for Watched {
    type Item = Annotated<LLMEngineOutput>;

    fn poll_next(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        match self.stream.as_mut().poll_next(task) {
            Poll::Ready(Some(item)) => {
                self.item(&item);
                Poll::Ready(Some(item))
            }
            Poll::Ready(None) => {
                self.ended = true;
                self.finished();
                Poll::Ready(None)
            }
            Poll::Pending => {
                let silent = self
                    .listening
                    .iter()
                    .any(|worker| worker.poll_silent(task).is_ready());
                if !silent {
                    return Poll::Pending;
                }
                // The worker may be stopped, not dead: it must not write into this answer when it continues.
                self.stream.context().kill();
                self.ended = true;
                self.broken(true);
                let error = DynamoError::builder()
                    .error_type(ErrorType::Backend(BackendError::StreamIncomplete))
                    .message("the worker fell silent: its heartbeats stopped")
                    .build();
                Poll::Ready(Some(Annotated {
                    data: None,
                    id: None,
                    event: Some("error".to_owned()),
                    comment: None,
                    error: Some(error),
                }))
            }
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer.client_left();
        }
    }
}
