"""A family of texts that takes whatever a record holds, named by import path: damage is then never its own fault."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from torch import nn

from mixopt import Encoding
from tests.text_family import WORDS, BagOfWords, collate

__all__ = ["BagOfWords", "encode", "texts"]


def encode(record: dict[str, Any]) -> dict[str, Any]:
    """Each word to its hash."""
    text = record["text"]
    words = text.split() if isinstance(text, str) else []
    return {
        "tokens": np.array([zlib.crc32(word.encode("utf-8", "replace")) % WORDS for word in words[:50]], dtype=np.int64)
    }


ENCODING = Encoding(encode, collate, "hashed words 2")


def texts(classnames: tuple[str, ...]) -> tuple[nn.Module, Any, Encoding]:
    """What ``--family tests.faults.families:texts`` names."""
    return BagOfWords(len(classnames)), lambda module: lambda batch: module(*batch), ENCODING
