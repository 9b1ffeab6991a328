//! One pipeline: preprocess, migrate where a request may move, detokenise, decide, and Dynamo's routed engine.

use std::pin::Pin;
use std::sync::Arc;

use anyhow::Context as _;
use dynamo_llm::backend::Backend;
use dynamo_llm::entrypoint::PrefillRoutedEngine;
use dynamo_llm::http::service::Metrics;
use dynamo_llm::migration::Migration;
use dynamo_llm::model_card::ModelDeploymentCard;
use dynamo_llm::preprocessor::OpenAIPreprocessor;
use dynamo_llm::preprocessor::prompt::prompt_formatter_from_mdc;
use dynamo_llm::protocols::common::llm_backend::{BackendOutput, PreprocessedRequest};
use dynamo_llm::tokenizers::Tokenizer;
use dynamo_llm::types::Annotated;
use dynamo_llm::types::openai::chat_completions::{
    NvCreateChatCompletionRequest, NvCreateChatCompletionStreamResponse, OpenAIChatCompletionsStreamingEngine,
};
use dynamo_llm::types::openai::completions::{
    NvCreateCompletionRequest, NvCreateCompletionResponse, OpenAICompletionsStreamingEngine,
};
use dynamo_renderer::PromptFormatter;
use dynamo_runtime::engine::{AsyncEngineStream, Data};
use dynamo_runtime::pipeline::{
    Context, ManyOut, Operator, SegmentSource, ServiceBackend, ServiceEngine, SingleIn, Source as _,
};

/// Parts that all pipelines of a worker set share.
pub struct Parts<'a> {
    /// Card of the model.
    pub card: &'a ModelDeploymentCard,
    /// The decision, with Dynamo's routed engine below it.
    pub selection: PrefillRoutedEngine,
    /// Metrics of Dynamo's frontend.
    pub metrics: Arc<Metrics>,
    /// Most moves of one request to another worker.
    pub migration_limit: u32,
    /// Longest sequence that may still move, in tokens.
    pub migration_max_seq_len: Option<u32>,
}

impl Parts<'_> {
    /// The pipeline of chat requests. Dynamo's routes for responses and messages use it as well.
    ///
    /// # Errors
    /// A tokeniser or template that Dynamo cannot read.
    pub fn chat(&self) -> anyhow::Result<OpenAIChatCompletionsStreamingEngine> {
        let PromptFormatter::OAI(formatter) = prompt_formatter_from_mdc(self.card)?;
        let tokenizer = self.tokenizer()?;
        let preprocessor =
            OpenAIPreprocessor::new_with_parts(self.card.clone(), formatter, tokenizer.clone())?;
        self.link::<NvCreateChatCompletionRequest, NvCreateChatCompletionStreamResponse>(
            preprocessor,
            tokenizer,
        )
    }

    /// The pipeline of completions.
    ///
    /// # Errors
    /// A tokeniser that Dynamo cannot read.
    pub fn completions(&self) -> anyhow::Result<OpenAICompletionsStreamingEngine> {
        let PromptFormatter::OAI(formatter) = PromptFormatter::no_op();
        let tokenizer = self.tokenizer()?;
        let preprocessor =
            OpenAIPreprocessor::new_with_parts(self.card.clone(), formatter, tokenizer.clone())?;
        self.link::<NvCreateCompletionRequest, NvCreateCompletionResponse>(preprocessor, tokenizer)
    }

    fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        self.card.tokenizer().context("the model's tokeniser")
    }

    fn link<Req: Data, Resp: Data>(
        &self,
        preprocessor: Arc<OpenAIPreprocessor>,
        tokenizer: Tokenizer,
    ) -> anyhow::Result<ServiceEngine<SingleIn<Req>, ManyOut<Annotated<Resp>>>>
    where
        OpenAIPreprocessor: Operator<
                Context<Req>,
                Pin<Box<dyn AsyncEngineStream<Annotated<Resp>>>>,
                Context<PreprocessedRequest>,
                Pin<Box<dyn AsyncEngineStream<Annotated<BackendOutput>>>>,
            >,
    {
        let source = SegmentSource::<SingleIn<Req>, ManyOut<Annotated<Resp>>>::new();
        let preprocess = preprocessor.into_operator();
        let detokenise = Backend::from_tokenizer(tokenizer).into_operator();
        let selection = ServiceBackend::from_engine(self.selection.clone());
        if self.migration_limit == 0 {
            // Dynamo's Migration moves its whole state once per token, also where it may never act.
            return Ok(source
                .link(preprocess.forward_edge())?
                .link(detokenise.forward_edge())?
                .link(selection)?
                .link(detokenise.backward_edge())?
                .link(preprocess.backward_edge())?
                .link_terminal(source)?);
        }
        let migration = Migration::from_mdc(
            self.card,
            self.migration_limit,
            self.migration_max_seq_len,
            self.metrics.clone(),
        );
        // Dynamo's own function for this step is private to its crate, and the method of its trait is public.
        let migrate = <Migration as Operator<
            SingleIn<PreprocessedRequest>,
            ManyOut<Annotated<BackendOutput>>,
            SingleIn<PreprocessedRequest>,
            ManyOut<Annotated<BackendOutput>>,
        >>::into_operator(&migration);
        Ok(source
            .link(preprocess.forward_edge())?
            .link(migrate.forward_edge())?
            .link(detokenise.forward_edge())?
            .link(selection)?
            .link(detokenise.backward_edge())?
            .link(migrate.backward_edge())?
            .link(preprocess.backward_edge())?
            .link_terminal(source)?)
    }
}
