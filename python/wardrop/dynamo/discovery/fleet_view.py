"""The fleet as plain values: models, workers and event feeds at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["aggregated", "prefill", "decode"]

TOPICS = ("kv-events", "forward-pass-metrics")
"""Topics that the router reads. Dynamo has more, such as a frontend's own estimates."""


@dataclass(frozen=True)
class PromptOptions:
    """The properties of a model card, beside its files, by which Dynamo makes a prompt.

    None stands for Dynamo's own default.

    Attributes:
        chat_template_file: Path of the template that replaces the template of the model's folder.
        prompt_context: Values that a template may ask for beside the conversation.
        exclude_tools_when_tool_choice_none: A request with `tool_choice: "none"` is rendered
            without its tools.
        tool_call_arguments_format: Form in which a template gets the arguments of a tool call.
        tool_call_parser: Name of the parser of tool calls.
        reasoning_parser: Name of the parser of reasoning text.
        default_thinking_mode: Thinking mode of a request that names none.
        tokenizer_backend: Implementation of the tokeniser.
    """

    chat_template_file: str | None = None
    prompt_context: tuple[str, ...] | None = None
    exclude_tools_when_tool_choice_none: bool | None = None
    tool_call_arguments_format: str | None = None
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    default_thinking_mode: str | None = None
    tokenizer_backend: str | None = None


@dataclass(frozen=True)
class Model:
    """A model that clients can name in a request.

    Attributes:
        name: The `model` of a request.
        block_size: Tokens per KV block, at least 1.
        context_length: Longest prompt plus output, in tokens; None when unknown.
        loras: Adapters that every worker of the model has. Clients name an adapter as a model.
        source_path: Folder or hub name with which the worker was started.
        files: Pairs of a file name and its path or URL, from the model card.
        checksums: Texts that change exactly when a file of the model changes, one for each set of
            files that its workers have; empty when unknown.
        prompt_options: Properties of the card, beside the files, that change prompts.
        left_to_dynamo: Whether requests go to Dynamo unpinned, because Dynamo draws one of several
            worker sets for each request.
        aliases: Further names of the model itself.
        has_special_tokens: Whether the engine puts the tokenizer's special tokens around the text
            of a completions request. Dynamo does not.
    """

    name: str
    block_size: int
    context_length: int | None = None
    loras: tuple[str, ...] = ()
    source_path: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    checksums: tuple[str, ...] = ()
    prompt_options: PromptOptions = PromptOptions()
    left_to_dynamo: bool = False
    aliases: tuple[str, ...] = ()
    has_special_tokens: bool = False


@dataclass(frozen=True)
class Worker:
    """One engine instance that serves one model in one role.

    Attributes:
        model: Name of the model.
        role: Aggregated, prefill or decode.
        instance: Dynamo's id of the instance.
        endpoint: `namespace.component.endpoint`.
        address: Request-plane address. A new address under the same id is a new incarnation.
        dp_start: First data-parallel rank.
        dp_size: Number of data-parallel ranks.
        total_kv_blocks: KV blocks of a rank; None when not reported.
        max_num_seqs: Sequences in a batch; None when not reported.
        max_num_batched_tokens: Tokens in a batch; None when not reported.
    """

    model: str
    role: Role
    instance: int
    endpoint: str
    address: str = ""
    dp_start: int = 0
    dp_size: int = 1
    total_kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None


@dataclass(frozen=True)
class Feed:
    """One publisher of one topic.

    Attributes:
        publisher_id: Dynamo's id of the publisher, unique among all topics.
        topic: One of `TOPICS`, or `engine-events` for an engine without Dynamo.
        address: `tcp://host:port` of the publisher's socket.
        endpoint: `namespace.component.endpoint` of the publisher's workers.
        model: Name of the workers' model.
        role: Role of the workers.
        instance: The only worker whose events the feed may carry; None for all of the endpoint.
        any_publisher: Whether the feed may carry messages of every publisher. The publisher id is
            then only a name of the feed.
        dp_rank: Rank of the worker, for the feed of an engine without Dynamo.
        replay: Replay socket of an engine without Dynamo, `tcp://host:port`; None without one.
    """

    publisher_id: int
    topic: str
    address: str
    endpoint: str
    model: str
    role: Role
    instance: int | None = None
    any_publisher: bool = False
    dp_rank: int = 0
    replay: str | None = None


@dataclass(frozen=True)
class FleetView:
    """Everything that discovery knows at one moment.

    Attributes:
        models: Models by name.
        workers: Workers by (model, role, instance).
        feeds: Feeds by publisher.
        problems: One text per entry that could not be used. No text quotes a prompt or a token.
    """

    models: Mapping[str, Model] = field(default_factory=dict[str, Model])
    workers: Mapping[tuple[str, Role, int], Worker] = field(
        default_factory=dict[tuple[str, Role, int], Worker]
    )
    feeds: Mapping[int, Feed] = field(default_factory=dict[int, Feed])
    problems: tuple[str, ...] = ()
