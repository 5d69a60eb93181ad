"""The contract of a model family, for every one of them."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mixopt.data.encode import encoded
from mixopt.errors import SpecError
from mixopt.families import Family, FamilyOptions, Segmented, from_identity, open_family
from mixopt.spec import FAMILIES
from mixopt.values.samples import Encoding
from tests.conftest import CLASSES, CLIP_CONFIG
from tests.tiny_transformers import write_text_model

# A newcomer adds the smallest options that open it.
EXAMPLES: dict[str, FamilyOptions] = {
    "open_clip": FamilyOptions("open_clip", CLIP_CONFIG, CLASSES, None, Path()),
    "custom": FamilyOptions("tests.tiny_family:plain", None, CLASSES, None, Path()),
    "transformers": FamilyOptions("transformers", None, None, None, Path()),
    "timm": FamilyOptions("timm", "test_efficientnet", CLASSES, None, Path(), image_size=32),
    "clip_classifier": FamilyOptions("clip_classifier", CLIP_CONFIG, CLASSES, None, Path()),
    "torchvision": FamilyOptions("torchvision", "shufflenet_v2_x0_5", CLASSES, None, Path(), image_size=32),
}
# What writes the folder of an example that needs one.
FOLDERS: dict[str, Callable[[Path], object]] = {"transformers": write_text_model}
# Records that each takes: a newcomer adds those that are not images.
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
TEXTS = [{"text": "good film"}, {"text": "a dull , bad plot ."}, {"text": "fine", "text_pair": "dullish"}]
RECORDS: dict[str, list[Any]] = {"open_clip": list(IMAGES), "custom": list(IMAGES), "transformers": TEXTS}
RECORDS |= {name: list(IMAGES) for name in ("timm", "torchvision", "clip_classifier")}
CONTRACT = {name: member for name, member in vars(Family).items() if not name.startswith("_")}


@pytest.fixture(scope="module", params=[*FAMILIES, "custom"])
def options(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FamilyOptions:
    assert request.param in EXAMPLES, f"add the smallest options of {request.param} to EXAMPLES"
    found = EXAMPLES[request.param]
    if request.param not in FOLDERS:
        return found
    folder = tmp_path_factory.mktemp("family")
    FOLDERS[request.param](folder)
    return replace(found, folder=folder)


@pytest.fixture
def family(options: FamilyOptions) -> Family:
    return open_family(options)


def records_of(family: Family) -> list[Any]:
    return RECORDS[type(family).__module__.rsplit(".", 1)[-1]]


def batch(family: Family) -> Any:
    """What the family collates of its three records."""
    arrays = [encoded(family.encoding, record) for record in records_of(family)]
    stacked = {}
    for name, first in arrays[0].items():
        every = [each[name] for each in arrays]
        if first.ndim == 1:  # of any length: padded, with the lengths beside it
            lengths = [len(array) for array in every]
            every = [np.pad(array, (0, max(lengths) - len(array))) for array in every]
            stacked[f"{name}_length"] = torch.tensor(lengths)
        stacked[name] = torch.from_numpy(np.stack(every))
    return family.encoding.collate(stacked)


@pytest.mark.parametrize("name", [*FAMILIES, "custom"])
def test_module_has_open_family(name: str) -> None:
    module = importlib.import_module(f"mixopt.families.{name}")
    assert list(inspect.signature(module.open_family).parameters) == ["options"]
    assert module.__doc__, "says what the family is"


def test_every_module_is_listed() -> None:
    folder = Path(inspect.getfile(open_family)).parent
    every = {path.stem: path for path in folder.glob("*.py")} | {p.parent.name: p for p in folder.glob("*/__init__.py")}
    found = {name for name, path in every.items() if "def open_family(" in path.read_text()}
    assert found - {"__init__", "custom"} == set(FAMILIES)


@pytest.mark.parametrize("member", CONTRACT)
def test_has_the_contracts_members(family: Family, member: str) -> None:
    own = inspect.getattr_static(type(family), member)
    if isinstance(CONTRACT[member], property):
        assert isinstance(own, property)
        return
    assert list(inspect.signature(own).parameters) == list(inspect.signature(CONTRACT[member]).parameters)


def test_builds_new_modules_of_one_form(family: Family) -> None:
    modules = [family.build() for _ in range(2)]
    assert all(isinstance(module, nn.Module) for module in modules)
    first, second = (module.state_dict() for module in modules)
    assert {name: tensor.shape for name, tensor in first.items()} == {
        name: tensor.shape for name, tensor in second.items()
    }
    assert all(first[name].data_ptr() != second[name].data_ptr() for name in first)


def test_predicts_logits_that_follow_the_weights(family: Family) -> None:
    module = family.build().eval()
    inputs = batch(family)
    with torch.inference_mode():
        logits = family.predict(module, frozenset())(inputs)
        again = family.predict(module, frozenset())(inputs)
    assert logits.shape == (3, len(family.classnames or CLASSES))
    assert logits.is_floating_point()
    assert bool(torch.isfinite(logits).all())
    assert torch.equal(logits, again)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
    with torch.inference_mode():
        assert not torch.allclose(family.predict(module, frozenset())(inputs), logits)


def test_encodes_records_to_arrays_of_one_form(family: Family) -> None:
    encoding = family.encoding
    assert isinstance(encoding, Encoding)
    assert encoding.key == family.encoding.key
    forms = [
        {name: (array.dtype, array.ndim) for name, array in encoded(encoding, record).items()}
        for record in records_of(family)
    ]
    assert forms[0]
    assert all(form == forms[0] for form in forms)


def test_depth_orders_all_names(family: Family) -> None:
    names = list(family.build().state_dict())
    ordered = family.depth(names)
    assert sorted(ordered) == sorted(names)
    assert family.depth(iter(names)) == ordered


def test_leaves_the_names_of_its_own_module_as_they_are(family: Family) -> None:
    assert all(family.rename(name) == name for name in family.build().state_dict())


def test_identity_is_json_and_opens_the_family_again(family: Family, options: FamilyOptions) -> None:
    identity = family.identity()
    stored: dict[str, Any] = json.loads(json.dumps(identity))
    assert stored == identity
    assert {field.name for field in fields(FamilyOptions)} - {"folder", "shapes", "image_size"} <= identity.keys()
    again = from_identity(stored, options.folder, "recipe.json", identity["name"])
    assert type(again) is type(family)
    assert again.identity() == identity
    assert again.encoding.key == family.encoding.key


def test_companions_are_contents_by_file_name(family: Family) -> None:
    for name, content in family.companions().items():
        assert Path(name).name == name
        assert isinstance(content, (str, bytes))


def test_unknown_family_suggests_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"--family: unknown family 'openclip'; did you mean 'open_clip'\?"):
        open_family(FamilyOptions("openclip", None, None, None, Path()))


def test_stages_are_predict_to_the_bit(family: Family) -> None:
    if not isinstance(family, Segmented):
        pytest.skip("the family offers no segments")
    module = family.build().eval()
    segments = family.segments(module)
    assert segments is not None, "the example has segments"
    names = [name for tensors in segments for name in tensors]
    assert sorted(names) == sorted(module.state_dict()), "every tensor is in one segment"
    inputs = batch(family)
    for dtype in (None, torch.bfloat16, torch.float16):
        steps, predict = family.predict_segments(module, frozenset()), family.predict(module, frozenset())
        assert len(steps) == len(segments)
        with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype is not None):
            hidden = inputs
            for step in steps:
                given = hidden.clone()
                after = step(hidden)
                assert torch.equal(hidden, given), "a segment leaves its input as it is"
                hidden = after
            assert torch.equal(hidden, predict(inputs))


def test_a_stage_depends_on_its_tensors_alone(family: Family) -> None:
    if not isinstance(family, Segmented):
        pytest.skip("the family offers no segments")
    module = family.build().eval()
    inputs = batch(family)
    state = module.state_dict()

    def outcomes() -> list[torch.Tensor]:
        found = [inputs]
        with torch.inference_mode():
            for step in family.predict_segments(module, frozenset()):
                found.append(step(found[-1]))
        return found[1:]

    for number, tensors in enumerate(family.segments(module) or ()):
        before = outcomes()
        with torch.no_grad():
            for name in tensors:
                state[name].add_(torch.randn_like(state[name]), alpha=0.1)
        after = outcomes()
        equal = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
        assert equal[:number] == [True] * number
        assert not equal[number], f"segment {number} depends on {names_of(tensors)}"


def names_of(tensors: frozenset[str]) -> str:
    return ", ".join(sorted(tensors)[:3])
