"""What trainers wrap weights in, and keep beside them."""

from __future__ import annotations

import argparse
import functools
from collections import defaultdict, deque
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from torch import Tensor

from mixopt.errors import CheckpointError
from mixopt.weights.checkpoints import Weights, read

State = dict[str, Tensor]
RAW: State = {"a.weight": torch.ones(2, 3), "b.bias": torch.zeros(2)}
EMA: State = {name: tensor + 0.5 for name, tensor in RAW.items()}
AVERAGED = {f"module.{name}": tensor for name, tensor in EMA.items()} | {"n_averaged": torch.tensor(7)}

BOTH: dict[str, dict[str, Any]] = {
    "timm": {"epoch": 3, "arch": "x", "state_dict": RAW, "state_dict_ema": EMA, "metric": 0.7},
    "torchvision": {"model": RAW, "model_ema": AVERAGED, "epoch": 3},
    "model and ema": {"model": RAW, "ema": EMA},
    "lightning": {"pytorch-lightning_version": "2.6", "state_dict": EMA, "current_model_state": RAW, "loops": {}},
    "nested": {"model": {"state_dict": RAW, "state_dict_ema": EMA}},
    "averaged inside": {"net": RAW, "ema_model": {"module": EMA}},
    "stochastic": {"state_dict": RAW, "swa_state_dict": AVERAGED},
    "shadow": {"model": RAW, "ema": {"decay": 0.9, "shadow": EMA}},
    "a callback's": {"state_dict": RAW, "callbacks": {"EMA": {"ema_state_dict": EMA, "decay": 0.9}, "Timer": {}}},
}


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "m.ckpt")
    return folder / "m.ckpt"


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("form", BOTH)
@pytest.mark.parametrize(("weights", "expected"), [("auto", EMA), ("ema", EMA), ("raw", RAW)])
def test_of_two_sets_the_averaged_is_taken_and_told(
    tmp_path: Path, form: str, weights: Weights, expected: State
) -> None:
    found = read(saved(tmp_path, BOTH[form]), weights)
    assert same(found.tensors, expected)
    assert any("is taken" in notice and "left out" in notice for notice in found.notices)
    assert any("--weights raw takes the other" in notice for notice in found.notices) == (weights == "auto")


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_an_average_alone_opens(tmp_path: Path, key: str) -> None:
    path = saved(tmp_path, {key: EMA, "epoch": 2})
    assert same(read(path).tensors, EMA)
    with pytest.raises(CheckpointError, match=r"--weights raw asks for the weights as trained, .*averaged alone"):
        read(path, "raw")


def test_asking_for_an_average_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--weights ema asks for the weights averaged"):
        read(saved(tmp_path, {"state_dict": RAW}), "ema")


def test_what_an_average_of_parameters_lacks_is_as_trained_and_told(tmp_path: Path) -> None:
    trained = RAW | {"bn.running_mean": torch.ones(3)}
    found = read(saved(tmp_path, {"state_dict": trained, "ema": {"shadow": EMA, "decay": 0.9}}))
    assert same(found.tensors, EMA | {"bn.running_mean": torch.ones(3)})
    assert found.notices[1] == "1 tensors that the average lacks are those as trained (bn.running_mean)"
    # An average of another model is not completed.
    found = read(saved(tmp_path, {"state_dict": trained, "ema": EMA | {"other.weight": torch.ones(1)}}))
    assert len(found.notices) == 1


@pytest.mark.parametrize("wrapped", [{"state": {"model": RAW, "optimizers": {}}, "rng": []}, {"app": {"model": RAW}}])
def test_weights_deeper_in_the_only_entry_that_has_some_are_found(tmp_path: Path, wrapped: dict[str, Any]) -> None:
    assert same(read(saved(tmp_path, wrapped)).tensors, RAW)


@pytest.mark.parametrize("content", [{"models": [RAW]}, [RAW], {0: RAW}, {"a.weight": np.ones(3)}, (RAW, 3)])
def test_what_holds_no_state_dict_says_what_to_save(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError, match=r"torch\.save\(model\.state_dict\(\), 'one\.pt'\)"):
        read(saved(tmp_path, content))


@pytest.mark.parametrize(
    "average",
    [
        {"ema": {"decay": 0.9, "num_updates": 3, "shadow_params": list(EMA.values()), "collected_params": []}},
        {"ema_params": list(EMA.values())},
        {"ema": {"decay": torch.tensor(0.9), "shadow_params": list(EMA.values())}},
    ],
    ids=["beside a decay", "alone", "beside a tensor"],
)
def test_an_average_without_names_is_told_and_not_passed_over(tmp_path: Path, average: dict[str, Any]) -> None:
    path = saved(tmp_path, {"state_dict": RAW, **average})
    found = read(path)
    assert same(found.tensors, RAW)
    (notice,) = found.notices
    assert notice.startswith(f"weights as trained are taken; averaged ones ({next(iter(average))}) are left out")
    assert read(path, "raw").notices == ()
    with pytest.raises(CheckpointError, match=r"--weights ema asks for .*without names, which fit no model"):
        read(path, "ema")


def test_a_prefix_that_stands_twice_is_told_once(tmp_path: Path) -> None:
    found = read(saved(tmp_path, {f"module.module.{name}": tensor for name, tensor in RAW.items()}))
    assert same(found.tensors, RAW)
    assert found.notices == ("names lose the prefix 'module.module.'",)


def test_a_plain_state_dict_has_one_set(tmp_path: Path) -> None:
    for weights in ("auto", "ema", "raw"):
        found = read(saved(tmp_path, RAW), weights)
        assert same(found.tensors, RAW)
        assert found.notices == ()


def test_an_entry_of_any_name_that_is_the_only_one_is_taken_and_told(tmp_path: Path) -> None:
    found = read(saved(tmp_path, {"student": RAW, "epoch": 3}))
    assert same(found.tensors, RAW)
    assert found.notices == ("the weights are taken from its entry 'student'",)


def test_entries_of_which_any_may_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"several state dicts \(student, tutor\)"):
        read(saved(tmp_path, {"student": RAW, "tutor": EMA}))


def test_a_list_of_averages_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found a list; .*tensors without names"):
        read(saved(tmp_path, list(RAW.values())))


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, model="x", out=None),
        PurePosixPath("/data"),
        Path("runs"),
        np.arange(3.0),
        np.float64(0.7),
        {"history": [np.float32(1.5)]},
        defaultdict(list, {"a": [1]}),
        deque([1, 2], maxlen=5),
        functools.partial(torch.optim.AdamW, lr=0.1, betas=(0.9, 0.99)),
        functools.partial(torch.optim.lr_scheduler.StepLR, step_size=3),
        torch.nn.CrossEntropyLoss(weight=torch.ones(3)),
        datetime(2024, 5, 1, 12, tzinfo=UTC),
        timedelta(hours=3),
        SimpleNamespace(lr=0.1),
        Decimal("0.1"),
        slice(0, 3),
        np.str_("resnet"),
        UUID(int=7),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_trainers_keep_beside_the_weights_does_not_stop_them(tmp_path: Path, beside: Any) -> None:
    assert same(read(saved(tmp_path, {"state_dict": RAW, "args": beside})).tensors, RAW)


class AttributeDict(dict[str, Any]):
    """As Lightning keeps options in, of a library that need not be here."""


AttributeDict.__module__ = "pytorch_lightning.utilities.parsing"


def test_options_of_a_library_that_is_not_here_do_not_stop_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.utilities.parsing")
    module.AttributeDict = AttributeDict  # type: ignore[attr-defined]
    for name in ("pytorch_lightning", "pytorch_lightning.utilities", module.__name__):
        monkeypatch.setitem(sys.modules, name, module if name == module.__name__ else types.ModuleType(name))
    path = saved(tmp_path, {"state_dict": RAW, "hyper_parameters": AttributeDict(lr=0.1)})
    monkeypatch.undo()
    assert same(read(path).tensors, RAW)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_is_read_as_the_same_numbers(tmp_path: Path, dtype: str) -> None:
    short = torch.tensor([0.5, -3.0, 0.015625]).to(getattr(torch, dtype))
    found = read(saved(tmp_path, {"a.weight": short, "b.bias": torch.ones(1)}))
    assert found.tensors["a.weight"].dtype == torch.float32
    assert found.tensors["a.weight"].tolist() == [0.5, -3.0, 0.015625]
    assert found.notices == ("1 float8 tensors are read as float32, which holds the same numbers",)


@pytest.mark.parametrize(
    ("more", "scheme"),
    [
        ({"a.weight": torch.ones(2, dtype=torch.int8), "a.SCB": torch.ones(2)}, "bitsandbytes in 8 bits"),
        ({"a.weight": torch.ones(2, dtype=torch.uint8), "a.weight.absmax": torch.ones(2)}, "bitsandbytes in 4 bits"),
        ({"a.qweight": torch.ones(2, dtype=torch.int32), "a.scales": torch.ones(2)}, "GPTQ or AWQ"),
        ({"a.weight": torch.ones(2).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(1)}, "float8 with scales"),
        (
            {"a.weight": torch.ones(2).to(torch.float8_e4m3fn), "a.weight_scale_inv": torch.ones(1)},
            "float8 with scales",
        ),
    ],
)
def test_numbers_that_need_a_scale_are_refused_by_the_name_of_their_scheme(
    tmp_path: Path, more: State, scheme: str
) -> None:
    with pytest.raises(CheckpointError, match=f"quantised by {scheme}"):
        read(saved(tmp_path, {"norm.weight": torch.ones(2), **more}))
