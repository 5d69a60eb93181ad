"""The rows of a report, and what every part of it is: frozen, and nothing in it that is not declared."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

# Keys that are left out where there is nothing to say.
OPTIONAL = frozenset(
    {"select", "shifts", "sampler", "trials", "race", "space", "front", "compared", "refined", "notes", "curves",
     "sweep", "failed", "trial", "family", "among", "paired_p", "gains"}
)  # fmt: skip


class Part(BaseModel):
    """A part of the report: frozen, and nothing in it that is not declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _without_what_is_empty(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = handler(self)
        return {key: value for key, value in values.items() if key not in OPTIONAL or value not in (None, {}, [], ())}


class SweepPoint(Part):
    """A mix along a sweep.

    Attributes:
        x: The value of what was swept.
        search: Its score on the whole validation split; None where it is not finite.
        test: The same by test split.
    """

    x: float
    search: float | None
    test: dict[str, float | None]


class MadeRow(Part):
    """A row of the table.

    Attributes:
        name: The method, or ``method:variant``.
        search: The driving metric on the whole validation split.
        select: The same on each split that steered a search beside it.
        test: The same by test split.
        optimism: How much better it does on the validation split than on each test split.
        evaluations: Distinct mixes asked for on the validation split, from nothing.
        computed: How many of them were not in the cache.
        images: Samples that went through a model for them.
        gradient_images: Those of them that a gradient was taken on.
        seconds: What all of it takes, from nothing.
        ingredients: Checkpoints with a coefficient other than 0, the base apart.
        models: How many models one inference runs; 1 but for ensembles.
        peak_memory: Bytes at its highest; None where it was not measured.
        metrics: Split to every metric (fractions; nll in nats).
        signals: What a sampler could be told of the row, on the samples that tune.
        interval: Split to the 95 % interval of the driving metric; absent where no samples tell one.
        accuracy_interval: Split to Wilson's interval of the accuracy.
        mcnemar_p: Reference row to split to the p-value of the exact McNemar test.
        paired_p: The same to that of a paired t-test of the driving metric, where that is another than accuracy: of a
            metric that is no mean by its jackknife pseudo-values.
        gains: Reference row to split to how much better the row is than it in the driving metric, with the ends of the
            95 % interval of that, paired over samples; absent where no samples tell.
        notes: More about the choice, by name.
        curves: What the method saw on the way.
        sweep: Every mix along a sweep.
    """

    name: str
    search: float
    select: dict[str, float] = Field(default_factory=dict)
    test: dict[str, float]
    optimism: dict[str, float]
    evaluations: int
    computed: int
    images: int
    gradient_images: int
    seconds: float
    ingredients: int
    models: int
    peak_memory: int | None
    metrics: dict[str, dict[str, float]]
    signals: dict[str, float]
    interval: dict[str, tuple[float, float]]
    accuracy_interval: dict[str, tuple[float, float]]
    mcnemar_p: dict[str, dict[str, float]] = Field(default_factory=dict)
    paired_p: dict[str, dict[str, float]] = Field(default_factory=dict)
    gains: dict[str, dict[str, tuple[float, float, float]]] = Field(default_factory=dict)
    notes: dict[str, Any] = Field(default_factory=dict)
    curves: dict[str, list[dict[str, Any]]] = Field(default_factory=dict)
    sweep: tuple[SweepPoint, ...] = ()


class FailedRow(Part):
    """A row that could not be made.

    Attributes:
        name: Its name.
        search: None.
        test: Nothing.
        error: Why.
    """

    name: str
    search: None = None
    test: dict[str, float] = Field(default_factory=dict)
    error: str
