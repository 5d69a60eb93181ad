"""What a folder of transformers' says of its model: config, labels, and the files of a tokenizer or image processor.

JSON alone; nothing of a model library is imported, and nothing that a file names is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixopt.errors import SpecError, names, short
from mixopt.files import natural_key
from mixopt.untrusted import open_regular, refusing
from mixopt.untrusted.texts import MOST_JSON, json_of, read_json

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_CONFIG = "tokenizer_config.json"
# Every file that a tokenizer of transformers' reads.
TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "emoji_tokens.json",
    "entity_vocab.json",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "spiece.model",
    "spm.model",
    "tekken.json",
    "tokenizer.model",
)
# Of these, any one holds the vocabulary.
_VOCABULARIES = frozenset(TOKENIZER_FILES) - {TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"}
# Keys that say where a file once lay, or what code to fetch; neither is followed.
_NOT_FOLLOWED = re.compile(r"_file$|^auto_map$|^_?name_or_path$|^_?attn_implementation")
_HASH_LENGTH = 16


@dataclass(frozen=True)
class Described:
    """What makes the model again.

    Attributes:
        config: What ``config.json`` holds, without the keys that are not followed.
        processor: What the image processor's config holds; None where there is none.
        files: Name to content of the tokenizer's files; none for a model of images.
        where: Where the config was found, for messages.
        notices: What a user should know of how it was found.
    """

    config: dict[str, Any]
    processor: dict[str, Any] | None
    files: dict[str, bytes]
    where: str
    notices: tuple[str, ...] = ()

    @property
    def hashes(self) -> dict[str, str]:
        """Name to hash of each file of the tokenizer."""
        return {name: hashlib.sha256(content).hexdigest()[:_HASH_LENGTH] for name, content in self.files.items()}


def describe(model: str | Mapping[str, Any] | None, folder: Path) -> Described:
    """Read what describes the model.

    Args:
        model: A folder, its ``config.json``, what `Described` gave as an identity, or None for the folder itself or
            the first one in it that has a ``config.json``.
        folder: What relative paths are relative to, and where the files of an identity lie.

    Raises:
        SpecError: There is no config, or one of the files is not what it should be.
    """
    if isinstance(model, Mapping):
        return _of_identity(model, folder)
    path = _config_file(model, folder)
    config = _object(path)
    notices = []
    if "auto_map" in config:
        notices.append(f"{path}: names code of its own (auto_map), which is not run; the model is transformers' own")
    kept = _followed(config)
    sources = [path.parent, *([] if path.parent.resolve() == folder.resolve() else [folder])]
    files, processor = {}, None
    for source in sources:
        files, processor = tokenizer_files(source), _processor(source)
        if files or processor:
            if source != path.parent:
                notices.append(f"{path.parent}: has no tokenizer or image processor; that of {source} is taken")
            break
    return Described(kept, processor, files, str(path), tuple(notices))


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Name to content of a tokenizer's files in a folder, without what is not followed; empty without a vocabulary.

    Raises:
        SpecError: One cannot be read, or is not what its name says.
    """
    found = {}
    for name in TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            found[name] = _content(path)
    if not found.keys() & _VOCABULARIES:
        return {}
    if TOKENIZER_CONFIG in found:
        path = folder / TOKENIZER_CONFIG
        found[TOKENIZER_CONFIG] = text_of(_followed(_object(path))).encode()
    return found


def config_beside(path: Path) -> Path | None:
    """The config that describes a checkpoint: in it where it is a folder, else beside it; None without one."""
    found = (path if path.is_dir() else path.parent) / CONFIG
    return found if found.is_file() else None


def read_config(path: Path) -> dict[str, Any]:
    """A config without the keys that are not followed.

    Raises:
        SpecError: Not a JSON object.
    """
    return _followed(_object(path))


def text_of(values: Mapping[str, Any]) -> str:
    """JSON as transformers writes it."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _of_identity(stored: Mapping[str, Any], folder: Path) -> Described:
    """From an identity, and the tokenizer's files in a folder, which must be the same ones."""
    config, processor, hashes = (stored.get(key) for key in ("config", "processor", "files"))
    if not isinstance(config, Mapping):
        raise SpecError("--model: expected a transformers config under the key config; name the folder of the model")
    if not isinstance(processor, Mapping | None) or not isinstance(hashes, Mapping | None):
        raise SpecError("--model: processor and files are not JSON objects; name the folder of the model")
    described = Described(
        _followed(config),
        None if processor is None else _followed(processor),
        tokenizer_files(folder) if hashes else {},
        "--model",
    )
    wrong = [name for name, wanted in (hashes or {}).items() if described.hashes.get(name) != wanted]
    if wrong:
        raise SpecError(
            f"{folder}: expected the tokenizer's files that the model was saved with; {names(wrong)} are missing or "
            "others; copy them there from the run's folder, or from a checkpoint's"
        )
    files = {name: content for name, content in described.files.items() if name in (hashes or {})}
    return Described(described.config, described.processor, files, described.where)


def _config_file(model: str | None, folder: Path) -> Path:
    if model is None:
        return _first_config(folder)
    if ":" in model:
        raise SpecError(f"--model {short(model)}: expected a local folder or its {CONFIG}; nothing is downloaded")
    # One on the command line may be given from here, or by its name in the pool.
    for given in (Path(model), folder / model):
        path = given / CONFIG if given.is_dir() else given
        if path.is_file():
            return path
    raise SpecError(
        f"--model {short(model)}: no such folder with a {CONFIG}, and no such file, neither here nor in {folder}; "
        "nothing is downloaded"
    )


def _first_config(folder: Path) -> Path:
    """The folder's own config, or that of the first folder in it."""
    if (folder / CONFIG).is_file():
        return folder / CONFIG
    with refusing(SpecError, str(folder), found="cannot be searched for a config", cure="give --model"):
        inner = sorted(folder.glob(f"*/{CONFIG}"), key=lambda path: natural_key(path.parent.name))
    if not inner:
        raise SpecError(
            f"--model: there is no {CONFIG} in {folder} or in a folder in it; name the folder of a checkpoint that "
            "has one"
        )
    return inner[0]


def _processor(folder: Path) -> dict[str, Any] | None:
    for name in PROCESSORS:
        if (folder / name).is_file():
            found = _object(folder / name)
            inner = found.get("image_processor")
            return _followed(inner if isinstance(inner, Mapping) else found)
    return None


def _followed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not _NOT_FOLLOWED.search(key)}


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path, SpecError, cure="restore it from a copy")
    if not isinstance(found, dict):
        raise SpecError(f"{path}: expected a JSON object, found a {type(found).__name__}; restore it from a copy")
    return found


def _content(path: Path) -> bytes:
    with refusing(SpecError, str(path), found="cannot be read", cure="restore it from a copy"):
        with open_regular(path) as stream:
            content = stream.read(MOST_JSON + 1)
        if len(content) > MOST_JSON:
            raise SpecError(f"{path}: more than {MOST_JSON:,} bytes, where a tokenizer's file has far fewer")
    if path.suffix == ".json":
        json_of(content.decode("utf-8", "replace"), str(path), SpecError)
    return content


def without_dtype(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config that leaves it to the saved weights what dtype they are loaded in."""
    return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
