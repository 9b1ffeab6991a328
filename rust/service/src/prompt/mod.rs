//! From a request body to the prompt's tokens and block hashes, or the reason why the tokens cannot be known.
//!
//! This is the first step of a request's walk: [`crate::request`] calls it before the decision. A body passes through the types,
//! templates and tokenisers from which Dynamo 1.6.1 is built, so the token ids equal Dynamo's. The gateway forwards the client's own
//! bytes. While dry runs of Dynamo's frontend show the same ids, the gateway adds them to the body as `nvext.token_data`.
//!
//! ```text
//! bytes ─▶ body (split, pins) ─▶ chat | anthropic (typed) ─▶ template ─▶ tokenise ─▶ prepare (hashes, splice)
//!                                                     handover (dry runs) ─▶ prompter (proven shapes) ─▶ prepare
//! ```
//!
//! Bounds: the door limits the body, [`crate::config::PromptOptions`] limits the text per token of
//! context and the memory of the prefix cache. Cost: O(bytes); the tokeniser dominates. No text or
//! token leaves this module except inside a [`Prompt`].

mod anthropic;
mod body;
mod card;
mod chat;
#[cfg(test)]
mod fuzz;
mod handover;
mod prepare;
mod prompter;
mod reasoning;
mod samples;
mod shape;
mod shared_tokenisers;
mod special_tokens;
mod stoppable;
mod template;
mod token_list;
mod tokenise;

pub use self::body::Endpoint;
pub(crate) use self::body::{RequestBody, text};
pub(crate) use self::card::CardOptions;
pub use self::handover::{DryRunError, TokenIdSource};
pub(crate) use self::handover::{HandoverLog, HandoverReport, keep_checked};
pub(crate) use self::prepare::{Prompt, PromptRequest, PromptTarget, is_heavy};
pub(crate) use self::prompter::Prompter;
pub(crate) use self::shared_tokenisers::{SharedTokenisers, TokeniserFiles};

/// Reason why the service leaves the choice of the worker to the engine's own router. Each reason has a counter.
///
/// An abstention is no error: the request is forwarded without a pin, or placed by load where no
/// other router stands behind the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Abstention {
    /// The body is no request of its endpoint, so Dynamo refuses it.
    Unparsable,
    /// The body may carry a pin in a form that cannot be read.
    Unreadable,
    /// The model is not registered here.
    UnknownModel,
    /// No tokeniser or template in the model's folder.
    NoTokeniser,
    /// The chat template refused the conversation.
    TemplateError,
    /// The tokeniser failed.
    TokeniserError,
    /// Images, audio or video: the engine sees other tokens than this service.
    Multimodal,
    /// Embeddings in place of a prompt.
    PromptEmbeds,
    /// Several prompts in one request: Dynamo places each prompt by itself, and a pin would send all to one worker.
    Batch,
    /// The client asks Dynamo for the worker that it would choose, and wants no answer of a model.
    DryRun,
    /// The client chose the worker.
    ClientPin,
    /// The client set routing constraints that only Dynamo can check.
    Constraints,
    /// An embeddings request: Dynamo takes no pin for it.
    Embeddings,
    /// Input items of the responses API beyond plain text.
    ResponsesItems,
    /// The prompt cannot fit the model's context.
    TooLong,
    /// The text is so long that the door refuses it.
    TooLarge,
    /// Tokenising took longer than allowed.
    TokeniseTimeout,
    /// Dynamo draws one of several worker sets of the model for each request, and a pin cannot choose the set.
    WorkerSets,
    /// The router only observes: the engine's own router chooses every worker.
    Observing,
    /// No registered worker is available.
    NoWorker,
    /// The router refused, for example at its limit of bookings.
    RouterRefused,
}

impl Abstention {
    /// Every reason, for metrics that start at zero.
    pub const ALL: [Self; 21] = [
        Self::Unparsable,
        Self::Unreadable,
        Self::UnknownModel,
        Self::NoTokeniser,
        Self::TemplateError,
        Self::TokeniserError,
        Self::Multimodal,
        Self::PromptEmbeds,
        Self::Batch,
        Self::DryRun,
        Self::ClientPin,
        Self::Constraints,
        Self::Embeddings,
        Self::ResponsesItems,
        Self::TooLong,
        Self::TooLarge,
        Self::TokeniseTimeout,
        Self::WorkerSets,
        Self::Observing,
        Self::NoWorker,
        Self::RouterRefused,
    ];

    /// Value of the `reason` label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unparsable => "unparsable",
            Self::Unreadable => "unreadable",
            Self::UnknownModel => "unknown_model",
            Self::NoTokeniser => "no_tokeniser",
            Self::TemplateError => "template_error",
            Self::TokeniserError => "tokeniser_error",
            Self::Multimodal => "multimodal",
            Self::PromptEmbeds => "prompt_embeds",
            Self::Batch => "batch",
            Self::DryRun => "dry_run",
            Self::ClientPin => "client_pin",
            Self::Constraints => "constraints",
            Self::Embeddings => "embeddings",
            Self::ResponsesItems => "responses_items",
            Self::TooLong => "too_long",
            Self::TooLarge => "too_large",
            Self::TokeniseTimeout => "tokenise_timeout",
            Self::WorkerSets => "worker_sets",
            Self::Observing => "observing",
            Self::NoWorker => "no_worker",
            Self::RouterRefused => "router_refused",
        }
    }
}
