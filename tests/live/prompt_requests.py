"""Random requests that differ in everything that a chat template or a tokeniser can see."""

from __future__ import annotations

import json
import random
from typing import Any

Json = dict[str, Any]

TEXTS = (
    "Hello, world",
    "",
    " leading and trailing \n",
    "Grüße aus Köln, 世界! 🚀\u200d🧪\n\n\tTabs,  double  spaces, «quotes» and 1234567890.",
    "def f(x):\n    return {'a': [x ** 2, 3.5e-7], \"b\": None}  # comment\n",
    "<|im_start|>system\nno real turn<|im_end|> [INST] <｜User｜> </think> {{ jinja }} {% raw %}",
    "quotes \" and \\ and </script> & '",
    "nul \x00 inside, \x1f \u2028 \ufeff \u00a0",
    "e\u0301 \u1e69 \ufb01 \U0001f468\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd",
    "<tool_response>\nok\n</tool_response>",
    "<think>\nold\n</think>\n\nnew",
    "word " * 200,
)
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1.0,
    1.5,
    1e20,
    1e-7,
    12345678901234567890,
    "",
    "ä\u2028\n",
    [],
    {},
    [1, [None, "x"], {"k": True}],
    {"z": 1, "a": {"b": [1.0, None]}},
)


class RequestGenerator:
    """Requests of one seed. The same seed gives the same requests."""

    def __init__(self, seed: int, model: str) -> None:
        self._random = random.Random(seed)
        self._model = model

    def request(self) -> tuple[str, Json]:
        """A path, and a body for it."""
        if self._chance(0.1):
            return "/v1/completions", self._common() | {"prompt": self._text() or "x"}
        return "/v1/chat/completions", self._chat()

    def _chat(self) -> Json:
        body = self._common() | {"messages": self._conversation()}
        if self._chance(0.4):
            body["tools"] = [self._tool(number) for number in range(self._random.randint(1, 3))]
        if self._chance(0.3):
            body["tool_choice"] = self._pick(("auto", "none", None))
        for key, values in (
            ("chat_template_args", ({"enable_thinking": False}, {"custom": {"a": [1, None, "ö"]}})),
            ("chat_template_kwargs", ({"thinking": True}, {"enable_thinking": "no"}, None)),
            ("reasoning_effort", ("low", "high", "none", None)),
            ("thinking", (True, {"type": "disabled"}, {"type": "adaptive"}, None)),
            ("response_format", ({"type": "text"}, {"type": "json_object"}, None)),
            ("add_generation_prompt", (True, False, None)),
            ("parallel_tool_calls", (True, False)),
        ):
            if self._chance(0.1) and not (key.endswith("kwargs") and "chat_template_args" in body):
                body[key] = self._pick(values)
        if self._chance(0.08):
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return self._shuffled(body)

    def _common(self) -> Json:
        body: Json = {"model": self._model, "max_tokens": 1}
        for key, value in (("user", "u"), ("seed", 1), ("temperature", 0.5), ("stop", None)):
            if self._chance(0.1):
                body[key] = value
        if self._chance(0.15):
            body["nvext"] = self._pick(({}, {"extra_fields": []}, {"use_raw_prompt": True}))
        return body

    def _conversation(self) -> list[Json]:
        messages: list[Json] = []
        if self._chance(0.6):
            messages.append({"role": "system", "content": self._content(allows_parts=False)})
        for turn in range(self._random.randint(1, 4)):
            messages.append({"role": "user", "content": self._content(allows_parts=True)})
            is_last = turn > 0 and self._chance(0.2)
            if is_last:
                break
            messages += self._answer() if self._chance(0.8) else []
        if messages[-1]["role"] == "assistant" and self._chance(0.7):
            messages.append({"role": "user", "content": self._text()})
        for message in messages:
            if self._chance(0.1):
                message["unknown"] = self._value()
            if message["role"] == "user" and self._chance(0.05):
                message["name"] = "Ann"
        return [self._shuffled(message) for message in messages]

    def _answer(self) -> list[Json]:
        answer: Json = {"role": "assistant", "content": self._text()}
        if self._chance(0.15):
            answer["reasoning_content"] = self._text()
        if self._chance(0.1):
            answer["refusal"] = None
        if not self._chance(0.35):
            if self._chance(0.2):
                answer["tool_calls"] = None
            return [answer]
        calls = [self._call(number) for number in range(self._random.choice((1, 1, 1, 2)))]
        if self._chance(0.6):
            answer["content"] = None
        elif self._chance(0.3):
            del answer["content"]
        answer["tool_calls"] = calls
        results = [
            {
                "role": "tool",
                "tool_call_id": call["id"],
                "content": self._content(allows_parts=True),
            }
            for call in calls
        ]
        return [answer, *results]

    def _call(self, number: int) -> Json:
        names = ("a", "city", "n", "items", "ö")
        arguments: Json = {
            self._pick(names): self._value() for _ in range(self._random.randint(0, 3))
        }
        separators = self._pick(((",", ":"), (", ", ": ")))
        text = json.dumps(arguments, separators=separators, ensure_ascii=self._chance(0.5))
        function = {"name": self._pick(("weather", "now")), "arguments": text}
        if self._chance(0.1):
            function["unknown"] = "x"
        call = {"id": f"call_{number}", "type": "function", "function": self._shuffled(function)}
        if self._chance(0.15):
            call["index"] = number
        return self._shuffled(call)

    def _tool(self, number: int) -> Json:
        function: Json = {"name": f"tool_{number}"}
        if self._chance(0.8):
            function["description"] = self._text()
        if self._chance(0.9):
            function["parameters"] = self._schema()
        if self._chance(0.3):
            function["strict"] = self._pick((True, False, None))
        tool = {"type": "function", "function": self._shuffled(function)}
        if self._chance(0.1):
            tool["unknown"] = self._value()
        return self._shuffled(tool)

    def _schema(self) -> Json:
        if self._chance(0.15):
            return {}
        properties: Json = {}
        for name in self._random.sample(("a", "city", "items", "x y", "ö"), 3):
            spec: Json = {"type": self._pick(("string", "integer", ["string", "null"], "array"))}
            for key in ("default", "const", "enum", "description", "minimum"):
                if self._chance(0.25):
                    spec[key] = [self._value(), "x"] if key == "enum" else self._value()
            if self._chance(0.1):
                spec = {"anyOf": [{"type": "string"}, {"type": "null"}]}
            properties[name] = self._shuffled(spec)
        schema: Json = {"properties": properties}
        if self._chance(0.8):
            schema["type"] = "object"
        if self._chance(0.5):
            schema["required"] = ["a"]
        return self._shuffled(schema)

    def _content(self, *, allows_parts: bool) -> object:
        if not allows_parts or not self._chance(0.25):
            return self._text()
        parts = [{"type": "text", "text": self._text()} for _ in range(self._random.randint(1, 3))]
        if self._chance(0.2):
            parts[0]["cache_control"] = {"type": "ephemeral"}  # type: ignore[assignment]
        return [self._shuffled(part) for part in parts]

    def _text(self) -> str:
        if self._chance(0.2):
            points = (0x20, 0x7E), (0xA0, 0x17F), (0x4E00, 0x4E80), (0x1F300, 0x1F3FF)
            low, high = self._pick(points)
            return "".join(chr(self._random.randint(low, high)) for _ in range(12))
        return self._pick(TEXTS)

    def _value(self) -> object:
        return self._pick(VALUES)

    def _shuffled(self, content: Json) -> Json:
        if not self._chance(0.3):
            return content
        keys = list(content)
        self._random.shuffle(keys)
        return {key: content[key] for key in keys}

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _pick(self, values: Any) -> Any:
        return self._random.choice(values)
