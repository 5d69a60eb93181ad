"""Scorer: mixes to outcomes, cached by content. What varies is in the `Objective` that asks; `Work` computes."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixopt.errors import ScoreError, names
from mixopt.scoring.cache import Gradient, OutcomeCache
from mixopt.scoring.engine import ADVICE, Engine
from mixopt.scoring.keys import Keys
from mixopt.scoring.ledger import Ledger
from mixopt.scoring.logit_sums import LogitSums
from mixopt.scoring.looks import Looks, Seen
from mixopt.scoring.outcomes import NO_OUTCOMES, Outcomes
from mixopt.scoring.work import AnyEvaluator, Compute, OnBatch, Wanted, Work
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores mixes of a pool on its splits, cached by content.

    Attributes:
        engine: Computes in this process.
        cache: Where outcomes are kept.
        keys: What outcomes depend on.
        ran: Content keys of what was computed rather than found in the cache; grows.
        ledger: Told which mixes are scored; None keeps no record of them.
        workers: Computes in the engine's place; None for the engine itself.
    """

    engine: Engine
    cache: OutcomeCache
    keys: Keys
    ran: set[str] = field(default_factory=set)
    ledger: Ledger | None = None
    workers: Work | None = None
    _sums: LogitSums = field(default_factory=LogitSums, repr=False)

    @property
    def work(self) -> Work:
        """What computes."""
        return self.workers or self.engine

    def beside(self, name: str, evaluator: AnyEvaluator) -> Scorer:
        """The same with one more split, or another one of this name."""
        workers = None if self.workers is None else self.workers.beside(name, evaluator)
        return replace(self, engine=self.engine.beside(name, evaluator), workers=workers)

    def among(self, devices: Iterable[str]) -> Scorer:
        """The same, computed by devices of several kinds: cached apart, as the last bits depend on who did."""
        keys = self.keys.among(devices)
        return replace(self, keys=keys, ledger=None if self.ledger is None else self.ledger.keyed_by(keys))

    def key(self, mix: Mix, split: str) -> str:
        """What the outcomes of a mix on a split depend on, see `mixopt.scoring.keys`; the metric is not among it."""
        return self.keys.of_mix(mix, *self._condition(split, self.engine.recomputes(mix)))

    def known_mixes(self, split: str) -> list[Mix]:
        """The mixes of these checkpoints whose outcomes on a split the cache holds, of all of its samples or the first.

        They were scored by this run or another one under the same conditions; what those are is in
        `mixopt.scoring.ledger`. In the order in which they were first scored, those of one checkpoint before the others
        where BatchNorm statistics are recomputed.
        """
        if self.ledger is None:
            return []
        known: dict[str, Mix] = {}
        for recomputed in (False, True) if self.engine.recompute is not None else (False,):
            for key, mix in self.ledger.read(*self._condition(split, recomputed)):
                if self.engine.recomputes(mix) == recomputed and self.cache.holds(key):
                    known[key] = mix
        return list(known.values())

    def stored(self, mix: Mix, split: str, needs: Sequence[str] = ()) -> Outcomes | None:
        """What the cache holds of a mix's outcomes on a split, of all samples or the first; nothing is computed."""
        found = self.cache.get(self.key(mix, split), len(self.engine.evaluators[split].split), needs)
        return None if found is None else found[0]

    def expect(self, mixes: Iterable[Mix], split: str, looks: Looks, *, unsure: bool = False) -> None:
        """Tell the workers, if any, of mixes that will be asked for; what is cached already is left out.

        Args:
            mixes: In the order in which they will be asked for.
            split: Of the samples.
            looks: How far each will be looked at.
            unsure: As for `Work.expect`.
        """
        last = looks.stops[-1]
        wanted = []
        for mix in mixes:
            known = self.stored(mix, split, looks.needs) or NO_OUTCOMES
            if len(known) < last:
                wanted.append(Wanted(mix, split, looks, known))
        self.work.expect(wanted, unsure=unsure)

    def see(self, mix: Mix, split: str, looks: Looks, on_batch: OnBatch | None) -> Seen:
        """A mix's outcomes on the first samples of a split.

        Raises:
            ScoreError: A loss is not finite; names the layer group held responsible.
        """
        evaluator, key = self.engine.evaluators[split], self.key(mix, split)
        stored = self._stored(key, evaluator, looks)
        with self.work.scoring(Wanted(mix, split, looks, stored[0]), on_batch) as compute:
            entered = self._entering(key, mix, split, compute)
            seen = self._look(key, entered, looks, stored, self.engine.statistics_images(mix))
        if not seen.outcomes.is_finite:
            raise self.engine.why_not_finite(mix, split, seen.outcomes)
        return seen

    def see_ensemble(self, members: Sequence[Mix], split: str, count: int, on_batch: OnBatch | None) -> Seen:
        """The outcomes of the mean of several models' unnormalised logits.

        Raises:
            ScoreError: A loss is not finite.
        """
        evaluator = self.engine.evaluators[split]
        keys = tuple(self.key(mix, split) for mix in members)
        digest = hashlib.sha256(b"ensemble" + "".join(sorted(keys)).encode()).hexdigest()

        def compute(start: int, stop: int) -> tuple[Outcomes, float]:
            started = time.perf_counter()

            def logits(mix: Mix) -> Tensor:
                return self.work.logits(mix, split, stop, on_batch)

            total = self._sums.of(members, keys, stop, logits)
            return evaluator.outcomes_of(total / len(members)).rest(start), time.perf_counter() - started

        looks = Looks([count])
        seen = self._look(digest, compute, looks, self._stored(digest, evaluator, looks), 0)
        if not seen.outcomes.is_finite:
            raise ScoreError(f"an ensemble of {len(members)} has losses on {split} that are not finite. {ADVICE}")
        return seen

    def gradient(
        self, mix: Mix, samples: NDArray[np.int64], scale: float, tuning: int, on_batch: OnBatch | None
    ) -> tuple[Gradient, Seen]:
        """The gradient that `Engine.slope` gives by tensor, by layer group of the mix; and what it took."""
        evaluator = self.engine.evaluators[VALIDATION]
        key = self.keys.of_gradient(mix, evaluator.split.fingerprint, samples, scale)
        stored = self.cache.get_gradient(key, mix.coefficients.shape)
        runs: dict[int, float] = {}
        if stored is None:
            started = time.perf_counter()
            slope = self.work.slope(mix, samples, scale, tuning, on_batch)
            runs[0] = time.perf_counter() - started
            rows = np.zeros_like(mix.coefficients)
            group_of = mix.groups.index()
            np.add.at(rows, [group_of[place.name] for place in self.engine.pool.mixed], slope.tensors)
            found, seconds = Gradient(slope.loss, rows, slope.scale), slope.seconds
            self.ran.add(key)
            self.cache.put_gradient(key, found, seconds)
        else:
            found, seconds = stored
        return found, Seen(key, NO_OUTCOMES, seconds, len(samples), runs)

    def check_gradient(self, mix: Mix, found: Gradient) -> None:
        """Refuse a gradient that is no number.

        Raises:
            ScoreError: The loss or its gradient is not finite.
        """
        if not (math.isfinite(found.loss) and np.all(np.isfinite(found.coefficients))):
            raise ScoreError(f"the loss or its gradient is not finite for a mix of {names(mix.support())}. {ADVICE}")

    def _stored(self, key: str, evaluator: AnyEvaluator, looks: Looks) -> tuple[Outcomes, float]:
        """What the cache holds by key, and the seconds it took."""
        with self.engine.stopwatch("cache"):
            return self.cache.get(key, len(evaluator.split), looks.needs) or (NO_OUTCOMES, 0.0)

    def _entering(self, key: str, mix: Mix, split: str, compute: Compute) -> Compute:
        """The same, which enters the mix in the ledger before anything of it is computed."""
        if self.ledger is None:
            return compute
        ledger, condition = self.ledger, self._condition(split, self.engine.recomputes(mix))

        def entered(start: int, stop: int) -> tuple[Outcomes, float]:
            with self.engine.stopwatch("cache"):
                ledger.enter(key, mix, *condition)
            return compute(start, stop)

        return entered

    def _look(
        self,
        key: str,
        compute: Compute,
        looks: Looks,
        stored: tuple[Outcomes, float],
        extra: int,
    ) -> Seen:
        """Outcomes by key, up to the first stop that is enough, or the last; what is computed is cached.

        Args:
            key: What they depend on.
            compute: Gives the outcomes of the samples from one number to another, or more.
            looks: How far to look.
            stored: What the cache holds of them, and the seconds it took.
            extra: Samples that computing runs through a model beside those of the split.
        """
        known, seconds = stored
        runs: dict[int, float] = {}
        for stop in looks.stops:
            if (seen := len(known)) < stop:
                started = time.perf_counter()
                more, took = compute(seen, stop)
                known, seconds = known.then(more), seconds + took
                runs[seen] = time.perf_counter() - started
            if stop < looks.stops[-1] and looks.enough(known.first(stop)):
                break
        if runs:
            self.ran.add(key)
            with self.engine.stopwatch("cache"):
                self.cache.put(key, known, seconds)
        found = known.first(stop)
        return Seen(key, found, seconds * len(found) / len(known), len(found) + extra, runs)

    def _condition(self, split: str, recomputed: bool) -> tuple[str, bytes]:
        """What the outcomes of every mix depend on, as `Keys.of_mix` takes it: the split, and what is done to it."""
        evaluator = self.engine.evaluators[split]
        statistics = self.engine.recompute.key.encode() if self.engine.recompute is not None and recomputed else b""
        return evaluator.split.fingerprint, statistics + evaluator.batching.key.encode()
