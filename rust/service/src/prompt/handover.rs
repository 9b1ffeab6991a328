//! Are our token ids Dynamo's? Sample prompts go through Dynamo's dry run, and only shapes without a difference are handed over.

use serde::Serialize;
use serde_json::{Value, json};

use super::Abstention;
use super::body::{Endpoint, RequestBody};
use super::chat;
use super::tokenise::{Prompter, Shape};

/// Why a dry run gave no token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRunError {
    /// The engine's frontend can not answer dry runs now: no workers, another mode, down.
    Unavailable(String),
    /// The engine's frontend refused this sample.
    Refused(String),
}

/// A way to ask the engine's frontend for the token ids of a request, which a door hands in.
pub trait TokenIdSource: Send + Sync + 'static {
    /// Token ids that the frontend computes for the JSON `body` of a request to `endpoint`. The body asks for a dry run.
    ///
    /// # Errors
    /// Whether the frontend is unavailable or refuses this body.
    fn token_ids(
        &self,
        endpoint: Endpoint,
        body: String,
    ) -> impl Future<Output = Result<Vec<u32>, DryRunError>> + Send;
}

/// What the check found, per shape.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct HandoverReport {
    /// Every shape with its samples.
    pub shapes: Vec<ShapeReport>,
}

/// The samples of one shape.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ShapeReport {
    /// Name of the shape.
    pub shape: &'static str,
    /// Samples that Dynamo answered.
    pub samples: usize,
    /// Samples with the same ids.
    pub equal: usize,
    /// Ids of this shape are handed over.
    pub handed_over: bool,
    /// What stood in the way of a sample, if anything.
    pub note: Option<String>,
}

/// Compares our ids with Dynamo's on all samples and marks the proven shapes in `prompter`.
///
/// # Errors
/// A text when Dynamo does not answer dry runs (yet): no workers, not in kv mode, down.
pub async fn check(
    prompter: &Prompter,
    model: &str,
    source: &impl TokenIdSource,
) -> Result<HandoverReport, String> {
    let mut report = HandoverReport::default();
    let mut proven = Shape::default();
    for (shape, name) in Shape::CHECKED {
        let mut entry = ShapeReport {
            shape: name,
            samples: 0,
            equal: 0,
            handed_over: false,
            note: None,
        };
        for sample in samples(shape, model) {
            let endpoint = if shape == Shape::TEXT {
                Endpoint::Completions
            } else {
                Endpoint::Chat
            };
            let mut body = sample.clone();
            body["nvext"] = json!({"annotations": ["query_instance_id:"]});
            let theirs = match source.token_ids(endpoint, body.to_string()).await {
                Ok(ids) => ids,
                Err(DryRunError::Refused(note)) => {
                    entry.note = Some(note);
                    continue;
                }
                Err(DryRunError::Unavailable(reason)) => return Err(reason),
            };
            entry.samples += 1;
            match our_ids(prompter, shape, &sample) {
                Ok(ids) if ids == theirs => entry.equal += 1,
                Ok(ids) => {
                    let first = ids.iter().zip(&theirs).position(|(a, b)| a != b);
                    entry.note = Some(format!(
                        "{} ids here, {} there, first difference at {first:?}",
                        ids.len(),
                        theirs.len()
                    ));
                }
                Err(reason) => entry.note = Some(format!("not rendered here: {}", reason.name())),
            }
        }
        entry.handed_over = entry.samples > 0 && entry.equal == entry.samples;
        if entry.handed_over {
            proven |= shape;
        }
        report.shapes.push(entry);
    }
    prompter.set_proven(proven);
    Ok(report)
}

fn our_ids(prompter: &Prompter, shape: Shape, sample: &Value) -> Result<Vec<u32>, Abstention> {
    if shape == Shape::TEXT {
        return prompter.encode(sample["prompt"].as_str().unwrap_or_default());
    }
    let text = sample.to_string();
    let request = RequestBody::parse(text.as_bytes())?;
    let template = prompter.template().ok_or(Abstention::NoTokeniser)?;
    let conversation = chat::from_chat(&request, template)?;
    prompter.encode(&prompter.render(&conversation)?)
}

fn samples(shape: Shape, model: &str) -> Vec<Value> {
    let unicode = "Grüße aus Köln, 世界! 🚀\u{200d}🧪\n\n\tTabs,  double  spaces, «quotes» and 1234567890.";
    let code = "def f(x):\n    return {'a': [x ** 2, 3.5e-7], \"b\": None}  # comment\n";
    let markup = " <s>[INST] <|im_start|>system\nnot a real turn<|im_end|> </s> <|endoftext|> {{ jinja }} ";
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let chat = |messages: Vec<Value>| json!({"model": model, "messages": messages, "max_tokens": 1});
    let tools = json!([
        {"type": "function", "function": {"name": "weather", "description": "It's <b>the</b> weather & more",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Ort, z. B. Köln"},
                "days": {"type": "integer", "minimum": 1, "default": 3}, "exact": {"type": "boolean", "default": true},
                "items": {"type": "array", "items": {"type": "number"}}}, "required": ["city"]}}},
        {"type": "function", "function": {"name": "now", "parameters": {}}},
    ]);
    match shape {
        Shape::TEXT => [
            "Hello, world",
            unicode,
            code,
            markup,
            " leading and trailing ",
            "a",
        ]
        .iter()
        .map(|text| json!({"model": model, "prompt": text, "max_tokens": 1}))
        .collect(),
        Shape::PLAIN => vec![
            chat(vec![turn("user", "Hello, world")]),
            chat(vec![turn("system", "You are terse."), turn("user", unicode)]),
            chat(vec![
                turn("system", code),
                turn("user", "one"),
                turn("assistant", "two\n"),
                turn("user", markup),
            ]),
            chat(vec![
                turn("user", "  padded  "),
                turn("assistant", ""),
                turn("user", "again"),
            ]),
            chat(vec![
                turn("user", "first"),
                turn("assistant", unicode),
                turn("user", code),
                turn("assistant", "ok"),
                turn("user", "?"),
            ]),
        ],
        Shape::PARTS => vec![
            chat(vec![
                json!({"role": "user", "content": [{"type": "text", "text": "only"}]}),
            ]),
            chat(vec![
                json!({"role": "system", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": unicode}]}),
                json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}, {"type": "text", "text": code}]}),
            ]),
        ],
        Shape::TOOLS => {
            let mut plain = chat(vec![
                turn("system", "Use tools."),
                turn("user", "Weather in Köln?"),
            ]);
            plain["tools"] = tools.clone();
            let mut bare = chat(vec![turn("user", "Weather?")]);
            bare["tools"] = json!([tools[1]]);
            vec![plain, bare]
        }
        Shape::TOOL_CALLS => {
            let call = json!({"id": "call_1", "type": "function", "function": {"name": "weather",
                "arguments": "{\"city\": \"Köln\", \"days\": 2, \"exact\": false, \"f\": 1.5}"}});
            let mut with_tools = chat(vec![
                turn("user", "Weather?"),
                json!({"role": "assistant", "content": null, "tool_calls": [call]}),
                json!({"role": "tool", "tool_call_id": "call_1", "content": "{\"sun\": true}"}),
            ]);
            with_tools["tools"] = tools;
            let with_text = chat(vec![
                turn("user", "Weather?"),
                json!({"role": "assistant", "content": "Let me see.", "tool_calls": [call]}),
                json!({"role": "tool", "tool_call_id": "call_1", "content": unicode}),
                turn("user", "thanks"),
            ]);
            vec![with_tools, with_text]
        }
        _ => Vec::new(),
    }
}
