//! One request body in; hashes, length and an optional splice out. No I/O: it runs on a serving thread or off it.
//!
//! Two steps, because only the caller knows the models: [`PromptRequest::read`] finds the model's name, and
//! [`PromptRequest::prepare`] takes what the prompt needs to know of that model.

use std::borrow::Cow;
use std::time::Instant;

use bytes::Bytes;
use wardrop_core::{HashScope, LocalHash, SequenceHash, local_hashes, sequence_hashes};

use super::body::{self, ClientNvext, Endpoint, RequestBody, splice_token_data};
use super::tokenise::{Prompter, Shape};
use super::{Abstention, chat};
use crate::config::PromptOptions;

/// No tokeniser packs more bytes than this into a token on average, so a longer text can not fit the context.
const MAX_BYTES_PER_TOKEN: u64 = 64;

/// A prompt as a decision needs it.
pub(crate) struct Prompt {
    /// Local hashes of the full blocks.
    pub hashes: Vec<LocalHash>,
    /// Sequence hashes of the same blocks.
    pub sequence: Vec<SequenceHash>,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the answer that the client expects, when the request says so.
    pub expected_output_tokens: Option<u32>,
    /// The request body with token ids in it, for shapes whose ids proved equal to the engine's own.
    pub spliced: Option<[Bytes; 3]>,
    /// The client asked for a stream.
    pub is_streamed: bool,
    /// Time that each stage took.
    pub timing: Timing,
}

impl Prompt {
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

/// A request body that is split, with the name of the model that it asks for.
pub(crate) struct PromptRequest<'a> {
    endpoint: Endpoint,
    bytes: &'a Bytes,
    body: RequestBody<'a>,
    nvext: ClientNvext<'a>,
    model: Cow<'a, str>,
}

impl<'a> PromptRequest<'a> {
    /// Splits a body and finds the model's name.
    ///
    /// # Errors
    /// The reason to leave the choice to Dynamo; [`Abstention::ClientPin`] only when `nvext` chooses a worker.
    pub fn read(endpoint: Endpoint, bytes: &'a Bytes) -> Result<Self, Abstention> {
        let request = RequestBody::parse(bytes)?;
        let nvext = request.client_nvext()?;
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

    /// Finds out the prompt's tokens and hashes its blocks. `tenant` is the cache namespace that a header names.
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
        let prompt = tokenise(self.endpoint, request, nvext, target)?;
        let tokenise_ns = started.elapsed().as_nanos() as u64;
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
        let is_proven = || {
            target
                .prompter
                .is_some_and(|prompter| prompter.is_proven(prompt.shape))
        };
        if prompt.is_ours && options.handover && !body::is_set(nvext.annotations) && is_proven() {
            prepared.spliced = splice_token_data(self.bytes, request, &prompt.tokens);
        }
        let expected = nvext.agent_hints.as_ref().and_then(|hints| hints.osl);
        prepared.expected_output_tokens = expected.and_then(|raw| raw.get().parse().ok());
        prepared.is_streamed = request.is_streamed();
        Ok(prepared)
    }
}

/// Whether preparing this body would hold up a serving thread.
pub(crate) fn is_heavy(body: &[u8], options: &PromptOptions) -> bool {
    body.len() > options.inline_bytes
}

struct PromptTokens {
    tokens: Vec<u32>,
    /// The ids come from our tokeniser, not from the client.
    is_ours: bool,
    shape: Shape,
}

fn tokenise(
    endpoint: Endpoint,
    request: &RequestBody<'_>,
    nvext: &ClientNvext<'_>,
    target: &PromptTarget<'_>,
) -> Result<PromptTokens, Abstention> {
    if body::is_set(request.prompt_embeds) {
        return Err(Abstention::PromptEmbeds);
    }
    let from_client = |tokens| PromptTokens {
        tokens,
        is_ours: false,
        shape: Shape::UNPROVEN,
    };
    if body::is_set(nvext.token_data) {
        let raw = nvext.token_data.ok_or(Abstention::Unparsable)?;
        return Ok(from_client(token_ids(raw.get())?));
    }
    let prompter = || target.prompter.ok_or(Abstention::NoTokeniser);
    match endpoint {
        Endpoint::Completions => {
            let raw = request.prompt.ok_or(Abstention::Unparsable)?.get();
            if raw.starts_with('"') {
                let text = body::text(request.prompt).ok_or(Abstention::Unparsable)?;
                return encode_text(&text, request, prompter()?, target);
            }
            match PromptList::read(raw)? {
                PromptList::Tokens(tokens) => Ok(from_client(tokens)),
                PromptList::Text(text) => {
                    // A list with one text: Dynamo does not take token data for it.
                    let prompt = encode_text(&text, request, prompter()?, target)?;
                    Ok(PromptTokens {
                        shape: Shape::UNPROVEN,
                        ..prompt
                    })
                }
            }
        }
        Endpoint::Chat | Endpoint::Responses => {
            let prompter = prompter()?;
            let template = prompter.template().ok_or(Abstention::NoTokeniser)?;
            let length = request
                .messages
                .or(request.input)
                .map_or(0, |raw| raw.get().len());
            check_length(length, target)?;
            let mut conversation = if endpoint == Endpoint::Chat {
                chat::from_chat(request, template)?
            } else {
                chat::from_responses(request)?
            };
            if body::is_set(nvext.use_raw_prompt) {
                conversation.shape |= Shape::UNPROVEN;
            }
            let text = prompter.render(&conversation)?;
            Ok(PromptTokens {
                tokens: prompter.encode(&text)?,
                is_ours: true,
                shape: conversation.shape,
            })
        }
        Endpoint::Embeddings => Err(Abstention::Embeddings),
    }
}

fn encode_text(
    text: &str,
    request: &RequestBody<'_>,
    prompter: &Prompter,
    target: &PromptTarget<'_>,
) -> Result<PromptTokens, Abstention> {
    check_length(text.len(), target)?;
    let shape = if request.has_rendering_options() {
        Shape::UNPROVEN
    } else {
        Shape::TEXT
    };
    Ok(PromptTokens {
        tokens: prompter.encode(text)?,
        is_ours: true,
        shape,
    })
}

/// A text that can not fit the context is not tokenised: Dynamo refuses it, and megabytes of it would take seconds.
fn check_length(bytes: usize, target: &PromptTarget<'_>) -> Result<(), Abstention> {
    let limit = target
        .context_length
        .map(|tokens| tokens.saturating_mul(MAX_BYTES_PER_TOKEN));
    if limit.is_some_and(|limit| bytes as u64 > limit) {
        Err(Abstention::TooLong)
    } else {
        Ok(())
    }
}

fn token_ids(raw: &str) -> Result<Vec<u32>, Abstention> {
    serde_json::from_str(raw).map_err(|_| Abstention::Unparsable)
}

enum PromptList {
    Tokens(Vec<u32>),
    Text(String),
}

impl PromptList {
    /// `[ids]`, `[[ids]]` or `["text"]`; several prompts abstain.
    fn read(raw: &str) -> Result<Self, Abstention> {
        let inner = raw.strip_prefix('[').ok_or(Abstention::Unparsable)?.trim_start();
        if inner.starts_with('"') {
            let mut texts: Vec<String> = serde_json::from_str(raw).map_err(|_| Abstention::Unparsable)?;
            return if texts.len() == 1 {
                Ok(Self::Text(texts.remove(0)))
            } else {
                Err(Abstention::Batch)
            };
        }
        if inner.starts_with('[') {
            let mut lists: Vec<Vec<u32>> = serde_json::from_str(raw).map_err(|_| Abstention::Unparsable)?;
            return if lists.len() == 1 {
                Ok(Self::Tokens(lists.remove(0)))
            } else {
                Err(Abstention::Batch)
            };
        }
        token_ids(raw).map(Self::Tokens)
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
            "the client's own ids are not handed over again"
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
            (Endpoint::Completions, "{", Abstention::Unparsable),
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
    fn clients_own_token_data_is_the_prompt() {
        let body = r#"{"model":"m","messages":[],"nvext":{"token_data":[1,2,3,4]}}"#;
        let got = run(Endpoint::Chat, body, None).unwrap();
        assert_eq!(got.input_tokens, 4);
        assert!(got.spliced.is_none());
    }
}
