from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UpsertWorkerRequest(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: Worker
    def __init__(self, worker: _Optional[_Union[Worker, _Mapping]] = ...) -> None: ...

class UpsertWorkerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeleteWorkerRequest(_message.Message):
    __slots__ = ("worker_id",)
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    worker_id: int
    def __init__(self, worker_id: _Optional[int] = ...) -> None: ...

class DeleteWorkerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    def __init__(self, workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("worker_id", "model", "routing_group", "endpoint", "block_size", "first_rank", "ranks", "kv_blocks", "max_batched_tokens")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROUTING_GROUP_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    FIRST_RANK_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    worker_id: int
    model: str
    routing_group: str
    endpoint: str
    block_size: int
    first_rank: int
    ranks: int
    kv_blocks: int
    max_batched_tokens: int
    def __init__(self, worker_id: _Optional[int] = ..., model: _Optional[str] = ..., routing_group: _Optional[str] = ..., endpoint: _Optional[str] = ..., block_size: _Optional[int] = ..., first_rank: _Optional[int] = ..., ranks: _Optional[int] = ..., kv_blocks: _Optional[int] = ..., max_batched_tokens: _Optional[int] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("token_ids", "block_hashes", "input_tokens")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_HASHES_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    block_hashes: _containers.RepeatedScalarFieldContainer[int]
    input_tokens: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., block_hashes: _Optional[_Iterable[int]] = ..., input_tokens: _Optional[int] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("model", "routing_group", "prompt", "allowed_worker_ids")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROUTING_GROUP_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    routing_group: str
    prompt: Prompt
    allowed_worker_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., routing_group: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ..., allowed_worker_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Rank(_message.Message):
    __slots__ = ("worker_id", "dp_rank")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    DP_RANK_FIELD_NUMBER: _ClassVar[int]
    worker_id: int
    dp_rank: int
    def __init__(self, worker_id: _Optional[int] = ..., dp_rank: _Optional[int] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("rank", "endpoint", "cached_tokens", "prefill_tokens")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    rank: Rank
    endpoint: str
    cached_tokens: int
    prefill_tokens: int
    def __init__(self, rank: _Optional[_Union[Rank, _Mapping]] = ..., endpoint: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., prefill_tokens: _Optional[int] = ...) -> None: ...

class SelectRequest(_message.Message):
    __slots__ = ("selection_id", "target")
    SELECTION_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    selection_id: str
    target: Target
    def __init__(self, selection_id: _Optional[str] = ..., target: _Optional[_Union[Target, _Mapping]] = ...) -> None: ...

class SelectResponse(_message.Message):
    __slots__ = ("choice",)
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    choice: Choice
    def __init__(self, choice: _Optional[_Union[Choice, _Mapping]] = ...) -> None: ...

class ReserveRequest(_message.Message):
    __slots__ = ("selection_id", "target", "worker", "from_select")
    SELECTION_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    FROM_SELECT_FIELD_NUMBER: _ClassVar[int]
    selection_id: str
    target: Target
    worker: Rank
    from_select: bool
    def __init__(self, selection_id: _Optional[str] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., worker: _Optional[_Union[Rank, _Mapping]] = ..., from_select: _Optional[bool] = ...) -> None: ...

class ReserveResponse(_message.Message):
    __slots__ = ("choice",)
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    choice: Choice
    def __init__(self, choice: _Optional[_Union[Choice, _Mapping]] = ...) -> None: ...

class PrefillCompleteRequest(_message.Message):
    __slots__ = ("selection_id",)
    SELECTION_ID_FIELD_NUMBER: _ClassVar[int]
    selection_id: str
    def __init__(self, selection_id: _Optional[str] = ...) -> None: ...

class PrefillCompleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("selection_id",)
    SELECTION_ID_FIELD_NUMBER: _ClassVar[int]
    selection_id: str
    def __init__(self, selection_id: _Optional[str] = ...) -> None: ...

class RenewResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FreeRequest(_message.Message):
    __slots__ = ("selection_id", "output_tokens", "cached_tokens")
    SELECTION_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    selection_id: str
    output_tokens: int
    cached_tokens: int
    def __init__(self, selection_id: _Optional[str] = ..., output_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class FreeResponse(_message.Message):
    __slots__ = ("was_open",)
    WAS_OPEN_FIELD_NUMBER: _ClassVar[int]
    was_open: bool
    def __init__(self, was_open: _Optional[bool] = ...) -> None: ...

class LoadsRequest(_message.Message):
    __slots__ = ("model", "routing_group", "prompt")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROUTING_GROUP_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    model: str
    routing_group: str
    prompt: Prompt
    def __init__(self, model: _Optional[str] = ..., routing_group: _Optional[str] = ..., prompt: _Optional[_Union[Prompt, _Mapping]] = ...) -> None: ...

class LoadsResponse(_message.Message):
    __slots__ = ("loads",)
    LOADS_FIELD_NUMBER: _ClassVar[int]
    loads: _containers.RepeatedCompositeFieldContainer[Load]
    def __init__(self, loads: _Optional[_Iterable[_Union[Load, _Mapping]]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("rank", "prefill_tokens", "decode_blocks", "active_requests", "device_blocks")
    RANK_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    rank: Rank
    prefill_tokens: int
    decode_blocks: int
    active_requests: int
    device_blocks: int
    def __init__(self, rank: _Optional[_Union[Rank, _Mapping]] = ..., prefill_tokens: _Optional[int] = ..., decode_blocks: _Optional[int] = ..., active_requests: _Optional[int] = ..., device_blocks: _Optional[int] = ...) -> None: ...
