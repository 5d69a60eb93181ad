"""Texts for transformers' models: tokens of one or two fields, padded per batch, with a mask of what is real."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt.errors import DataError, SpecError
from mixopt.families.transformers.folder import Described, text_of
from mixopt.untrusted import refusing
from mixopt.values.samples import LENGTH, Encoding

TEXT, SECOND = "text", "text_pair"
_IDS, _TYPES, _MASK, _CUT = "input_ids", "token_type_ids", "attention_mask", "cut"
# Longer than any model's: what tokenizers say that know no limit.
_NO_LIMIT = 10**6
_ANEW = "save it anew with tokenizer.save_pretrained(FOLDER)"
# All that the tokenizers library, which is written in Rust, ever raises.
_RUST = (Exception,)
# Their positions are counted from behind the padding token's number.
_SHIFTED = frozenset({"camembert", "data2vec-text", "ibert", "longformer", "roberta", "xlm-roberta", "xlm-roberta-xl"})


def open_tokenizer(described: Described) -> Any:
    """The tokenizer of a folder, from copies of its own files alone; no code of theirs is run and no hub asked.

    Raises:
        SpecError: There is none, or transformers cannot make it.
    """
    from transformers import AutoTokenizer

    if not described.files:
        raise SpecError(
            f"{described.where}: there is no tokenizer beside it (tokenizer.json, or vocab.txt and the like); save the "
            "one that the model was trained with there: tokenizer.save_pretrained(FOLDER)"
        )
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {**described.files, "config.json": text_of(described.config).encode()}.items():
            (Path(folder) / name).write_bytes(content)
        with refusing(
            SpecError,
            described.where,
            found="transformers cannot make the tokenizer beside it",
            cure=_ANEW,
            also=_RUST,
        ):
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def longest_of(tokenizer: Any, config: Any) -> int | None:
    """How many tokens a model takes at most, as its tokenizer and its positions say; None where neither does."""
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and config.model_type in _SHIFTED:
        positions -= (config.pad_token_id or 0) + 1
    stated = [limit for limit in (tokenizer.model_max_length, positions) if isinstance(limit, int) and limit > 0]
    return min((limit for limit in stated if limit < _NO_LIMIT), default=None)


def padding_of(tokenizer: Any, config: Any, where: str) -> int:
    """The number of the padding token.

    Raises:
        SpecError: The model, which must tell padding from text by it, knows none.
    """
    own = getattr(config, "pad_token_id", None)
    if own is not None:
        return int(own)
    if tokenizer.pad_token_id is None:
        raise SpecError(
            f"{where}: neither pad_token_id of the config nor the tokenizer names a padding token, so that texts "
            "cannot be padded to one length; set pad_token_id in the config as in training"
        )
    return int(tokenizer.pad_token_id)


def text_encoding(tokenizer: Any, described: Described, padding: int, longest: int | None) -> Encoding:
    """The encoding of texts.

    One text, or two where records have a second field: ``input_ids`` and, where the tokenizer gives them,
    ``token_type_ids``, one-dimensional; and whether the text was cut at ``longest`` tokens.

    Args:
        tokenizer: From `open_tokenizer`.
        described: What it was made of; part of the key.
        padding: The number of the padding token.
        longest: The tokens that are kept of a text; None for all.
    """
    # A tokenizer keeps the limit of one call in its own state; records are encoded by several threads.
    alone = threading.Lock()
    wants_types = _TYPES in tokenizer.model_input_names

    def encode(record: Any) -> dict[str, NDArray[Any]]:
        given = _texts(record)
        with alone, refusing(DataError, described.where, found="its tokenizer fails", cure=_ANEW, also=_RUST):
            # Without a limit: of what is cut there would be no telling.
            whole = tokenizer(*given, truncation=False, return_attention_mask=False, verbose=False)
            cut = longest is not None and len(whole[_IDS]) > longest
            kept: Any = whole
            if cut:
                kept = tokenizer(*given, truncation=True, max_length=longest, return_attention_mask=False)
        if not kept[_IDS]:
            raise DataError(f"the tokenizer makes no token of the text {given[0]!r}; remove the record")
        found: dict[str, NDArray[Any]] = {
            _IDS: np.asarray(kept[_IDS], dtype=np.int32),
            _CUT: np.asarray(cut, dtype=np.uint8),
        }
        if wants_types:
            found[_TYPES] = np.asarray(kept[_TYPES], dtype=np.int32)
        return found

    def collate(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tokens, lengths = arrays[_IDS].long(), arrays[_IDS + LENGTH]
        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        types = {_TYPES: arrays[_TYPES].long()} if wants_types else {}
        return {_IDS: torch.where(real, tokens, padding), _MASK: real.long(), **types}

    def text_of(arrays: Mapping[str, NDArray[Any]]) -> str:
        tokens = arrays[_IDS][: int(arrays[_IDS + LENGTH])]
        with alone:
            return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))

    hashes = sorted(described.hashes.items())
    digest = hashlib.sha256(repr((hashes, padding, longest, wants_types)).encode()).hexdigest()[:16]
    key = f"transformers text {digest}"
    return Encoding(encode, collate, key, lambda arrays: _notices(arrays, longest), text_of=text_of)


def _texts(record: Any) -> list[str]:
    if not isinstance(record, Mapping):
        raise DataError(
            f"expected a record with the field {TEXT}, found an image; this model takes texts: a .jsonl file or "
            "another source of texts"
        )
    given = [record[TEXT], *([record[SECOND]] if SECOND in record else [])]
    for name, value in zip((TEXT, SECOND), given, strict=False):
        if not isinstance(value, str):
            raise DataError(f"expected a text in the field {name}, found a {type(value).__name__}")
    return given


def _notices(arrays: Mapping[str, NDArray[Any]], longest: int | None) -> Iterable[str]:
    count = int(np.count_nonzero(arrays[_CUT]))
    if count:
        yield f"{count:,} of {len(arrays[_CUT]):,} texts are longer than the model's {longest} tokens and are cut there"
