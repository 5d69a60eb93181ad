"""Content keys: what an outcome or a gradient depends on, as one hash; what they are cached under."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixopt.scoring.evaluator import EVALUATION_VERSION
from mixopt.values.mix import Mix
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool

_ONE = struct.pack("<d", 1.0)


class Keys:
    """SHA-256 keys of mixes of one pool.

    Args:
        pool: The checkpoints.
        dtype: The saved dtype, where it is not that of the ingredients.
        identity: What else outcomes depend on, as plain JSON values.

    Attributes:
        identity: As given.
    """

    def __init__(self, pool: Pool, dtype: torch.dtype | None, identity: Mapping[str, Any]) -> None:
        self._pool = pool
        self._dtype = dtype
        self.identity = dict(identity)
        constant = {
            "version": EVALUATION_VERSION,
            "identity": self.identity,
            "dtypes": {name: str(each) for name, each in sorted(pool.saved_dtypes(dtype).items())},
        }
        self._constant = json.dumps(constant, sort_keys=True).encode()
        self._tensors = self._tensor_hashes()

    def among(self, devices: Iterable[str]) -> Keys:
        """Keys of the same, where devices of several kinds compute."""
        return Keys(self._pool, self._dtype, {**self.identity, "devices": sorted(devices)})

    def of_mix(self, mix: Mix, split: str, statistics: bytes = b"") -> str:
        """The key of a mix's outcomes on a split.

        Per tensor it holds the nonzero (tensor hash, coefficient) pairs: a mix keeps its outcomes when ingredients
        are renamed, removed or added, as long as the same tensors are mixed.

        Args:
            mix: Over the pool's columns.
            split: The split's fingerprint.
            statistics: How its BatchNorm statistics are set, where they are not averaged, and how samples are batched,
                where they are not in order.
        """
        digest = hashlib.sha256(self._constant)
        digest.update(statistics)
        digest.update(split.encode())
        rows = tensor_rows(mix, self._pool)
        known: dict[bytes, list[tuple[int, bytes]]] = {}
        for name, place, hashes in self._tensors:
            digest.update(name.encode())
            if place is None:
                digest.update(hashes[0] + _ONE)
                continue
            row = rows[place]
            row_key = row.tobytes()
            if row_key not in known:
                known[row_key] = [(int(i), struct.pack("<d", row[i])) for i in np.flatnonzero(row)]
            for pair in sorted(hashes[column] + weight for column, weight in known[row_key]):
                digest.update(pair)
        return digest.hexdigest()

    def of_condition(self, split: str, statistics: bytes = b"") -> str:
        """The key of all that a mix's outcomes depend on but the mix; arguments as for `of_mix`."""
        digest = hashlib.sha256(b"condition" + self._constant)
        for part in (statistics, split.encode()):
            digest.update(struct.pack("<Q", len(part)) + part)
        return digest.hexdigest()

    def of_gradient(self, mix: Mix, split: str, samples: NDArray[np.int64], scale: float) -> str:
        """The key of a gradient: it depends on all columns, the groups, the samples and the factor on the logits."""
        digest = hashlib.sha256(b"gradient by part" + self._constant)
        digest.update(split.encode())
        digest.update(json.dumps([mix.as_dict(), list(self._pool.fingerprints.values())]).encode())
        digest.update(np.asarray(samples, dtype="<i8").tobytes() + struct.pack("<d", scale))
        return digest.hexdigest()

    def _tensor_hashes(self) -> list[tuple[str, int | None, list[bytes]]]:
        """Every tensor by name: its place among the mixed ones, if it is, and its hash in every column."""
        places = {tensor.name: number for number, tensor in enumerate(self._pool.mixed)}
        columns = list(self._pool.hashes.values())
        return [
            (name, places.get(name), [bytes.fromhex(hashes[name]) for hashes in columns]) for name in sorted(columns[0])
        ]
