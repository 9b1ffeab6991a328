"""Token ids in every form, and hashes against Dynamo's own."""

import array
import ctypes
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wardrop
from wardrop import _core

FORMS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "tuple": tuple,
    "array": lambda ids: array.array("I", ids),
    "numpy uint32": lambda ids: np.array(ids, dtype=np.uint32),
    "numpy int64": lambda ids: np.array(ids, dtype=np.int64),
    "numpy uint64": lambda ids: np.array(ids, dtype=np.uint64),
    "numpy every second": lambda ids: np.repeat(np.array(ids, dtype=np.uint32), 2)[::2],
    "read-only": lambda ids: memoryview(array.array("I", ids)).toreadonly(),
    "bytes": lambda ids: np.array(ids, dtype="<u4").tobytes(),
    "bytearray": lambda ids: bytearray(np.array(ids, dtype="<u4").tobytes()),
    "unaligned bytes": lambda ids: memoryview(b"x" + np.array(ids, dtype="<u4").tobytes())[1:],
}


@pytest.mark.parametrize("form", FORMS)
@given(
    ids=st.lists(st.integers(0, 2**32 - 1), max_size=200),
    block_size=st.sampled_from([1, 3, 16, 61]),
)
def test_every_form_of_tokens_gives_the_same_hashes(
    form: str, ids: list[int], block_size: int
) -> None:
    expected = wardrop.block_hashes(ids, block_size)
    assert len(expected) == len(ids) // block_size
    assert wardrop.block_hashes(FORMS[form](ids), block_size) == expected


NARROW = ["u1", "i1", "<u2", ">u2", "<i2", ">i2", "<u4", ">u4", "<i4", ">i4", "<u8", ">u8", ">i8"]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("layout", ["plain", "strided", "reversed", "read-only"])
def test_every_integer_array_is_read_as_its_numbers(dtype: str, layout: str) -> None:
    ids = np.arange(1, 65).astype(dtype)
    if layout == "strided":
        ids = np.repeat(ids, 3)[::3]
    elif layout == "reversed":
        ids = ids[::-1]
    elif layout == "read-only":
        ids.flags.writeable = False
    expected = wardrop.block_hashes([int(id_) for id_ in ids], 4)
    assert wardrop.block_hashes(ids, 4) == expected


def test_arrays_of_ctypes_are_read_as_their_numbers() -> None:
    ids = list(range(1, 65))
    expected = wardrop.block_hashes(ids, 4)
    for kind in (ctypes.c_uint32, ctypes.c_int64, ctypes.c_uint16):
        assert wardrop.block_hashes((kind * 64)(*ids), 4) == expected
        assert wardrop.block_hashes((kind.__ctype_be__ * 64)(*ids), 4) == expected


@pytest.mark.parametrize("dtype", ["<u8", ">u8", "<i8", ">i8"])
def test_hashes_in_either_byte_order_match(dtype: str) -> None:
    router = wardrop.Router(4)
    router.add_worker(1)
    hashes = np.array(wardrop.block_hashes(range(64), 4), dtype=np.uint64)
    router.apply(1, wardrop.Stored(list(range(16)), local_hashes=hashes))
    given = hashes.view(np.int64).astype(dtype) if "i" in dtype else hashes.astype(dtype)
    assert router.find_matches(hashes=given) == {(1, 0): (16, 0, 0)}
    assert wardrop.sequence_hashes(given) == wardrop.sequence_hashes(hashes)


def test_costs_in_either_byte_order_give_the_same_assignment() -> None:
    costs = np.array([[3.0, 1.0, 2.0], [1.0, 5.0, 9.0]])
    assert _core.assign(costs.astype(">f8")) == _core.assign(costs) == ([1, 0], 2.0)
    marginals = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    congested = _core.assign_congested(costs, marginals)
    assert _core.assign_congested(costs.astype(">f8"), marginals.astype(">f8")) == congested


def test_a_view_that_claims_more_items_than_any_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at most 268435456"):
        wardrop.block_hashes(np.broadcast_to(np.uint64(1), (2**40,)), 4)


@pytest.mark.parametrize(
    ("tokens", "error", "says"),
    [
        ([1, 2, -1], ValueError, "token 2 out of range"),
        ([2**32], ValueError, "token 0 out of range"),
        ([2**80], ValueError, "token 0 out of range"),
        ([1, "2"], TypeError, "token 1 is not an int"),
        (np.array([1, -5]), ValueError, "token 1 out of range"),
        (np.array([1.0]), TypeError, "format"),
        (np.zeros((2, 2), dtype=np.uint32), ValueError, "2 dimensions"),
        (b"12345", ValueError, "multiple of 4"),
        ("text", TypeError, "tokens of type str"),
        (None, TypeError, "NoneType"),
        ({1: 2}, TypeError, "tokens of type dict"),
        (7, TypeError, "tokens of type int"),
    ],
)
def test_what_is_no_token_is_refused_with_its_place(
    tokens: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        wardrop.block_hashes(tokens, 16)


def test_an_error_does_not_repeat_the_token() -> None:
    with pytest.raises(ValueError, match="out of range") as caught:
        wardrop.block_hashes([4_294_967_299], 1)
    assert "4294967299" not in str(caught.value)


def test_a_buffer_in_use_can_not_be_resized_and_is_free_afterwards() -> None:
    ids = bytearray(64)
    wardrop.block_hashes(ids, 16)
    ids.extend(b"1234")  # raises BufferError while an export lives
    assert len(ids) == 68


def test_hashes_equal_dynamos_on_random_prompts() -> None:
    llm = pytest.importorskip(
        "dynamo.llm", reason="Dynamo is not installed: nothing to compare with"
    )
    rng = random.Random(5)
    for _ in range(400):
        block_size = rng.choice([1, 2, 8, 16, 32, 60, 61, 64, 128, 512])
        ids = [rng.randrange(2**32) for _ in range(rng.randrange(0, 3 * block_size + 40))]
        lora = rng.choice([None, "", "adapter", "ä-本-" + "x" * 300])
        space = rng.choice([None, "", "tenant-1", "s" * 241])
        expected = llm.compute_block_hash_for_seq(
            ids, block_size, lora_name=lora, cache_namespace=space
        )
        got = wardrop.block_hashes(ids, block_size, lora_name=lora, cache_namespace=space)
        assert got == expected


def test_sequence_hashes_equal_the_published_recurrence() -> None:
    xxhash = pytest.importorskip("xxhash")
    locals_ = wardrop.block_hashes(range(160), 16)
    expected = locals_[:1]
    for local in locals_[1:]:
        pair = expected[-1].to_bytes(8, "little") + local.to_bytes(8, "little")
        expected.append(xxhash.xxh3_64_intdigest(pair, seed=1337))
    assert wardrop.sequence_hashes(locals_) == expected
    signed = [value - 2**64 if value >= 2**63 else value for value in locals_]
    assert wardrop.sequence_hashes(signed) == expected
    assert wardrop.sequence_hashes(np.array(locals_, dtype=np.uint64)) == expected
    assert wardrop.sequence_hashes(np.array(signed, dtype=np.int64)) == expected


@pytest.mark.parametrize(
    "form",
    [
        list,
        lambda hashes: np.array(hashes, dtype=np.uint64),
        lambda hashes: np.array(hashes, dtype=np.uint64).view(np.int64),
        lambda hashes: np.repeat(np.array(hashes, dtype=np.uint64), 2)[::2],
        lambda hashes: memoryview(np.array(hashes, dtype=np.uint64)),
        lambda hashes: [value - 2**64 if value >= 2**63 else value for value in hashes],
    ],
)
def test_every_form_of_hashes_finds_the_same(form: Callable[[list[int]], Any]) -> None:
    router, tokens = wardrop.Router(16), list(range(160))
    router.add_worker(1)
    hashes = wardrop.block_hashes(tokens, 16)
    router.apply(1, wardrop.Stored(range(10), local_hashes=form(hashes)))
    assert router.find_matches(hashes=form(hashes)) == {(1, 0): (10, 0, 0)}
    assert router.find_matches(hashes=form(hashes[:3])) == {(1, 0): (3, 0, 0)}
    assert router.route(hashes=form(hashes)).overlap_blocks == 10
    assert router.find_matches(hashes=form([])) == {}


def test_hashes_of_another_width_or_shape_are_refused() -> None:
    router = wardrop.Router(16)
    router.add_worker(1)
    for wrong in (np.zeros(4, dtype=np.uint32), np.zeros((2, 2), dtype=np.uint64)):
        with pytest.raises((TypeError, ValueError)):
            router.route(hashes=wrong)
    with pytest.raises(ValueError, match="64-bit"):
        router.route(hashes=[2**64])
