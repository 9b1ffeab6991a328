"""The token ids that are handed over equal those of Dynamo's own frontend, for any request.

Each template stands for a family of models and is written for this test. A recorder between router
and frontend shows the ids that the router hands over; a dry run of the same request shows
Dynamo's. `make test` compares a few requests of some families, `make test-all` more than 2,000.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from tests.live.client import post
from tests.live.prompt_requests import Json, RequestGenerator
from tests.live.recorder import DRY_RUN, Recorder
from tests.live.router import Router, running

from wardrop.dynamo.embedded import Fleet, FleetSpec
from wardrop.dynamo.model_folder import model_folder

pytestmark = pytest.mark.live

TEMPLATES = Path(__file__).parent / "chat_templates"
FAMILIES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
QUICK = ("chatml", "qwen_tools")
SEED = 20_260_101
MARKS = (
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|end|>",
    "<|START_OF_TURN_TOKEN|>",
)
"""Special tokens of the families, which the tokeniser of the test model gets in addition."""


def make_model(family: str, folder: Path) -> Path:
    """A model folder with the family's template; every second one has it in a file of its own."""
    model = folder / "model"
    shutil.copytree(model_folder(), model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    first = 1 + max(tokenizer["model"]["vocab"].values(), default=0)
    first = max([first, *(1 + token["id"] for token in tokenizer["added_tokens"])])
    known = {token["content"] for token in tokenizer["added_tokens"]}
    for number, mark in enumerate(mark for mark in MARKS if mark not in known):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokenizer["added_tokens"].append(
            {"id": first + number, "content": mark, "special": True, **flags}
        )
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = (TEMPLATES / f"{family}.jinja").read_text()
    config = json.loads((model / "tokenizer_config.json").read_text())
    if FAMILIES.index(family) % 2:
        (model / "chat_template.jinja").write_text(template)
    else:
        config["chat_template"] = template
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    settings = json.loads((model / "config.json").read_text())
    settings["vocab_size"] = first + len(MARKS)
    (model / "config.json").write_text(json.dumps(settings))
    return model


def dynamos_ids(url: str, path: str, body: Json) -> list[int] | None:
    """Ids of a dry run; None where Dynamo refuses the request."""
    dry = body | {"nvext": (body.get("nvext") or {}) | {"annotations": DRY_RUN}}
    answer = post(url, path, dry)
    return answer.json()["nvext"]["token_ids"] if answer.status == 200 else None


def compare(router: Router, recorder: Recorder, front: str, count: int, seed: int) -> Counter[str]:
    """Compares the ids of `count` random requests; how many requests had each outcome."""
    generator = RequestGenerator(seed, router.fleet.spec.model_name)
    seen: Counter[str] = Counter()
    for _ in range(count):
        path, body = generator.request()
        theirs = dynamos_ids(front, path, body)
        recorder.last = None
        answer = router.post(path, body)
        if theirs is None:
            assert answer.status != 200, "the router makes no refused request succeed"
            seen["refused"] += 1
            continue
        assert answer.status == 200, answer.body
        assert recorder.last is not None
        handed = (recorder.last.get("nvext") or {}).get("token_data")
        assert handed in (None, theirs), f"other ids than Dynamo's for {json.dumps(body)}"
        seen["equal" if handed else "left to Dynamo"] += 1
    return seen


def compare_family(family: str, folder: Path, count: int) -> Counter[str]:
    model = make_model(family, folder)
    with Fleet(FleetSpec(workers=1, model=model, speedup_ratio=50)) as fleet:
        front = fleet.add_frontend("kv")
        recorder = Recorder(front.url)
        try:
            with running(fleet, "--upstream", recorder.url) as router:
                router.await_ready().await_handover()
                return compare(router, recorder, front.url, count, SEED + FAMILIES.index(family))
        finally:
            recorder.close()


@pytest.mark.parametrize("family", QUICK)
def test_handed_over_ids_are_dynamos(private_network: None, tmp_path: Path, family: str):
    seen = compare_family(family, tmp_path, 40)
    assert seen["equal"] >= 20, seen


@pytest.mark.heavy
@pytest.mark.parametrize("family", FAMILIES)
def test_handed_over_ids_are_dynamos_at_length(private_network: None, tmp_path: Path, family: str):
    """At least 2,000 equal prompts over all families."""
    seen = compare_family(family, tmp_path, 420)
    print(f"{family}: {dict(seen)}")
    assert seen["left to Dynamo"] == 0, seen
    assert seen["equal"] >= 200, seen
