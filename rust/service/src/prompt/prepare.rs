//! A request body becomes a [`Prompt`]: block hashes, length, and the body with token ids put in where the ids are proven.
//!
//! There are two steps, because only the caller knows the models. [`PromptRequest::read`] finds the model's name, and
//! [`PromptRequest::prepare`] takes the facts about the model that the prompt depends on. Neither does I/O, so a serving thread or a
//! thread of the prompt pool can run both. O(bytes of the body).

use std::borrow::Cow;
use std::time::Instant;

use bytes::Bytes;
use wardrop_core::{HashScope, LocalHash, SequenceHash, local_hashes, sequence_hashes};

use super::Abstention;
use super::anthropic::from_messages;
use super::body::{self, ClientNvext, Endpoint, RequestBody, splice_token_data};
use super::chat::ChatRequest;
use super::prompter::Prompter;
use super::shape::Shape;
use super::token_list::{PromptList, token_ids};
use crate::config::PromptOptions;

/// Most bytes per token, averaged over a text, that any tokeniser reaches. A text with more bytes cannot fit the context.
const MAX_BYTES_PER_TOKEN: u64 = 64;

/// A prompt as a decision needs it.
///
/// Invariant: `hashes` and `sequence` have the same length, which is `input_tokens` divided by the
/// block size, rounded down. Both are empty for an unknown prompt.
pub(crate) struct Prompt {
    /// Local hashes of the full blocks.
    pub hashes: Vec<LocalHash>,
    /// Sequence hashes of the same blocks.
    pub sequence: Vec<SequenceHash>,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// The tokens are not known, and their number is a guess.
    pub is_estimated: bool,
    /// Tokens of the answer that the client expects, when the request says so.
    pub expected_output_tokens: Option<u32>,
    /// The request body with token ids in it, for shapes whose ids proved equal to the engine's own.
    pub spliced: Option<[Bytes; 3]>,
    /// Whether the client asked for a stream.
    pub is_streamed: bool,
    /// Time that each stage took.
    pub timing: Timing,
}

impl Prompt {
    /// A prompt of which only a guess of the length is known.
    ///
    /// The router still counts the guessed length as load, so a request without a readable prompt
    /// is not free.
    pub(crate) fn unknown(input_tokens: u32, is_streamed: bool) -> Self {
        Self {
            hashes: Vec::new(),
            sequence: Vec::new(),
            input_tokens,
            is_estimated: true,
            expected_output_tokens: None,
            spliced: None,
            is_streamed,
            timing: Timing::default(),
        }
    }

    /// A prompt whose token ids the door already knows. O(tokens).
    ///
    /// # Errors
    /// [`Abstention::TooLong`] above 2³² − 1 tokens.
    pub(crate) fn from_tokens(
        tokens: &[u32],
        block_size: u32,
        scope: &HashScope<'_>,
    ) -> Result<Self, Abstention> {
        let started = Instant::now();
        let hashes = local_hashes(tokens, block_size, scope);
        let sequence = sequence_hashes(&hashes);
        Ok(Self {
            input_tokens: u32::try_from(tokens.len()).map_err(|_| Abstention::TooLong)?,
            hashes,
            sequence,
            is_estimated: false,
            expected_output_tokens: None,
            spliced: None,
            is_streamed: false,
            timing: Timing {
                tokenise_ns: 0,
                hash_ns: started.elapsed().as_nanos() as u64,
            },
        })
    }
}

impl Prompt {
    /// A prompt whose block hashes the door knows. The caller vouches that both lists describe the
    /// same blocks.
    pub(crate) fn from_hashes(
        hashes: Vec<LocalHash>,
        sequence: Vec<SequenceHash>,
        input_tokens: u32,
    ) -> Self {
        Self {
            hashes,
            sequence,
            input_tokens,
            is_estimated: false,
            expected_output_tokens: None,
            spliced: None,
            is_streamed: false,
            timing: Timing::default(),
        }
    }
}

/// Nanoseconds per stage.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timing {
    /// Template and tokeniser.
    pub tokenise_ns: u64,
    /// Block hashes.
    pub hash_ns: u64,
}

/// Facts about a model that its prompts depend on.
#[derive(Clone, Copy)]
pub(crate) struct PromptTarget<'a> {
    /// Tokens per KV block.
    pub block_size: u32,
    /// Longest prompt and answer together, in tokens.
    pub context_length: Option<u64>,
    /// Adapter that the request names instead of its model.
    pub lora: Option<&'a str>,
    /// Tokeniser and template of the model.
    pub prompter: Option<&'a Prompter>,
}

impl PromptTarget<'_> {
    /// Whether the context takes fewer tokens than the prompt has.
    pub fn is_too_long(&self, tokens: usize) -> bool {
        self.context_length.is_some_and(|limit| tokens as u64 > limit)
    }
}

/// A request body that is split, with the name of the model that it asks for.
pub(crate) struct PromptRequest<'a> {
    /// Endpoint that the body was sent to.
    endpoint: Endpoint,
    /// The whole body, for the splice of token ids.
    bytes: &'a Bytes,
    /// The body's top level.
    body: RequestBody<'a>,
    /// The client's extension object; empty where the client sent none.
    nvext: ClientNvext<'a>,
    /// Name of the model or adapter; borrowed from the body unless it has an escape.
    model: Cow<'a, str>,
}

impl<'a> PromptRequest<'a> {
    /// Splits a body and finds the model's name.
    ///
    /// # Errors
    /// The reason to leave the choice to Dynamo. Two reasons are for the door to refuse, unless clients may pin:
    /// [`Abstention::ClientPin`] when `nvext` chooses a worker, and [`Abstention::Unreadable`] when that cannot be excluded.
    pub fn read(endpoint: Endpoint, bytes: &'a Bytes) -> Result<Self, Abstention> {
        let request = RequestBody::parse(bytes)?;
        let nvext = request.client_nvext()?;
        // The order of these checks decides which reason is counted, and pins come first because a
        // door may refuse them.
        if nvext.has_pin() {
            return Err(Abstention::ClientPin);
        }
        if nvext.is_dry_run() {
            return Err(Abstention::DryRun);
        }
        if endpoint == Endpoint::Embeddings {
            return Err(Abstention::Embeddings);
        }
        if body::is_set(nvext.routing_constraints) {
            return Err(Abstention::Constraints);
        }
        let model = body::text(request.model).ok_or(Abstention::UnknownModel)?;
        Ok(Self {
            endpoint,
            bytes,
            body: request,
            nvext,
            model,
        })
    }

    /// Name of the model or adapter that the request asks for.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Computes the prompt's tokens and hashes its blocks. `tenant` is the cache namespace that a header names.
    ///
    /// # Errors
    /// The reason to leave the choice to Dynamo.
    pub fn prepare(
        &self,
        target: &PromptTarget<'_>,
        tenant: Option<&str>,
        options: &PromptOptions,
    ) -> Result<Prompt, Abstention> {
        let (request, nvext) = (&self.body, &self.nvext);
        let started = Instant::now();
        let prompt = self.tokenise(target, options)?;
        if target.is_too_long(prompt.tokens.len()) {
            return Err(Abstention::TooLong);
        }
        let tokenise_ns = started.elapsed().as_nanos() as u64;
        // A header names the namespace before the body does. Among the body's fields, `nvext` comes
        // first.
        let salt = tenant
            .map(Cow::Borrowed)
            .or_else(|| body::text(nvext.cache_salt).filter(|salt| !salt.is_empty()))
            .or_else(|| body::text(request.cache_salt).filter(|salt| !salt.is_empty()));
        let scope = HashScope {
            lora_name: target.lora,
            cache_namespace: salt.as_deref(),
        };
        let mut prepared = Prompt::from_tokens(&prompt.tokens, target.block_size, &scope)?;
        prepared.timing.tokenise_ns = tokenise_ns;
        let prompter = target
            .prompter
            .filter(|prompter| prompter.is_proven(prompt.shape));
        if let Some(prompter) = prompter
            && prompt.is_ours
            && options.handover
            // With annotations, Dynamo reports what it computed itself, which handed-over ids would
            // change.
            && !body::is_set(nvext.annotations)
        {
            prepared.spliced = splice_token_data(self.bytes, request, &prompt.tokens);
            if prepared.spliced.is_some() {
                prompter.sample(self.endpoint, self.bytes, &prompt.tokens);
            }
        }
        prepared.expected_output_tokens = nvext.expected_output_tokens();
        prepared.is_streamed = request.is_streamed();
        Ok(prepared)
    }
}

/// Whether preparing this body would hold up a serving thread.
pub(crate) fn is_heavy(body: &[u8], options: &PromptOptions) -> bool {
    body.len() > options.inline_bytes
}

/// Token ids of a prompt with their origin.
struct PromptTokens {
    /// The ids, in order.
    tokens: Vec<u32>,
    /// Whether the ids come from the service's tokeniser and not from the client.
    is_ours: bool,
    /// Kinds of content, which decide whether the ids may be handed over.
    shape: Shape,
}

impl PromptTokens {
    /// Ids of the client need no proof and are never put in: the body carries them already.
    fn from_client(tokens: Vec<u32>) -> Self {
        Self {
            tokens,
            is_ours: false,
            shape: Shape::UNPROVEN,
        }
    }

    /// Ids of the service's own tokeniser.
    fn ours(tokens: Vec<u32>, shape: Shape) -> Self {
        Self {
            tokens,
            is_ours: true,
            shape,
        }
    }
}

impl PromptRequest<'_> {
    /// Token ids of the prompt, by endpoint.
    ///
    /// # Errors
    /// The reason to leave the choice to Dynamo.
    fn tokenise(
        &self,
        target: &PromptTarget<'_>,
        options: &PromptOptions,
    ) -> Result<PromptTokens, Abstention> {
        if body::is_set(self.body.prompt_embeds) {
            return Err(Abstention::PromptEmbeds);
        }
        if body::is_set(self.nvext.token_data) {
            let raw = self.nvext.token_data.ok_or(Abstention::Unparsable)?;
            return token_ids(raw.get(), target.context_length).map(PromptTokens::from_client);
        }
        let prompter = || target.prompter.ok_or(Abstention::NoTokeniser);
        let conversation = match self.endpoint {
            Endpoint::Completions => return self.tokenise_text(target, options),
            Endpoint::Embeddings => return Err(Abstention::Embeddings),
            Endpoint::Chat | Endpoint::Responses | Endpoint::Messages => {
                let prompter = prompter()?;
                let raw = self.body.messages.or(self.body.input);
                if options.refuse_bytes_per_token == 0 {
                    check_length(raw.map_or(0, |raw| raw.get().len()), target, options)?;
                }
                let request = match self.endpoint {
                    Endpoint::Responses => ChatRequest::from_responses(&self.body)?,
                    Endpoint::Messages => from_messages(self.bytes)?,
                    _ => ChatRequest::from_chat(self.bytes)?,
                };
                // An image in the messages is no text, so only the rendered text shows whether the prompt can fit.
                prompter.encode_chat(request, |bytes| check_length(bytes, target, options))?
            }
        };
        let (tokens, mut shape) = conversation;
        if self.endpoint != Endpoint::Chat {
            // The dry run of the engine's frontend covers chat and completions only.
            shape |= Shape::UNPROVEN;
        }
        Ok(PromptTokens::ours(tokens, shape))
    }

    /// The prompt of a completions request, to which no template applies.
    fn tokenise_text(
        &self,
        target: &PromptTarget<'_>,
        options: &PromptOptions,
    ) -> Result<PromptTokens, Abstention> {
        let raw = self.body.prompt.ok_or(Abstention::Unparsable)?.get();
        let prompter = || target.prompter.ok_or(Abstention::NoTokeniser);
        if raw.starts_with('"') {
            let text = body::text(self.body.prompt).ok_or(Abstention::Unparsable)?;
            check_length(text.len(), target, options)?;
            return Ok(PromptTokens::ours(prompter()?.encode(&text)?, Shape::TEXT));
        }
        match PromptList::read(raw, target.context_length)? {
            PromptList::Tokens(tokens) => Ok(PromptTokens::from_client(tokens)),
            PromptList::Text(text) => {
                check_length(text.len(), target, options)?;
                // Dynamo takes no token data for a list with one text.
                Ok(PromptTokens::ours(prompter()?.encode(&text)?, Shape::UNPROVEN))
            }
        }
    }
}

/// A text that cannot fit the context is not tokenised, because megabytes of it would take seconds.
///
/// A tokeniser stops between two words once its client has left. Its first stages take a whole text in one call, and
/// this limit bounds them.
fn check_length(bytes: usize, target: &PromptTarget<'_>, options: &PromptOptions) -> Result<(), Abstention> {
    let is_beyond = |bytes_per_token: u64| {
        let limit = target
            .context_length
            .map(|tokens| tokens.saturating_mul(bytes_per_token));
        limit.is_some_and(|limit| bytes as u64 > limit)
    };
    match options.refuse_bytes_per_token {
        refused if refused > 0 && is_beyond(refused) => Err(Abstention::TooLarge),
        _ if is_beyond(MAX_BYTES_PER_TOKEN) => Err(Abstention::TooLong),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(endpoint: Endpoint, body: &str, tenant: Option<&str>) -> Result<Prompt, Abstention> {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        let request = PromptRequest::read(endpoint, &bytes)?;
        let lora = match request.model() {
            "m" => None,
            "adapter" => Some("adapter"),
            _ => return Err(Abstention::UnknownModel),
        };
        let target = PromptTarget {
            block_size: 4,
            context_length: Some(64),
            lora,
            prompter: None,
        };
        request.prepare(&target, tenant, &PromptOptions::default())
    }

    fn reason(endpoint: Endpoint, body: &str) -> Abstention {
        run(endpoint, body, None).err().expect("must abstain")
    }

    #[test]
    fn token_prompt_is_hashed_in_full_blocks() {
        let got = run(
            Endpoint::Completions,
            r#"{"model":"m","prompt":[1,2,3,4,5,6,7,8,9]}"#,
            None,
        )
        .unwrap();
        assert_eq!((got.input_tokens, got.hashes.len()), (9, 2));
        assert_eq!(
            got.hashes,
            local_hashes(&[1, 2, 3, 4, 5, 6, 7, 8], 4, &HashScope::default())
        );
        assert!(
            got.spliced.is_none(),
            "ids of the client are not handed over again"
        );
    }

    #[test]
    fn tenant_salt_and_adapter_are_part_of_the_hash() {
        let plain = run(Endpoint::Completions, r#"{"model":"m","prompt":[1,2,3,4]}"#, None).unwrap();
        let same: [(&str, Option<&str>); 3] = [
            (r#"{"model":"m","prompt":[1,2,3,4],"cache_salt":"s"}"#, None),
            (
                r#"{"model":"m","prompt":[1,2,3,4],"nvext":{"cache_salt":"s"}}"#,
                None,
            ),
            (
                r#"{"model":"m","prompt":[1,2,3,4],"nvext":{"cache_salt":"other"}}"#,
                Some("s"),
            ),
        ];
        for (body, tenant) in same {
            let salted = run(Endpoint::Completions, body, tenant).unwrap();
            let scope = HashScope {
                lora_name: None,
                cache_namespace: Some("s"),
            };
            assert_eq!(salted.hashes, local_hashes(&[1, 2, 3, 4], 4, &scope));
            assert_ne!(salted.hashes, plain.hashes);
        }
        let adapter = run(
            Endpoint::Completions,
            r#"{"model":"adapter","prompt":[1,2,3,4]}"#,
            None,
        )
        .unwrap();
        assert_ne!(adapter.hashes, plain.hashes);
    }

    #[test]
    fn what_can_not_be_known_abstains_with_its_reason() {
        let cases = [
            (Endpoint::Completions, "{", Abstention::Unreadable),
            (
                Endpoint::Embeddings,
                r#"{"model":"m","input":"a","nvext":[null,null,null,5]}"#,
                Abstention::Unreadable,
            ),
            (
                Endpoint::Messages,
                r#"{"model":"m","messages":[],"nvext":{"dp_rank":5}}"#,
                Abstention::ClientPin,
            ),
            (
                Endpoint::Completions,
                r#"{"model":"x","prompt":[1]}"#,
                Abstention::UnknownModel,
            ),
            (
                Endpoint::Completions,
                r#"{"model":"m","prompt":"text"}"#,
                Abstention::NoTokeniser,
            ),
            (
                Endpoint::Completions,
                r#"{"model":"m","prompt":["a","b"]}"#,
                Abstention::Batch,
            ),
            (
                Endpoint::Completions,
                r#"{"model":"m","prompt":[[1],[2]]}"#,
                Abstention::Batch,
            ),
            (
                Endpoint::Completions,
                r#"{"model":"m","prompt":[-1]}"#,
                Abstention::Unparsable,
            ),
            (
                Endpoint::Completions,
                r#"{"model":"m","prompt_embeds":"AA","prompt":[1]}"#,
                Abstention::PromptEmbeds,
            ),
            (
                Endpoint::Completions,
                r#"{"model":"m","prompt":[1],"nvext":{"annotations":["query_instance_id:"]}}"#,
                Abstention::DryRun,
            ),
            (
                Endpoint::Completions,
                r#"{"model":"m","prompt":[1],"nvext":{"decode_worker_id":3}}"#,
                Abstention::ClientPin,
            ),
            (
                Endpoint::Completions,
                r#"{"model":"m","prompt":[1],"nvext":{"routing_constraints":{}}}"#,
                Abstention::Constraints,
            ),
            (
                Endpoint::Embeddings,
                r#"{"model":"m","input":"a"}"#,
                Abstention::Embeddings,
            ),
        ];
        for (endpoint, body, expected) in cases {
            assert_eq!(reason(endpoint, body), expected, "{body}");
        }
    }

    #[test]
    fn prompt_beyond_the_context_is_not_booked() {
        let ids = vec!["7"; 65].join(",");
        for body in [
            format!(r#"{{"model":"m","prompt":[{ids}]}}"#),
            format!(r#"{{"model":"m","prompt":[[{ids}]]}}"#),
            format!(r#"{{"model":"m","prompt":"x","nvext":{{"token_data":[{ids}]}}}}"#),
        ] {
            assert_eq!(reason(Endpoint::Completions, &body), Abstention::TooLong);
        }
        let ids = vec!["7"; 64].join(",");
        let body = format!(r#"{{"model":"m","prompt":[{ids}]}}"#);
        assert_eq!(run(Endpoint::Completions, &body, None).unwrap().input_tokens, 64);
    }

    #[test]
    fn clients_own_token_data_is_the_prompt() {
        let body = r#"{"model":"m","messages":[],"nvext":{"token_data":[1,2,3,4]}}"#;
        let got = run(Endpoint::Chat, body, None).unwrap();
        assert_eq!(got.input_tokens, 4);
        assert!(got.spliced.is_none());
    }
}
