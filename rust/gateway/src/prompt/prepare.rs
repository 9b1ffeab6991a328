//! One request body in; hashes, length and an optional splice out. No I/O: it runs on a serving thread or off it.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use wardrop_core::{HashScope, LocalHash, SequenceHash, local_hashes, sequence_hashes};

use super::body::{self, ClientNvext, Endpoint, RequestBody, splice_token_data};
use super::tokenise::{Prompter, Shape};
use super::{Abstention, chat};
use crate::config::PromptOptions;
use crate::fleet::{Model, Registry};

/// No tokeniser packs more bytes than this into a token on average, so a longer text can not fit the context.
const MAX_BYTES_PER_TOKEN: u64 = 64;

/// All that a decision needs.
pub struct Prepared {
    /// The model.
    pub model: Arc<Model>,
    /// Local hashes of the full blocks.
    pub hashes: Vec<LocalHash>,
    /// Sequence hashes of the same blocks.
    pub sequence: Vec<SequenceHash>,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the answer, when the client hints at it.
    pub expected_output_tokens: Option<u32>,
    /// The body with our ids in it.
    pub spliced: Option<[Bytes; 3]>,
    /// The client asked for a stream.
    pub is_streamed: bool,
    /// How long the parts took.
    pub timing: Timing,
}

/// Nanoseconds per stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Template and tokeniser.
    pub tokenise_ns: u64,
    /// Block hashes.
    pub hash_ns: u64,
}

/// Whether preparing this body would hold up a serving thread.
pub fn is_heavy(body: &[u8], options: &PromptOptions) -> bool {
    body.len() > options.inline_bytes
}

/// Finds out the prompt's tokens.
///
/// # Errors
/// The reason to leave the choice to Dynamo; [`Abstention::ClientPin`] only when `nvext` chooses a worker.
pub fn prepare(
    endpoint: Endpoint,
    bytes: &Bytes,
    tenant: Option<&str>,
    registry: &Registry,
    options: &PromptOptions,
) -> Result<Prepared, Abstention> {
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
    let name = body::text(request.model).ok_or(Abstention::UnknownModel)?;
    let (model, lora) = registry.find(&name).ok_or(Abstention::UnknownModel)?;
    let started = Instant::now();
    let prompt = tokenise(endpoint, &request, &nvext, &model)?;
    let tokenised = Instant::now();
    let salt = tenant
        .map(std::borrow::Cow::Borrowed)
        .or_else(|| body::text(nvext.cache_salt).filter(|salt| !salt.is_empty()))
        .or_else(|| body::text(request.cache_salt).filter(|salt| !salt.is_empty()));
    let scope = HashScope {
        lora_name: lora.as_deref(),
        cache_namespace: salt.as_deref(),
    };
    let hashes = local_hashes(&prompt.tokens, model.spec.block_size, &scope);
    let sequence = sequence_hashes(&hashes);
    let hashed = Instant::now();
    let spliced = if prompt.is_ours && options.handover && !body::is_set(nvext.annotations) {
        let proven = model
            .prompter
            .as_ref()
            .is_some_and(|prompter| prompter.is_proven(prompt.shape));
        if proven {
            splice_token_data(bytes, &request, &prompt.tokens)
        } else {
            None
        }
    } else {
        None
    };
    let expected = nvext.agent_hints.as_ref().and_then(|hints| hints.osl);
    Ok(Prepared {
        input_tokens: u32::try_from(prompt.tokens.len()).map_err(|_| Abstention::TooLong)?,
        hashes,
        sequence,
        expected_output_tokens: expected.and_then(|raw| raw.get().parse().ok()),
        spliced,
        is_streamed: request.is_streamed(),
        timing: Timing {
            tokenise_ns: (tokenised - started).as_nanos() as u64,
            hash_ns: (hashed - tokenised).as_nanos() as u64,
        },
        model,
    })
}

struct Prompt {
    tokens: Vec<u32>,
    /// The ids come from our tokeniser, not from the client.
    is_ours: bool,
    shape: Shape,
}

fn tokenise(
    endpoint: Endpoint,
    request: &RequestBody<'_>,
    nvext: &ClientNvext<'_>,
    model: &Model,
) -> Result<Prompt, Abstention> {
    if body::is_set(request.prompt_embeds) {
        return Err(Abstention::PromptEmbeds);
    }
    let from_client = |tokens| Prompt {
        tokens,
        is_ours: false,
        shape: Shape::UNPROVEN,
    };
    if body::is_set(nvext.token_data) {
        let raw = nvext.token_data.ok_or(Abstention::Unparsable)?;
        return Ok(from_client(token_ids(raw.get())?));
    }
    let prompter = || model.prompter.as_deref().ok_or(Abstention::NoTokeniser);
    match endpoint {
        Endpoint::Completions => {
            let raw = request.prompt.ok_or(Abstention::Unparsable)?.get();
            if raw.starts_with('"') {
                let text = body::text(request.prompt).ok_or(Abstention::Unparsable)?;
                return encode_text(&text, request, prompter()?, model);
            }
            match PromptList::read(raw)? {
                PromptList::Tokens(tokens) => Ok(from_client(tokens)),
                PromptList::Text(text) => {
                    // A list with one text: Dynamo does not take token data for it.
                    let prompt = encode_text(&text, request, prompter()?, model)?;
                    Ok(Prompt {
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
            check_length(length, model)?;
            let mut conversation = if endpoint == Endpoint::Chat {
                chat::from_chat(request, template)?
            } else {
                chat::from_responses(request)?
            };
            if body::is_set(nvext.use_raw_prompt) {
                conversation.shape |= Shape::UNPROVEN;
            }
            let text = prompter.render(&conversation)?;
            Ok(Prompt {
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
    model: &Model,
) -> Result<Prompt, Abstention> {
    check_length(text.len(), model)?;
    let shape = if request.has_rendering_options() {
        Shape::UNPROVEN
    } else {
        Shape::TEXT
    };
    Ok(Prompt {
        tokens: prompter.encode(text)?,
        is_ours: true,
        shape,
    })
}

/// A text that can not fit the context is not tokenised: Dynamo refuses it, and megabytes of it would take seconds.
fn check_length(bytes: usize, model: &Model) -> Result<(), Abstention> {
    let limit = model
        .spec
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
    use crate::config::GatewayConfig;
    use crate::fleet::ModelSpec;

    fn registry() -> Registry {
        let registry = Registry::default();
        let spec = ModelSpec {
            name: "m".into(),
            folder: None,
            block_size: 4,
            context_length: Some(64),
            loras: vec!["adapter".into()],
        };
        let config = GatewayConfig::default();
        registry.upsert(spec, &config, &config.routing.start()).unwrap();
        registry
    }

    fn run(endpoint: Endpoint, body: &str, tenant: Option<&str>) -> Result<Prepared, Abstention> {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        prepare(endpoint, &bytes, tenant, &registry(), &PromptOptions::default())
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
