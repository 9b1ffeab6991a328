//! From a request body, or from token ids, to a prompt of a registered model: the first step of a request's walk.
//!
//! A short body is tokenised on the serving thread, a long one on the threads of the prompt pool. O(bytes) or O(tokens).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wardrop_core::HashScope;

use crate::models::Model;
use crate::prompt::{Abstention, Endpoint, Prompt, PromptRequest, RequestBody, is_heavy, text};
use crate::prompt_pool::PoolError;
use crate::service::Service;

/// Bytes of a body per token of its prompt, where the prompt itself is not known.
const BYTES_PER_TOKEN: usize = 4;
/// Longest guess of a prompt's length, in tokens.
const MAX_GUESSED_TOKENS: u64 = 1 << 20;

/// A prompt with the model that it is for.
pub struct Prepared {
    /// The model at the time of the request. A later change of the model does not reach the
    /// request.
    pub(crate) model: Arc<Model>,
    /// Tokens and hashes, or a guess of the length.
    pub(crate) prompt: Prompt,
}

/// A prompt whose token ids the door knows, with the facts that its price depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadyPrompt<'a> {
    /// Token ids, exactly as the engine will see them.
    pub tokens: &'a [u32],
    /// Adapter that the engine hashes into every block.
    pub lora: Option<&'a str>,
    /// Cache namespace that the engine hashes into every block.
    pub tenant: Option<&'a str>,
    /// Answer length that the client expects or allows, in tokens.
    pub expected_output_tokens: Option<u32>,
    /// Whether the answer arrives token by token.
    pub is_streamed: bool,
}

impl Service {
    /// Computes the tokens of a request body and hashes its blocks. `tenant` is the cache namespace that a header names.
    ///
    /// A long body is tokenised on the threads of the prompt pool, so that it holds up no other request.
    ///
    /// # Errors
    /// Why the engine's own router has to choose the worker. The service does not count this reason: the door may refuse instead.
    pub async fn prepare(
        self: &Arc<Self>,
        endpoint: Endpoint,
        bytes: &Bytes,
        tenant: Option<&str>,
    ) -> Result<Prepared, Abstention> {
        let options = &self.config.prompt;
        let prepared = if is_heavy(bytes, options) {
            let (service, bytes, tenant) = (self.clone(), bytes.clone(), tenant.map(str::to_owned));
            let work = self.prompts.run(bytes.len(), move || {
                service.read_prompt(endpoint, &bytes, tenant.as_deref())
            });
            // A client that leaves drops this future, and with it the prompt that waits.
            match tokio::time::timeout(Duration::from_millis(options.tokenise_timeout_ms), work).await {
                Ok(Ok(prepared)) => prepared,
                Ok(Err(PoolError::Failed)) => Err(Abstention::TokeniserError),
                Ok(Err(PoolError::Full)) | Err(_) => Err(Abstention::TokeniseTimeout),
            }
        } else {
            self.read_prompt(endpoint, bytes, tenant)
        }?;
        Ok(self.observe(prepared))
    }

    /// Hashes the blocks of a prompt whose token ids the door knows. O(tokens).
    ///
    /// The name may be an adapter's; the adapter then enters every block hash.
    ///
    /// # Errors
    /// [`Abstention::UnknownModel`] for a name that is not registered.
    pub fn prepare_tokens(
        &self,
        model: &str,
        tokens: &[u32],
        tenant: Option<&str>,
    ) -> Result<Prepared, Abstention> {
        let (model, lora) = self.models.find(model).ok_or(Abstention::UnknownModel)?;
        refuse_worker_sets(&model)?;
        let scope = HashScope {
            lora_name: lora.as_deref(),
            cache_namespace: tenant,
        };
        let prompt = Prompt::from_tokens(tokens, model.spec.block_size, &scope)?;
        Ok(self.observe(Prepared { model, prompt }))
    }

    /// A request whose prompt cannot be known, for a door that has no other router: it is placed by load alone.
    ///
    /// The length of the prompt is guessed from the length of the body. `None` when the body names no registered model.
    ///
    /// The guess takes four bytes for a token and stays within the context, so that a large body
    /// cannot book absurd load.
    pub fn prepare_by_load(&self, bytes: &Bytes) -> Option<Prepared> {
        let body = RequestBody::parse(bytes).ok()?;
        let name = text(body.model)?;
        let (model, _) = self.models.find(&name)?;
        let guessed = u32::try_from(bytes.len() / BYTES_PER_TOKEN).unwrap_or(u32::MAX);
        let limit = model.spec.context_length.unwrap_or(MAX_GUESSED_TOKENS);
        let limit = u32::try_from(limit.min(MAX_GUESSED_TOKENS)).unwrap_or(u32::MAX);
        let prompt = Prompt::unknown(guessed.clamp(1, limit.max(1)), body.is_streamed());
        Some(Prepared { model, prompt })
    }

    /// Hashes the blocks of a prompt that the door prepared itself. O(tokens).
    ///
    /// Unlike [`Service::prepare_tokens`] it takes the adapter from the caller, which names the
    /// model itself.
    ///
    /// # Errors
    /// [`Abstention::UnknownModel`] for a name that is not registered, [`Abstention::TooLong`] above 2³² − 1 tokens.
    pub fn prepare_ready(&self, model: &str, ready: &ReadyPrompt<'_>) -> Result<Prepared, Abstention> {
        let (model, _) = self.models.find(model).ok_or(Abstention::UnknownModel)?;
        let scope = HashScope {
            lora_name: ready.lora,
            cache_namespace: ready.tenant,
        };
        let mut prompt = Prompt::from_tokens(ready.tokens, model.spec.block_size, &scope)?;
        prompt.expected_output_tokens = ready.expected_output_tokens;
        prompt.is_streamed = ready.is_streamed;
        Ok(self.observe(Prepared { model, prompt }))
    }

    /// Reads a body on the calling thread.
    ///
    /// # Errors
    /// Why the engine's own router has to choose.
    fn read_prompt(
        &self,
        endpoint: Endpoint,
        bytes: &Bytes,
        tenant: Option<&str>,
    ) -> Result<Prepared, Abstention> {
        let request = PromptRequest::read(endpoint, bytes)?;
        let (model, lora) = self
            .models
            .find(request.model())
            .ok_or(Abstention::UnknownModel)?;
        refuse_worker_sets(&model)?;
        let target = model.prompt_target(lora.as_deref());
        let prompt = request.prepare(&target, tenant, &self.config.prompt)?;
        Ok(Prepared { model, prompt })
    }

    /// Records the times of the stages and the tokens of the prompt.
    fn observe(&self, prepared: Prepared) -> Prepared {
        let seconds = |ns: u64| ns as f64 / 1e9;
        let stages = &self.metrics.stages;
        stages
            .tokenise
            .observe(seconds(prepared.prompt.timing.tokenise_ns));
        stages.hash.observe(seconds(prepared.prompt.timing.hash_ns));
        self.metrics
            .input_tokens
            .with_label_values(&[&prepared.model.spec.name])
            .inc_by(u64::from(prepared.prompt.input_tokens));
        prepared
    }
}

/// Leaves a model to the engine's own router before its prompt costs anything.
fn refuse_worker_sets(model: &Model) -> Result<(), Abstention> {
    if model.spec.left_to_dynamo {
        return Err(Abstention::WorkerSets);
    }
    Ok(())
}
