"""A small model folder that Dynamo's frontend and mock workers accept without a download.

It has a byte-level BPE tokenizer trained on made-up words, a Llama configuration, and a ChatML
template. The user's cache holds one folder per version of this file. A folder is put in place by a
rename, so that no process ever sees half a folder.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CONTEXT_LENGTH = 131_072

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] "
    "}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def model_folder(python: str = sys.executable, root: Path | None = None) -> Path:
    """Path of the cached folder, which the first call makes in about 3 s.

    Args:
        python: An interpreter with the package `tokenizers`, which every Dynamo installation has.
        root: Parent of the folders; by default `$XDG_CACHE_HOME/wardrop/models`.

    Raises:
        RuntimeError: The interpreter has no `tokenizers`; the text quotes the interpreter's error.
    """
    recipe = hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()[:12]
    parent = root or cache_root() / "models"
    folder = parent / f"tiny-{recipe}"
    if (folder / "tokenizer.json").exists():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=parent))
    try:
        _train(python, draft / "tokenizer.json")
        _describe(draft)
        draft.chmod(0o755)
        try:
            draft.rename(folder)
        except OSError:
            # Another process may have made the folder meanwhile: then this draft is not needed.
            if not (folder / "tokenizer.json").exists():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/wardrop`, by default `~/.cache/wardrop`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "wardrop"


def train_tokenizer(target: Path) -> None:
    """Train the tokenizer and write `tokenizer.json`; needs the `tokenizers` package."""
    import tokenizers  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]
    from tokenizers import decoders, models, pre_tokenizers, trainers  # pyright: ignore

    # fmt: off
    tokenizer = tokenizers.Tokenizer(models.BPE())  # pyright: ignore
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(  # pyright: ignore
        vocab_size=8192,
        special_tokens=list(_SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # pyright: ignore
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)  # pyright: ignore
    tokenizer.save(str(target))  # pyright: ignore
    # fmt: on


def _corpus() -> list[str]:
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(4000)]
    return [" ".join(rng.choices(words, k=200)) for _ in range(300)]


def _train(python: str, target: Path) -> None:
    # In a process of its own: the training starts native threads, and the interpreter may be
    # another one than this one.
    command = [python, "-P", str(Path(__file__)), str(target)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if run.returncode != 0:
        last = run.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(
            f"cannot train the tokenizer with {python}: {last}; install it with `pip install "
            f"tokenizers`"
        )


def _describe(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    beginning, end = ids["<|endoftext|>"], ids["<|im_end|>"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(vocabulary["model"]["vocab"]),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rms_norm_eps": 1e-5,
        "bos_token_id": beginning,
        "eos_token_id": end,
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    generation = {"bos_token_id": beginning, "eos_token_id": [end], "max_length": CONTEXT_LENGTH}
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": CONTEXT_LENGTH,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer),
    ):
        (folder / name).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    train_tokenizer(Path(sys.argv[1]))
