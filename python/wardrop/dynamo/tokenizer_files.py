"""The local folder with a model's tokenizer and template.

The folder of the worker is used when it is on this machine. Otherwise the files are fetched from
the addresses in the model card (the metadata server of a worker) into the user's cache, once per
content.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from functools import partial
from pathlib import Path

import aiohttp

from wardrop.dynamo.daemon_thread import run_in_thread
from wardrop.dynamo.discovery.fleet_view import Model
from wardrop.dynamo.model_folder import cache_root

MAX_FILE_BYTES = 256 << 20
"""A larger file is refused; the largest tokenizers in use are about 35 MB."""

_MAX_FILES = 16
"""Files of a card that are fetched; a card of Dynamo names at most six."""

_TOKENIZERS = ("tokenizer.json", "tiktoken.model")
"""Names of a tokenizer's file, in the order in which Dynamo looks for them."""
_TIKTOKEN = ".tiktoken"
"""End of the other names of a tokenizer's file."""
_TIMEOUT_S = 60.0


class TokenizerFilesError(RuntimeError):
    """No folder has the files; the text says why. The model is then routed without tokens."""


async def tokenizer_folder(model: Model, root: Path | None = None) -> Path:
    """A local folder that holds at least a tokenizer.

    Args:
        model: The model, with the file places of its card.
        root: Cache folder; by default the user's.

    Raises:
        TokenizerFilesError: No place in the card can be read from this machine.
    """
    if model.source_path and await _has_tokenizer(Path(model.source_path)):
        return Path(model.source_path)
    places = dict(model.files[:_MAX_FILES])
    name = next((name for name in places if _is_tokenizer(name)), None)
    if name is None:
        raise TokenizerFilesError(
            f"the card of {model.name!r} names no {' or '.join(_TOKENIZERS)}, "
            f"and no file *{_TIKTOKEN}"
        )
    place = places[name]
    if await _is_file(Path(place)):
        return Path(place).parent
    if not place.startswith(("http://", "https://")):
        raise TokenizerFilesError(
            f"{name} of {model.name!r} is at {place!r}, which cannot be read from this machine"
        )
    remote = {name: url for name, url in places.items() if url.startswith("http")}
    return await _fetch(model.name, remote, (root or cache_root()) / "cards")


def _is_tokenizer(name: str) -> bool:
    return name in _TOKENIZERS or name.endswith(_TIKTOKEN)


async def _has_tokenizer(folder: Path) -> bool:
    """Whether a folder can be listed and holds a tokenizer's file.

    A thread lists the folder, because a network file system may hang.
    """

    def look() -> bool:
        return any(_is_tokenizer(path.name) and path.is_file() for path in folder.iterdir())

    try:
        return await run_in_thread(look)
    except (OSError, ValueError):
        return False


async def _is_file(path: Path) -> bool:
    """Whether a path names a file that can be seen; False for a path that no file can have.

    A thread asks, because a network file system may hang.
    """
    try:
        return await run_in_thread(path.is_file)
    except (OSError, ValueError):
        return False


async def _fetch(name: str, urls: dict[str, str], root: Path) -> Path:
    try:
        draft = await run_in_thread(partial(_make_draft, root))
        try:
            timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
            digest = hashlib.sha256()
            async with aiohttp.ClientSession(timeout=timeout) as session:
                for file in sorted(urls):
                    content = await _get(session, urls[file])
                    digest.update(f"{file} {len(content)}\n".encode() + content)
                    target = draft / Path(file).name
                    await run_in_thread(partial(target.write_bytes, content))
            folder = root / digest.hexdigest()[:24]
            await run_in_thread(partial(_put_in_place, draft, folder))
            return folder
        finally:
            await run_in_thread(partial(shutil.rmtree, draft, ignore_errors=True))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise TokenizerFilesError(
            f"the files of {name!r} cannot be fetched: {type(error).__name__}: {error}"
        ) from error


def _make_draft(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=".draft-", dir=root))


def _put_in_place(draft: Path, folder: Path) -> None:
    if folder.exists():
        return
    draft.chmod(0o755)
    try:
        draft.rename(folder)
    except OSError:
        # Another process may have put the same content in place meanwhile.
        if not folder.exists():
            raise


async def _get(session: aiohttp.ClientSession, url: str) -> bytes:
    async with session.get(url) as answer:
        answer.raise_for_status()
        content = bytearray()
        async for chunk in answer.content.iter_chunked(1 << 16):
            content += chunk
            if len(content) > MAX_FILE_BYTES:
                raise OSError(f"{url} is larger than {MAX_FILE_BYTES} bytes")
        return bytes(content)
