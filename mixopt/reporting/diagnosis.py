"""What a page shows beyond the report: mixes, checkpoints, what lies between them, and which samples changed."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat

from mixopt.errors import RunError, short
from mixopt.reporting.row_schema import Part
from mixopt.reporting.stored import ANEW, of_format
from mixopt.untrusted import refusing
from mixopt.untrusted.texts import CHECKSUM, check_checksum, with_checksum
from mixopt.untrusted.values import validated

DIAGNOSIS_FORMAT = 1

Count = Annotated[int, Field(ge=0, lt=2**63)]
# Base64 of a picture, or nothing.
Encoded = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]*={0,2}$")]


class CheckpointInfo(Part):
    """An ingredient.

    Attributes:
        name: Its name.
        hash: Of its content, the first 12 digits.
        distance: Euclidean, over all mixed parameters, from the base, or without one from the ingredients' mean.
        base_cosine: Cosine between its mixed weights and the base's; None without a base.
        mean_cosine: Mean cosine of its delta to the others'.
        scores: Split to the driving metric, of the splits that it was scored on, see `Diagnosis.samples`.
        hyperparameters: What its trainer left beside it, by name.
    """

    name: str
    hash: str
    distance: FiniteFloat
    base_cosine: FiniteFloat | None
    mean_cosine: FiniteFloat
    scores: dict[str, FiniteFloat]
    hyperparameters: dict[str, FiniteFloat | bool | str] = Field(default_factory=dict)


class Midpoints(Part):
    """Mixes half-way between two checkpoints.

    Attributes:
        names: The checkpoints.
        samples: How many samples of the validation split each mix was scored on.
        gains: By pair, how much better the mix half-way is than the mean of its two ends in accuracy (or in a user's
            own number); None on the diagonal and where a loss is not finite.
        loss_gains: The same in nats; none where a user's own function scores.
    """

    names: tuple[str, ...]
    samples: Count
    gains: tuple[tuple[FiniteFloat | None, ...], ...]
    loss_gains: tuple[tuple[FiniteFloat | None, ...], ...] = ()


class RowMix(Part):
    """A row's mix, to look at; the exact one is in recipe.json.

    Attributes:
        row: The row.
        columns: Checkpoints.
        groups: Layer groups in depth order.
        coefficients: By group and column, to 4 digits.
        averaged: Whether these are means over finer groups, weighted by parameters: the mix has too many to show.
    """

    row: str
    columns: tuple[str, ...]
    groups: tuple[str, ...]
    coefficients: tuple[tuple[FiniteFloat, ...], ...]
    averaged: bool = False


class ClassChange(Part):
    """What became of a class's samples.

    Attributes:
        name: The class.
        samples: How many.
        before: How many the reference classified correctly.
        gained: How many of them are correct only now.
        lost: How many were correct only before.
    """

    name: str
    samples: Count
    before: Count
    gained: Count
    lost: Count


class Flipped(Part):
    """A sample that one of two models classified correctly.

    Attributes:
        number: In the split's fixed order.
        label: Its class.
        before: What the reference said.
        after: What the row says.
        text: What it is, where it is no picture.
        picture: A PNG in base64, where it is one.
    """

    number: Count
    label: str
    before: str
    after: str
    text: str = ""
    picture: Encoded = ""


class Changes(Part):
    """A row against the best single checkpoint on one split.

    Attributes:
        split: The split.
        classes: Class by class.
        flipped: Some samples that changed, gained and lost in turn.
    """

    split: str
    classes: tuple[ClassChange, ...]
    flipped: tuple[Flipped, ...]


class TrialScores(Part):
    """A trial on the test splits, for a picture.

    Attributes:
        trial: Its number.
        search: The driving metric on the samples that it was chosen by.
        test: Test split to the driving metric.
    """

    trial: Count
    search: FiniteFloat
    test: dict[str, FiniteFloat]


class Diagnosis(Part):
    """Why a run ended as it did.

    Attributes:
        format: Of the diagnosis.
        version: Of mixopt.
        metric: The driving metric.
        base: The base's name; None without one.
        checkpoints: The ingredients in their order.
        midpoints: What lies half-way between them; None where that was not scored.
        mixes: By row.
        row: The row that ``changes`` are of.
        reference: What it is compared with.
        changes: By split.
        trials: On whole test splits; none where that takes too many images.
        samples: Test split to how many of its first samples checkpoints were scored on.
        versions: Library to version.
        missing: Part of the page to why it is not there.
        images: Samples that went through a model for all this.
        seconds: How long it took.
    """

    format: Literal[1] = 1
    version: str
    metric: str
    base: str | None
    checkpoints: tuple[CheckpointInfo, ...]
    midpoints: Midpoints | None = None
    mixes: tuple[RowMix, ...] = ()
    row: str = ""
    reference: str = ""
    changes: tuple[Changes, ...] = ()
    trials: tuple[TrialScores, ...] = ()
    samples: dict[str, Count] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    missing: dict[str, str] = Field(default_factory=dict)
    images: Count = 0
    seconds: FiniteFloat = 0.0

    def mix_of(self, row: str) -> RowMix | None:
        """A row's mix, where it has one."""
        return next((mix for mix in self.mixes if mix.row == row), None)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: what diagnosis.json holds."""
        return dict(json.loads(self.to_json()))

    def to_json(self) -> str:
        """JSON with a checksum."""
        return json.dumps(with_checksum(self.model_dump()), allow_nan=False) + "\n"


def diagnosis_from(text: str, source: str) -> Diagnosis:
    """Read what `Diagnosis.to_json` wrote.

    Args:
        text: The content.
        source: The file, for messages.

    Raises:
        RunError: Not a diagnosis, one of another format, or one that was damaged or edited.
    """
    values = of_format(text, source, "diagnosis", DIAGNOSIS_FORMAT)
    with refusing(RunError, source, found="not a whole diagnosis", cure=ANEW):
        check_checksum(values)
        del values[CHECKSUM]
        diagnosis = validated(Diagnosis, values)
        _check_shapes(diagnosis)
    return diagnosis


def _check_shapes(diagnosis: Diagnosis) -> None:
    """Whether every table has as many rows and columns as it has names.

    Raises:
        ValueError: Not so.
    """
    for mix in diagnosis.mixes:
        if len(mix.coefficients) != len(mix.groups) or {len(row) for row in mix.coefficients} - {len(mix.columns)}:
            raise ValueError(f"the mix of {short(mix.row)} has other rows or columns than it names")
    if diagnosis.midpoints is not None:
        count = len(diagnosis.midpoints.names)
        for table in (diagnosis.midpoints.gains, diagnosis.midpoints.loss_gains or diagnosis.midpoints.gains):
            if len(table) != count or {len(row) for row in table} - {count}:
                raise ValueError("midpoints are not by pair of the checkpoints that they name")
