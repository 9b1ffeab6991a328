"""A tokeniser of one character per token: an engine that counts bytes counts the same tokens."""

from __future__ import annotations

import json
from pathlib import Path


def model_folder(folder: Path) -> Path:
    """A folder with a tokeniser of one character per token."""
    vocabulary = {chr(32 + at): at for at in range(95)} | {"<unk>": 95}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "."},
            "behavior": "Isolated",
            "invert": False,
        },
        "post_processor": None,
        "decoder": None,
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder
