"""The report: what report.json holds, typed and versioned. Producers fill its fields, and readers read them."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field

from mixopt.reporting.row_schema import FailedRow as FailedRow
from mixopt.reporting.row_schema import MadeRow as MadeRow
from mixopt.reporting.row_schema import Part
from mixopt.reporting.row_schema import SweepPoint as SweepPoint
from mixopt.untrusted.texts import with_checksum
from mixopt.values.metrics import shown_metric

REPORT_FORMAT = 2


class SplitInfo(Part):
    """A split.

    Attributes:
        samples: How many.
        fingerprint: Of their content.
        among: How many of the model's classes the logits are restricted to; None where they are not.
        notes: What was left out, converted or taken as what while it was read.
    """

    samples: int
    fingerprint: str
    among: int | None = None
    notes: tuple[str, ...] = ()


class Verification(Part):
    """How the saved file compares with the mix as it was scored before.

    Attributes:
        trial: The number of the chosen trial, after a search.
        trial_score: The mix's score on the whole validation split.
        file_score: The file's.
        difference: The file's less the mix's.
        predictions_differing: How many predictions are others.
        samples: Of how many.
    """

    trial: int | None = None
    trial_score: float
    file_score: float
    difference: float
    predictions_differing: int
    samples: int


class Race(Part):
    """What racing spared.

    Attributes:
        given_up: Trials that were given up.
        images: Samples that trials saw.
        unraced_images: Those they would have seen without.
    """

    given_up: int
    images: int
    unraced_images: int


class Refined(Part):
    """The second round's space: its kind and dimensions, the trial around which it lies, and the layer groups it moves.

    Attributes:
        effects: Every layer group to how much it matters there.
    """

    kind: str
    dims: int
    labels: tuple[str, ...]
    around: int
    groups: tuple[str, ...]
    effects: dict[str, float]


class SpaceInfo(Part):
    """The space of a search: its kind, its dimensions and their names, and the second round's, if any."""

    kind: str
    dims: int
    labels: tuple[str, ...]
    refined: Refined | None = None


class FrontObjective(Part):
    """One objective of several: a split and its weight."""

    name: str
    weight: float


class FrontPoint(Part):
    """A trial: its number, its signal on each split that steers, and whether no other beats it on all."""

    trial: int
    values: tuple[float, ...]
    on_front: bool


class Front(Part):
    """Every complete trial on each split that steered.

    Attributes:
        objectives: The splits, the validation split first.
        signal: What was measured on each.
        direction: Which way is better.
        points: The trials.
        picked: The number of the one that was chosen.
    """

    objectives: tuple[FrontObjective, ...]
    signal: str
    direction: Literal["maximize", "minimize"]
    points: tuple[FrontPoint, ...]
    picked: int


class Report(Part):
    """A run's report.

    Attributes:
        format: Of the report.
        version: Of mixopt.
        command: Which verb made it.
        metric: The driving metric.
        family: The model family, by name or import path.
        best: The best row's name.
        methods: The rows in the table's order.
        verification: Of the saved file.
        splits: Every split by name.
        tuning: How many validation samples tuned.
        signal: What steered a search.
        select: What each split that steered weighed; empty where the validation split did alone.
        shifts: How shifted images were made.
        batchnorm: How BatchNorm statistics are made.
        precision: Of forward passes.
        stack: How checkpoints were kept.
        seed: The run's.
        wall_seconds: What the run took.
        time: Where that went.
        reused: The share of forward passes that earlier ones spared.
        sampler: Of a search.
        trials: How many trials are in each state.
        race: What racing spared.
        finished: Whether all trials were completed.
        space: Of a search.
        front: Where several splits steered.
        failed: Row to why it could not be made.
        compared: What must not change between comparisons in one folder.
    """

    format: Literal[2] = 2
    version: str
    command: Literal["search", "compare"]
    metric: str
    family: str | None = None
    best: str
    methods: tuple[MadeRow | FailedRow, ...]
    verification: Verification
    splits: dict[str, SplitInfo]
    tuning: int
    signal: str
    select: dict[str, float] = Field(default_factory=dict)
    shifts: dict[str, Any] = Field(default_factory=dict)
    batchnorm: dict[str, Any]
    precision: dict[str, Any]
    stack: dict[str, str]
    seed: int
    wall_seconds: float
    time: dict[str, float]
    reused: float
    sampler: str | None = None
    trials: dict[str, int] | None = None
    race: Race | None = None
    finished: bool = True
    space: SpaceInfo | None = None
    front: Front | None = None
    failed: dict[str, str] = Field(default_factory=dict)
    compared: dict[str, Any] | None = None

    @property
    def made(self) -> tuple[MadeRow, ...]:
        """The rows that could be made."""
        return tuple(row for row in self.methods if isinstance(row, MadeRow))

    @property
    def failures(self) -> tuple[FailedRow, ...]:
        """The rows that could not."""
        return tuple(row for row in self.methods if isinstance(row, FailedRow))

    @property
    def tests(self) -> tuple[str, ...]:
        """The names of the test splits."""
        return next((tuple(row.test) for row in self.made), ())

    @property
    def steering(self) -> tuple[str, ...]:
        """The splits that steered a search beside the validation split."""
        return tuple(self.select)[1:]

    def metric_of(self, split: str) -> str:
        """What a split is reported by: the driving metric, where the split has it."""
        measured = next((row.metrics[split] for row in self.made if split in row.metrics), {self.metric: 0.0})
        return shown_metric(self.metric, measured)

    def row(self, name: str) -> MadeRow:
        """A made row by name.

        Raises:
            KeyError: There is none.
        """
        return {row.name: row for row in self.made}[name]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: what report.json holds."""
        return dict(json.loads(self.to_json()))

    def to_json(self) -> str:
        """Indented JSON with a checksum; floats keep every bit."""
        return json.dumps(with_checksum(self.model_dump()), indent=2, allow_nan=True) + "\n"
