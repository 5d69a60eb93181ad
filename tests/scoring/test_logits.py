"""Logits in what a model gives: which wrappers are opened, which are refused, and classes left out."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixopt import DataError, SpecError
from mixopt.scoring import compiled
from mixopt.scoring.choose_precision import measure
from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.logits import logits_of, outcomes_of, restricted, told
from mixopt.values.kept_logits import LEAST, KeptLogits
from tests.listening import Recorder
from tests.scoring.memory import ENCODING, make_model, make_split

CPU = torch.device("cpu")
GOOD, OTHER = torch.randn(4, 3), torch.randn(4, 7)


@dataclass
class Output:
    features: Tensor
    logits: Tensor


class Named(NamedTuple):
    features: Tensor
    logits: Tensor


class Attribute(nn.Module):
    """An object that is no container, with an attribute of that name."""

    logits = GOOD


Unlike = namedtuple("Unlike", ["out", "aux"])

TAKEN = {
    "dict": ({"features": OTHER, "logits": GOOD}, "its logits are taken"),
    "ordered": (OrderedDict(out=GOOD), "its only tensor is taken as the logits"),
    "dataclass": (Output(OTHER, GOOD), "its logits are taken"),
    "named tuple": (Named(OTHER, GOOD), "its logits are taken"),
    "other names": (
        Unlike(GOOD, OTHER),
        "its first tensor is taken as the logits, [3] a sample, and the others are not used ([7])",
    ),
    "tuple": (
        (GOOD, OTHER),
        "its first tensor is taken as the logits, [3] a sample, and the others are not used ([7])",
    ),
    "list": ([None, GOOD], "its first tensor is taken as the logits"),
}
REFUSED = {
    "namespace": (SimpleNamespace(logits=GOOD), "a SimpleNamespace; it has an attribute logits: let predict return"),
    "module": (Attribute(), "an Attribute; it has an attribute logits"),
    "class": (Output, "a type"),
    "nothing": (None, "a NoneType"),
    "array": (GOOD.numpy(), "a ndarray"),
    "empty": ((), "a tuple"),
    "several": ({"out": GOOD, "aux": OTHER}, r"a dict with tensors out: \[4, 3\], aux: \[4, 7\]"),
    "no tensor": ({"logits": [1.0]}, "a dict"),
}
SHAPES = {
    "one number each": (GOOD[:, 0], r"shape \[4\] in float32"),
    "one axis more": (GOOD[:, :, None], r"shape \[4, 3, 1\] in float32"),
    "other samples": (GOOD[:3], r"shape \[3, 3\] in float32"),
    "classes": (GOOD.argmax(dim=1), r"shape \[4\] in int64"),
    "whole numbers": (GOOD.long(), r"shape \[4, 3\] in int64"),
    "inside": ((GOOD[:, 0], GOOD), r"shape \[4\] in float32 \(its first tensor"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_declares_its_parts_is_opened_and_told(case: str) -> None:
    given, where = TAKEN[case]
    logits, said = logits_of(given, 4)
    assert logits is GOOD
    assert said.startswith("predict of --family gives a")
    assert said.endswith(f"no tensor: {where}")


def test_a_tensor_is_taken_as_it_is_without_a_word() -> None:
    logits, said = logits_of(GOOD, 4)
    assert logits is GOOD
    assert not said
    assert logits_of(GOOD.bfloat16(), 4)[0].dtype == torch.float32


@pytest.mark.parametrize("case", REFUSED)
def test_what_declares_nothing_is_refused(case: str) -> None:
    given, found = REFUSED[case]
    expected = r"^--family: expected a tensor of logits \[batch, classes\] from predict, found "
    with pytest.raises(SpecError, match=expected + found):
        logits_of(given, 4)


@pytest.mark.parametrize("case", SHAPES)
def test_other_shapes_are_one_error(case: str) -> None:
    given, found = SHAPES[case]
    expected = r"^--family: expected .* from predict, here \[4, classes\] in a floating-point dtype, found a tensor of "
    with pytest.raises(SpecError, match=expected + found):
        logits_of(given, 4)


def wrapped(model: nn.Module, wrap: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    return lambda images: wrap(model(images))


WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "dict": lambda logits: {"logits": logits, "hidden": logits[:, :1]},
    "tuple": lambda logits: (logits, logits[:, :1]),
    "dataclass": lambda logits: Output(logits[:, :1], logits),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_an_evaluator_says_once_where_logits_are(wrap: Callable[[Tensor], Any]) -> None:
    heard, model = Recorder(), make_model()
    plain = Evaluator(make_split(), ENCODING, CPU, 20).run(model)
    evaluator = Evaluator(make_split(), ENCODING, CPU, 20, listener=heard.listener)
    for each in (evaluator, evaluator.at("fp32"), evaluator.at("bf16")):
        found = each.run(wrapped(model, wrap))
    assert np.array_equal(evaluator.run(wrapped(model, wrap)).losses, plain.losses)
    assert not np.array_equal(found.losses, plain.losses), "bf16"
    assert len(heard.infos) == 1
    assert "logits" in heard.infos[0]


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_precisions_are_compared_by_the_same_logits(wrap: Callable[[Tensor], Any]) -> None:
    found = measure(wrapped(make_model(), wrap), Evaluator(make_split(), ENCODING, CPU), ("bf16",), lambda *_: None)
    assert not found.failed


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_compiled_outputs_are_opened_after_the_compiled_part(
    wrap: Callable[[Tensor], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch.compiler.reset()
    heard, model = Recorder(), make_model()
    evaluator = Evaluator(make_split(), ENCODING, CPU, 20, listener=heard.listener).at("fp32", compiled=True)
    found = evaluator.run(wrapped(model, wrap))
    torch.compiler.reset()
    assert found.losses == pytest.approx(Evaluator(make_split(), ENCODING, CPU, 20).run(model).losses, abs=1e-6)
    assert len(heard.infos) == 1


def test_restricted_logits_are_those_of_the_classes_alone() -> None:
    logits, labels = torch.randn(9, 6), torch.tensor([1, 3, 4] * 3)
    found, few = restricted(logits, (1, 3, 4)), logits[:, [1, 3, 4]]
    assert found.argmax(dim=1).tolist() == [(1, 3, 4)[place] for place in few.argmax(dim=1).tolist()]
    expected = F.cross_entropy(few, torch.tensor([0, 1, 2] * 3), reduction="none")
    assert F.cross_entropy(found, labels, reduction="none").tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert restricted(logits, None) is logits


def test_a_split_of_some_classes_is_scored_among_these() -> None:
    split, model = make_split(60), make_model()
    keep = np.flatnonzero(np.isin(split.labels, (0, 3)))
    arrays = {"images": split.arrays["images"][keep]}
    few = replace(split, arrays=arrays, labels=split.labels[keep], digests=split.digests[keep])
    among = replace(few, among=(0, 3))
    assert among.fingerprint != few.fingerprint == replace(among, among=None).fingerprint
    assert among.fingerprint != replace(few, among=(0, 2, 3)).fingerprint
    evaluator = Evaluator(among, ENCODING, CPU, 7)
    outcomes, logits = evaluator.run(model), Evaluator(few, ENCODING, CPU).logits(model)[:, [0, 3]]
    assert outcomes.predicted.tolist() == [(0, 3)[place] for place in logits.argmax(dim=1).tolist()]
    assert set(Evaluator(few, ENCODING, CPU).run(model).predicted) > {0, 3}, "of all classes"
    expected = F.cross_entropy(logits, torch.from_numpy(np.searchsorted((0, 3), few.labels)), reduction="none")
    assert outcomes.losses == pytest.approx(expected.numpy(), abs=1e-6)
    ensemble = evaluator.outcomes_of((evaluator.logits(model) + evaluator.logits(model)) / 2)
    assert np.array_equal(ensemble.predicted, outcomes.predicted)
    assert np.array_equal(ensemble.losses, outcomes.losses)


def test_labels_and_classes_that_do_not_fit() -> None:
    split = make_split()
    with pytest.raises(DataError, match="labels 2, 3, 4 are not among the 2 classes"):
        replace(split, among=(0, 1))
    with pytest.raises(DataError, match="labels go up to 9"):
        Evaluator(replace(split, among=(0, 1, 2, 3, 4, 9)), ENCODING, CPU).run(make_model())


def kept_of(logits: Tensor, labels: Tensor) -> KeptLogits:
    kept = outcomes_of([told(logits, labels)]).logits
    assert kept is not None
    kept.check()
    return kept


def chances_of(logits: Tensor) -> np.ndarray:
    return np.asarray(torch.log_softmax(logits.double(), dim=1).numpy())


@pytest.mark.parametrize("classes", [1, 3, 32])
def test_all_logits_of_few_classes_are_kept(classes: int) -> None:
    logits, labels = torch.randn(50, classes) * 5, torch.randint(0, classes, (50,))
    kept = kept_of(logits, labels)
    assert (kept.classes, kept.rest) == (None, None)
    assert np.array_equal(kept.values, kept.values.astype(np.float16)), "as the cache keeps them"
    assert np.allclose(kept.values, chances_of(logits), rtol=2**-11, atol=1e-6)


@pytest.mark.parametrize(("classes", "scale"), [(33, 1), (1000, 3), (1000, 30)])
def test_of_many_classes_the_largest_and_the_right_one_are_kept(classes: int, scale: float) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50, classes) * scale, torch.randint(0, classes, (50,))
    kept, chances = kept_of(logits, labels), chances_of(logits)
    assert kept.values.shape == (50, 16)
    assert kept.classes is not None
    assert kept.rest is not None
    for row, names in enumerate(kept.classes):
        largest = np.argsort(-chances[row])[:16]
        label = int(labels[row])
        assert set(names) == {*(largest if label in largest else largest[:15]), label}
        others = np.delete(chances[row], names)
        assert np.allclose(kept.values[row], chances[row][names], rtol=2**-11, atol=1e-5)
        assert kept.rest[row] == pytest.approx(np.logaddexp.reduce(others), rel=2**-10, abs=1e-5)


@pytest.mark.parametrize("among", [(1, 3), (0, *range(5, 40)), tuple(range(10))])
@pytest.mark.parametrize("classes", [20, 100])
def test_classes_left_out_have_the_least_log_probability(classes: int, among: tuple[int, ...]) -> None:
    few = tuple(each for each in among if each < classes)
    labels = torch.tensor([few[row % len(few)] for row in range(30)])
    logits = torch.randn(30, classes)
    kept = kept_of(restricted(logits, few), labels)
    names = np.tile(np.arange(classes), (30, 1)) if kept.classes is None else kept.classes
    is_out = ~np.isin(names, few)
    assert np.all((kept.values == LEAST) == is_out)
    chances = np.full((30, classes), -np.inf)
    chances[:, list(few)] = chances_of(logits[:, list(few)])
    expected = np.take_along_axis(chances, names, axis=1)
    assert np.allclose(kept.values[~is_out], expected[~is_out], rtol=2**-11, atol=1e-5)
    if kept.rest is not None and len(few) <= 16:
        assert np.all(kept.rest == LEAST), "no class is left"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_no_logits_are_kept_where_a_model_overflows(value: float) -> None:
    logits = torch.randn(4, 3)
    logits[2, 1] = value
    found = outcomes_of([told(logits[:2], torch.tensor([0, 1])), told(logits[2:], torch.tensor([1, 1]))])
    assert not found.is_finite
    assert found.logits is None


def test_losses_are_the_cross_entropy_to_the_bit() -> None:
    for classes in (3, 1000):
        logits, labels = torch.randn(64, classes) * 4, torch.randint(0, classes, (64,))
        losses = F.cross_entropy(logits, labels, reduction="none")
        assert np.array_equal(outcomes_of([told(logits, labels)]).losses, losses.double().numpy())


def test_logits_do_not_depend_on_batches() -> None:
    split, model = make_split(53, 40), make_model(40)
    found = [Evaluator(split, ENCODING, CPU, size).run(model).logits for size in (53, 7)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].classes is not None
    assert np.array_equal(found[0].classes, found[1].classes)  # type: ignore[arg-type]
    assert found[0].values == pytest.approx(found[1].values, rel=2**-10, abs=1e-6)
