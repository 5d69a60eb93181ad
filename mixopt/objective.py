"""Objective: the single path by which a mix is ever scored, and the cache on disk behind it."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from mixopt.builder import FastBuilder, tensor_rows
from mixopt.errors import ScoreError, names
from mixopt.evaluator import EVALUATION_VERSION, Evaluator, Outcomes, Predict
from mixopt.files import atomic_write
from mixopt.metrics import METRICS, Metric
from mixopt.mix import Mix
from mixopt.pool import Pool

SEARCH = "search"

_ONE = struct.pack("<d", 1.0)
_ADVICE = "Leave the checkpoint that causes it out of the pool, or save in a wider --dtype"

Notify = Callable[[str, bool], None]

_DAMAGED = (
    OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError, MemoryError,
    pickle.UnpicklingError, zlib.error, struct.error,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Score:
    """What a mix scored on one split.

    Attributes:
        value: The driving metric.
        metrics: Every metric by name (fractions; nll in nats).
        outcomes: Per-sample predictions and losses, in the split's fixed order.
        seconds: What computing it took, now or when it was first computed.
        cached: Whether it came from the cache.
    """

    value: float
    metrics: dict[str, float]
    outcomes: Outcomes
    seconds: float
    cached: bool


@dataclass
class Tally:
    """What has been asked for on the selection split: distinct mixes, as if nothing had been cached.

    Attributes:
        asked: By content key, the images scored and the seconds that took when it was computed.
        computed: How many were computed rather than found in the cache.
    """

    asked: dict[str, tuple[int, float]] = field(default_factory=dict)
    computed: int = 0

    @property
    def evaluations(self) -> int:
        """The number of distinct mixes."""
        return len(self.asked)

    @property
    def images(self) -> int:
        """Images scored for them."""
        return sum(images for images, _ in self.asked.values())

    @property
    def seconds(self) -> float:
        """Seconds that scoring them takes, from nothing."""
        return sum(seconds for _, seconds in self.asked.values())

    def merged(self, other: Tally) -> Tally:
        """Both together; a mix that both asked for counts once."""
        return Tally({**self.asked, **other.asked}, self.computed + other.computed)


class OutcomeCache:
    """Outcomes on disk by content key; a damaged entry is reported and counts as missing.

    Args:
        folder: Where the entries lie.
        notify: Told ``(text, is_warning)``.
    """

    def __init__(self, folder: Path, notify: Notify | None = None) -> None:
        self.folder = folder
        self._notify = notify

    def get(self, key: str, count: int) -> tuple[Outcomes, float] | None:
        """The stored outcomes of ``count`` samples and the seconds they took, or None."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            entry = joblib.load(path)
            outcomes = Outcomes(np.asarray(entry["predicted"], np.int64), np.asarray(entry["losses"], np.float64))
            if entry["key"] != key or len(outcomes) != count or len(outcomes.losses) != count:
                raise ValueError("an entry of another mix or split")
            return outcomes, float(entry["seconds"])
        except _DAMAGED as error:
            if self._notify:
                self._notify(f"damaged cache entry {path} ({error or type(error).__name__}): scored again", True)
            return None

    def put(self, key: str, outcomes: Outcomes, seconds: float) -> None:
        """Store outcomes.

        Raises:
            RunError: The cache cannot be written.
        """
        entry = {
            "key": key,
            "predicted": outcomes.predicted.astype(np.int32),
            "losses": outcomes.losses.astype(np.float32),
            "seconds": seconds,
        }
        buffer = BytesIO()
        joblib.dump(entry, buffer)
        with atomic_write(self._path(key)) as stream:
            stream.write(buffer.getvalue())

    def _path(self, key: str) -> Path:
        return self.folder / "outcomes" / key[:2] / f"{key}.joblib"


class Objective:
    """Mix to score, cached by content.

    Args:
        pool: The checkpoints.
        builder: Fuses mixes of the pool into its module.
        predict: Called once per mix: gives the function from images to logits of the module as it is now.
        evaluators: Split name to evaluator; ``search`` is the split that selects.
        cache: Where outcomes are kept.
        metric: The driving metric's name.
        identity: What else outcomes depend on (family, preprocessing, precision, ...), as plain JSON values.
    """

    def __init__(
        self,
        pool: Pool,
        builder: FastBuilder,
        predict: Callable[[], Predict],
        evaluators: Mapping[str, Evaluator],
        cache: OutcomeCache,
        metric: str,
        identity: Mapping[str, Any],
    ) -> None:
        self.pool = pool
        self.evaluators = dict(evaluators)
        self.metric: Metric = METRICS[metric]
        self.identity = dict(identity)
        self.tally = Tally()
        self._builder = builder
        self._predict = predict
        self._cache = cache
        self._on_score: Callable[[str], None] | None = None
        self._on_batch: Callable[[int], None] | None = None
        self._constant = self._constant_key()
        self._tensors = self._tensor_hashes()

    def counting(
        self, on_score: Callable[[str], None] | None = None, on_batch: Callable[[int], None] | None = None
    ) -> Objective:
        """The same objective with a tally of its own, to hand to one method.

        Args:
            on_score: Told the content key of every mix scored on the selection split.
            on_batch: Told how many images each batch held.
        """
        twin = copy(self)
        twin.tally = Tally()
        twin._on_score, twin._on_batch = on_score, on_batch
        return twin

    def score(self, mix: Mix, split: str = SEARCH) -> Score:
        """Score a mix on a whole split.

        Args:
            mix: Over the pool's columns.
            split: ``search`` or a test split's name; only the former is tallied.

        Raises:
            ScoreError: A loss is not finite; names the layer group held responsible.
            PoolError: The mix is not over this pool.
            RunError: The cache cannot be written.
        """
        evaluator = self.evaluators[split]
        key = self.key(mix, split)
        stored = self._cache.get(key, len(evaluator.split))
        if stored is None:
            outcomes, seconds = self._compute(mix, evaluator)
            self._cache.put(key, outcomes, seconds)
        else:
            outcomes, seconds = stored
        if split == SEARCH:
            self.tally.asked.setdefault(key, (len(outcomes), seconds))
            self.tally.computed += stored is None
            if self._on_score:
                self._on_score(key)
        if not np.all(np.isfinite(outcomes.losses)):
            raise self._not_finite(mix, evaluator, outcomes, fused=stored is None)
        metrics = measure(evaluator, outcomes)
        return Score(metrics[self.metric.name], metrics, outcomes, seconds, cached=stored is not None)

    def recall(self, mix: Mix, images: int, seconds: float) -> None:
        """Tally a mix that was scored on the selection split before, without scoring it."""
        self.tally.asked.setdefault(self.key(mix, SEARCH), (images, seconds))

    def key(self, mix: Mix, split: str) -> str:
        """SHA-256 of all that the outcomes of a mix on a split depend on; the metric is not among it.

        Per tensor these are the nonzero (tensor hash, coefficient) pairs: a mix keeps its outcomes when ingredients
        are renamed, removed or added, as long as the same tensors are mixed.
        """
        digest = hashlib.sha256(self._constant)
        digest.update(self.evaluators[split].split.fingerprint.encode())
        rows = tensor_rows(mix, self.pool)
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

    def _tensor_hashes(self) -> list[tuple[str, int | None, list[bytes]]]:
        """Every tensor by name: its place among the mixed ones, if it is, and its hash in every column."""
        places = {tensor.name: number for number, tensor in enumerate(self.pool.mixed)}
        columns = list(self.pool.hashes.values())
        return [
            (name, places.get(name), [bytes.fromhex(hashes[name]) for hashes in columns]) for name in sorted(columns[0])
        ]

    def _constant_key(self) -> bytes:
        dtypes = self.pool.saved_dtypes(self._builder.dtype)
        facts = {
            "version": EVALUATION_VERSION,
            "identity": self.identity,
            "dtypes": {name: str(dtype) for name, dtype in sorted(dtypes.items())},
        }
        return json.dumps(facts, sort_keys=True).encode()

    def _compute(self, mix: Mix, evaluator: Evaluator) -> tuple[Outcomes, float]:
        started = time.perf_counter()
        self._builder.apply(mix)
        outcomes = evaluator.run(self._predict(), on_batch=self._on_batch)
        return outcomes, time.perf_counter() - started

    def _not_finite(self, mix: Mix, evaluator: Evaluator, outcomes: Outcomes, *, fused: bool) -> ScoreError:
        if not fused:
            self._builder.apply(mix)
        tensor = self._builder.nonfinite_tensor()
        bad = int(np.sum(~np.isfinite(outcomes.losses)))
        found = f"{bad} of {len(outcomes)} losses on {evaluator.split.name} are not finite"
        used = f"mix of {names(mix.support())}"
        if tensor is None:
            return ScoreError(f"{used}: {found}; the fused weights are finite, the forward pass overflows. {_ADVICE}")
        group = mix.groups.names[mix.groups.index()[tensor]]
        return ScoreError(
            f"{used}: {found}; tensor {tensor} of layer group {group} overflows when fused. {_ADVICE}", group
        )


def measure(evaluator: Evaluator, outcomes: Outcomes) -> dict[str, float]:
    """Every metric by name."""
    labels = evaluator.split.labels
    return {name: metric.value(labels, outcomes.predicted, outcomes.losses) for name, metric in METRICS.items()}
