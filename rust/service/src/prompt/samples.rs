//! Sample requests whose token ids are compared with Dynamo's before any ids are handed over.

use serde_json::{Value, json};

use super::shape::Shape;

/// Sample requests with the content of one shape.
pub(crate) fn samples(shape: Shape, model: &str) -> Vec<Value> {
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
        {"type": "function", "function": {"parameters": {"properties": {"zone": {"enum": ["UTC", null], "const": 1.0}}}, "strict": null,
            "name": "now", "unknown": true}, "unknown": 1},
        {"type": "function", "function": {"name": "never", "parameters": {}}},
    ]);
    let edited = json!({"role": "assistant", "content": "two", "tool_calls": null, "unknown": {"a": 1}});
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
            chat(vec![turn("user", "one"), edited, turn("user", "nul \0 inside")]),
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
        Shape::OPTIONS => {
            let option = |key: &str, value: Value| {
                let mut body = chat(vec![
                    turn("system", "You are terse."),
                    turn("user", "Weather?"),
                    turn("assistant", "Sunny,"),
                ]);
                body[key] = value;
                body
            };
            let mut continued = option("continue_final_message", json!(true));
            continued["add_generation_prompt"] = json!(false);
            let mut without_tools = option("tool_choice", json!("none"));
            without_tools["tools"] = tools;
            vec![
                option("add_generation_prompt", json!(false)),
                continued,
                without_tools,
                option(
                    "chat_template_args",
                    json!({"enable_thinking": false, "custom": "ö"}),
                ),
                option("reasoning_effort", json!("low")),
                option("thinking", json!({"type": "enabled"})),
                option("response_format", json!({"type": "json_object"})),
            ]
        }
        Shape::TOOL_CALLS => {
            let call = json!({"id": "call_1", "type": "function", "function": {"name": "weather",
                "arguments": "{\"city\": \"Köln\", \"days\": 2, \"exact\": false, \"f\": 1.5, \"none\": null, \"list\": [1e20, true]}"}});
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
