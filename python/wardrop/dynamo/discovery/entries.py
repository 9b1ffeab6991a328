"""Dynamo's discovery format: one entry of a store, as a typed struct.

An entry is a JSON object of Dynamo 1.4 to 1.6. Each entry is decoded alone, so a bad entry costs
itself. Only the fields that the router uses are declared; every other field is skipped.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from wardrop.decoding import decode_json
from wardrop.dynamo.discovery.fleet_view import PromptOptions, Role

BUCKETS = ("instances", "mdc", "event_channels", "event_sources")
"""Buckets that the router reads."""

MAX_ENTRY_BYTES = 1 << 20
"""An entry larger than this is not read; a model card is about 4 kB."""

MAX_ENTRIES = 65_536
"""Entries of a bucket that are read: five times those of 10,000 workers with one feed each."""

MAX_CAPACITY = 2**40
"""A larger capacity is no capacity of an engine, and counts as not reported."""

_MAX_KEY_CHARACTERS = 200

Unsigned = Annotated[int, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class _Placed(msgspec.Struct):
    """The endpoint to which an entry belongs."""

    namespace: str
    component: str
    endpoint: str

    @property
    def endpoint_name(self) -> str:
        """`namespace.component.endpoint`."""
        return f"{self.namespace}.{self.component}.{self.endpoint}"


class InstanceEntry(_Placed):
    """Entry of the bucket `instances`: a running instance of an endpoint."""

    instance_id: Unsigned
    transport: dict[str, object] | str | None = None

    @property
    def address(self) -> str:
        """Request-plane address; empty where the entry names none."""
        if isinstance(self.transport, dict):
            return " ".join(str(value) for value in self.transport.values())
        return self.transport or ""


class RuntimeConfig(msgspec.Struct):
    """What an engine reports of itself. An unknown figure is None, never 0."""

    data_parallel_start_rank: Unsigned | None = None
    data_parallel_size: Annotated[int, msgspec.Meta(ge=0, le=65_536)] | None = None
    context_length: Unsigned | None = None
    total_kv_blocks: Unsigned | None = None
    max_num_seqs: Unsigned | None = None
    max_num_batched_tokens: Unsigned | None = None
    runtime_data: dict[str, object] | None = None
    exclude_tools_when_tool_choice_none: object = None
    tool_call_arguments_format: object = None
    tool_call_parser: object = None
    reasoning_parser: object = None
    tokenizer_backend: object = None


class FilePart(msgspec.Struct):
    """One file of a model. A chat template keeps its path and checksum below `file`."""

    path: object = None
    checksum: object = None
    file: FilePart | None = None

    @property
    def place(self) -> str | None:
        """Path or URL of the file."""
        path = self.file.path if self.file is not None else self.path
        return path if isinstance(path, str) else None

    @property
    def content(self) -> str:
        """Checksum of the file, as Dynamo's card states it."""
        return str(self.file.checksum if self.file is not None else self.checksum)


Files = dict[str, FilePart | str]
"""One file by its kind, such as `hf_tokenizer_json`. Old cards hold a path alone."""


class Card(msgspec.Struct):
    """A model card: how a worker serves a model."""

    display_name: Name
    kv_cache_block_size: Annotated[int, msgspec.Meta(ge=1, le=65_536)]
    source_path: str | None = None
    context_length: Unsigned | None = None
    architectural_max_context_length: Unsigned | None = None
    model_type: object = None
    worker_type: str | None = None
    needs: list[list[str]] | None = None
    lora: dict[str, object] | None = None
    aliases: list[str] | None = None
    runtime_config: RuntimeConfig | None = None
    model_info: Files | None = None
    tokenizer: Files | None = None
    prompt_formatter: Files | None = None
    chat_template_file: Files | None = None
    gen_config: Files | None = None
    extra_files: list[FilePart] | None = None
    prompt_context: msgspec.Raw = msgspec.Raw(b"null")
    router_config: msgspec.Raw = msgspec.Raw(b"null")
    indexer_identity: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def runtime(self) -> RuntimeConfig:
        """The engine's report of itself; an empty one where the card has none."""
        return self.runtime_config or RuntimeConfig()

    @property
    def files(self) -> list[tuple[str, str]]:
        """Pairs of a file name and its path or URL, sorted."""
        parts = (
            self.model_info,
            self.tokenizer,
            self.prompt_formatter,
            self.gen_config,
            self.chat_template_file,
        )
        found = [
            (_FILE_NAMES.get(kind) or part.place.rpartition("/")[2], part.place)
            for files in parts
            for kind, part in _parts(files)
            if part.place
        ]
        return sorted(found)

    @property
    def prompt_checksum(self) -> str:
        """A text that changes exactly when a file or a rule that makes token ids changes.

        Prefill and decode workers of one model have different cards and equal prompts.
        """
        return _digest(
            _contents(self.model_info),
            _contents(self.tokenizer),
            _contents(self.prompt_formatter),
            _contents(self.chat_template_file),
            _contents(self.gen_config),
            sorted((str(part.place).rpartition("/")[2], part.content) for part in self._extras),
            bytes(self.prompt_context),
        )

    @property
    def prompt_options(self) -> PromptOptions:
        """The properties beside the files by which Dynamo makes a prompt.

        A property of another type than Dynamo's counts as missing, as does a template at a URL:
        such a template is among the fetched files.
        """
        runtime = self.runtime
        templates = [part.place for _, part in _parts(self.chat_template_file) if part.place]
        # A later value is left out; the comparison of token ids shows whether it matters.
        context = _strings(self.prompt_context)
        context = context and [value for value in context if value in _PROMPT_CONTEXTS]
        exclude = runtime.exclude_tools_when_tool_choice_none
        return PromptOptions(
            chat_template_file=next((place for place in templates if place.startswith("/")), None),
            prompt_context=None if context is None else tuple(context),
            exclude_tools_when_tool_choice_none=exclude if isinstance(exclude, bool) else None,
            tool_call_arguments_format=_name(runtime.tool_call_arguments_format),
            tool_call_parser=_name(runtime.tool_call_parser),
            reasoning_parser=_name(runtime.reasoning_parser),
            default_thinking_mode=_name((runtime.runtime_data or {}).get("default_thinking_mode")),
            tokenizer_backend=_name(runtime.tokenizer_backend),
        )

    @property
    def checksum(self) -> str:
        """A text that is equal for two cards exactly when Dynamo's checksum (`mdcsum`) is.

        Dynamo serves only workers of one checksum at one endpoint. The fields are those that
        `ModelDeploymentCard::mdcsum` of Dynamo 1.6.1 hashes.
        """
        runtime = self.runtime
        data = runtime.runtime_data or {}
        return _digest(
            self.display_name,
            self.source_path,
            self.prompt_checksum,
            self.effective_context_length,
            self.kv_cache_block_size,
            self.worker_type,
            self.needs or [],
            bytes(self.router_config),
            bytes(self.indexer_identity),
            self.aliases or [],
            [data.get(flag) is True for flag in _FLAGS],
            msgspec.json.encode(data.get(_VIDEO_CONTRACT), order="deterministic"),
        )

    @property
    def effective_context_length(self) -> int | None:
        """The longest prompt and answer together, in tokens; None where the card has none."""
        return (
            self.runtime.context_length
            or self.architectural_max_context_length
            or self.context_length
        )

    @property
    def _extras(self) -> list[FilePart]:
        return self.extra_files or []


class CardEntry(_Placed):
    """Entry of the bucket `mdc`: the card of one model on one instance."""

    instance_id: Unsigned
    card_json: Card


class _ScopeEndpoint(msgspec.Struct):
    namespace: str
    component: str
    name: str


class _Scope(msgspec.Struct):
    endpoint: _ScopeEndpoint


class _TransportConfig(msgspec.Struct):
    endpoint: str | None = None


class _Transport(msgspec.Struct):
    kind: str
    config: _TransportConfig | None = None


class ChannelEntry(msgspec.Struct):
    """Entry of the bucket `event_channels`: a publisher's socket for one topic.

    Frontends publish topics of another scope, which the router does not read. Such fields are
    therefore decoded only for a topic that the router reads.
    """

    topic: str
    instance_id: Unsigned
    scope: msgspec.Raw = msgspec.Raw(b"null")
    transport: msgspec.Raw = msgspec.Raw(b"null")

    def endpoint_name(self, place: str) -> str:
        """`namespace.component.endpoint` of the publisher's workers."""
        scope = decode_json(_SCOPE, bytes(self.scope), f"{place}: scope", MAX_ENTRY_BYTES)
        at = scope.endpoint
        return f"{at.namespace}.{at.component}.{at.name}"

    def socket(self, place: str) -> str:
        """`tcp://host:port` of the publisher.

        Raises:
            ValueError: The publisher uses another transport than ZMQ.
        """
        transport = decode_json(
            _TRANSPORT, bytes(self.transport), f"{place}: transport", MAX_ENTRY_BYTES
        )
        if transport.kind.lower() != "zmq":
            raise ValueError(
                f"{place}: got event transport {transport.kind[:40]!r}, expected Zmq; start Dynamo "
                "with DYN_EVENT_PLANE=zmq, otherwise the feed is not read and routing is by load"
            )
        if transport.config is None or not transport.config.endpoint:
            raise ValueError(f"{place}: transport: field 'config.endpoint' is missing")
        return transport.config.endpoint


class _SourceWorker(msgspec.Struct):
    worker_id: Unsigned


class _SourceMetadata(msgspec.Struct):
    worker: _SourceWorker


class SourceEntry(msgspec.Struct):
    """Entry of the bucket `event_sources`: the worker whose events a publisher sends."""

    publisher_id: Unsigned
    metadata: _SourceMetadata


Entry = InstanceEntry | CardEntry | ChannelEntry | SourceEntry

_DECODERS: dict[str, msgspec.json.Decoder[Entry]] = {
    bucket: msgspec.json.Decoder(kind)
    for bucket, kind in zip(
        BUCKETS, (InstanceEntry, CardEntry, ChannelEntry, SourceEntry), strict=True
    )
}
_SCOPE = msgspec.json.Decoder(_Scope)
_TRANSPORT = msgspec.json.Decoder(_Transport)

_FILE_NAMES = {
    "hf_config_json": "config.json",
    "hf_tokenizer_json": "tokenizer.json",
    "hf_tokenizer_config_json": "tokenizer_config.json",
    "hf_generation_config_json": "generation_config.json",
    "hf_chat_template": "chat_template.jinja",
    "hf_chat_template_jinja": "chat_template.jinja",
    "hf_chat_template_json": "chat_template.json",
}
_PROMPT_CONTEXTS = ("oai_chat", "llama3_date_time")
"""Values of `prompt_context` in Dynamo 1.6.1."""
_FLAGS = ("vllm_enable_tower_connector_lora", "vllm_inference_v1_generate")
_VIDEO_CONTRACT = "vllm_nemotron_video_processor_contract"
_ROLES: dict[str, Role] = {"aggregated": "aggregated", "prefill": "prefill", "decode": "decode"}


def decode_entry(bucket: str, key: str, text: bytes) -> Entry:
    """An entry of a bucket from its JSON text.

    Raises:
        DecodeError: The text is too large, or a field is missing or not as expected. The error
            names bucket and key.
    """
    entry = decode_json(_DECODERS[bucket], text, place_of(bucket, key), MAX_ENTRY_BYTES)
    number = entry.publisher_id if isinstance(entry, SourceEntry) else entry.instance_id
    if number >= 2**64:
        raise ValueError(
            f"{place_of(bucket, key)}: got the id {number}, expected an unsigned 64-bit number"
        )
    return entry


def place_of(bucket: str, key: str) -> str:
    """The name of an entry in errors."""
    return f"{bucket}/{key[:_MAX_KEY_CHARACTERS]}"


def role_of(card: Card, endpoint: str) -> Role | None:
    """The role of a worker; None for an encode worker, which takes no request of its own.

    Raises:
        ValueError: The card names a role that does not exist.
    """
    kind = card.worker_type
    if kind is None:
        # Cards of older workers have no `worker_type`: model type or component names prefill.
        prefill = "prefill" in str(card.model_type or "").lower() or ".prefill." in endpoint
        kind = "prefill" if prefill else "aggregated"
    if kind == "encode":
        return None
    if kind not in _ROLES:
        raise ValueError(
            f"got worker_type {kind[:40]!r}, expected one of {', '.join(_ROLES)}, encode"
        )
    return _ROLES[kind]


def capacity(value: int | None) -> int | None:
    """A reported capacity; None where it is 0 or beyond every engine, and so says nothing."""
    return value if value and value <= MAX_CAPACITY else None


def _contents(files: Files | None) -> list[tuple[str, str]]:
    return sorted((kind, part.content) for kind, part in _parts(files))


def _parts(files: Files | None) -> list[tuple[str, FilePart]]:
    return [
        (kind, FilePart(path=part) if isinstance(part, str) else part)
        for kind, part in (files or {}).items()
    ]


def _strings(raw: msgspec.Raw) -> list[str] | None:
    try:
        return msgspec.json.decode(bytes(raw), type=list[str] | None)
    except msgspec.ValidationError:
        return None


def _name(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()
