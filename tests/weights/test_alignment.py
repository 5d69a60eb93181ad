"""Checkpoints under a model's names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mixopt.errors import CheckpointError
from mixopt.weights.alignment import AlignedReader, align, signature_of
from mixopt.weights.checkpoints import Checkpoint

State = dict[str, Tensor]


class Net(nn.Module):
    """Two names for one weight, a buffer that is stored, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.decoder = nn.Linear(4, 5)
        self.decoder.weight = self.embed.weight
        self.register_buffer("ids", torch.arange(5))


def filled(seed: int = 1) -> Net:
    torch.manual_seed(seed)
    net = Net()
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


def aligned(state: State, weights: str = "auto", tied: dict[str, str] | None = None) -> Checkpoint:
    return align(Checkpoint(Path("m.pt"), state, tied or {}), signature_of(Net()), weights)  # type: ignore[arg-type]


def plain() -> State:
    state = dict(filled().state_dict())
    del state["decoder.weight"]
    return state


def fits(found: Checkpoint, net: Net | None = None) -> bool:
    state = found.tensors | {alias: found.tensors[name] for alias, name in found.tied.items()}
    expected = (net or filled()).state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_signature_knows_names_ties_and_constants() -> None:
    signature = signature_of(Net())
    assert signature.names == Net().state_dict().keys()
    assert signature.tied == {"decoder.weight": "embed.weight"}
    assert signature.constants.keys() == {"ids"}


def test_a_checkpoint_that_fits_stays_as_it_is() -> None:
    found = aligned(plain(), tied={"decoder.weight": "embed.weight"})
    assert fits(found)
    assert (found.tied, found.notices) == ({"decoder.weight": "embed.weight"}, ())


@pytest.mark.parametrize("prefix", ["model.", "net.encoder.", "_forward_module.", "a.b.c."])
def test_any_one_prefix_is_taken_off(prefix: str) -> None:
    state = {f"{prefix}{name}": tensor for name, tensor in plain().items()}
    found = aligned(state)
    assert fits(found)
    assert found.notices == (f"names lose the prefix {prefix!r}",)


def test_what_stands_outside_of_the_prefix_is_told() -> None:
    state = {f"model.{name}": tensor for name, tensor in plain().items()} | {"criterion.weight": torch.ones(5)}
    found = aligned(state)
    assert fits(found)
    assert "1 tensors that are not the model's are left out (criterion.weight)" in found.notices


def test_a_prefix_that_only_the_model_has_is_put_on() -> None:
    outer = nn.ModuleDict({"model": Net()})
    found = align(Checkpoint(Path("m.pt"), plain(), {}), signature_of(outer))
    assert {*found.tensors, *found.tied} == outer.state_dict().keys()
    assert found.notices == ("names get the prefix 'model.' that the model's have",)


@pytest.mark.parametrize(("weights", "seed"), [("auto", 2), ("ema", 2), ("raw", 1)])
@pytest.mark.parametrize("raw", ["model.", ""])
def test_of_two_sets_under_two_prefixes_the_averaged_is_taken(weights: str, seed: int, raw: str) -> None:
    both = {f"{raw}{name}": tensor for name, tensor in plain().items()}
    both |= {f"ema_model.{name}": tensor for name, tensor in filled(2).state_dict().items()}
    found = aligned(both, weights)
    assert fits(found, filled(seed))
    assert any("of two sets of weights" in notice for notice in found.notices)


def test_two_sets_of_which_none_is_averaged_are_refused() -> None:
    both = {f"{prefix}.{name}": tensor for name, tensor in plain().items() for prefix in ("student", "other")}
    with pytest.raises(CheckpointError, match=r"m\.pt: holds the model's weights under several prefixes"):
        aligned(both)


@pytest.mark.parametrize("alone", ["embed.weight", "decoder.weight"])
def test_either_name_of_a_tied_weight_is_enough(alone: str) -> None:
    state = plain()
    state = {alone if name == "embed.weight" else name: tensor for name, tensor in state.items()}
    found = aligned(state)
    assert fits(found)
    assert found.tied == {"decoder.weight": "embed.weight"}


def test_two_copies_of_one_weight_are_one() -> None:
    state = plain()
    found = aligned(state | {"decoder.weight": state["embed.weight"].clone()})
    assert fits(found)
    assert "decoder.weight" not in found.tensors


def test_a_copy_in_another_dtype_with_the_same_values_is_one_too() -> None:
    state = plain()
    state["embed.weight"] = state["embed.weight"].half()
    assert "decoder.weight" not in aligned(state | {"decoder.weight": state["embed.weight"].float()}).tensors


def test_two_values_for_one_weight_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"embed\.weight and decoder\.weight are one weight of the model"):
        aligned(plain() | {"decoder.weight": torch.zeros(5, 4)})


def test_what_a_file_ties_and_the_model_does_not_is_two() -> None:
    found = aligned(plain(), tied={"decoder.weight": "embed.weight", "norm.extra": "norm.weight"})
    assert found.tied == {"decoder.weight": "embed.weight"}
    assert found.tensors["norm.extra"] is found.tensors["norm.weight"]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("embeddings.position_ids", torch.arange(77)[None]),
        ("n_averaged", torch.tensor(3)),
        ("rotary_emb.inv_freq", torch.ones(4)),
        ("blocks.0.attn_mask", torch.zeros(2, 2)),
    ],
)
def test_constants_that_the_model_has_no_place_for_are_left_out(name: str, tensor: Tensor) -> None:
    found = aligned(plain() | {name: tensor})
    assert fits(found)
    assert found.notices == (f"1 constants that the model has no place for are left out ({name})",)


def test_weights_that_the_model_has_no_place_for_stay_to_be_told() -> None:
    assert "adapter.weight" in aligned(plain() | {"adapter.weight": torch.ones(2)}).tensors


def test_constants_that_a_file_lacks_are_the_models() -> None:
    state = plain()
    del state["ids"]
    found = aligned(state)
    assert fits(found)
    assert found.notices == ("1 constants are the model's own, as the file has none (ids)",)


def test_names_of_old_releases_are_read() -> None:
    state = plain()
    state["norm.gamma"], state["norm.beta"] = state.pop("norm.weight"), state.pop("norm.bias")
    found = aligned(state)
    assert fits(found)
    assert found.notices[0].startswith("2 names of an older release")


def test_a_prefix_before_a_head_that_does_not_fit_is_taken_off_all_the_same() -> None:
    state = {f"model.{name}": tensor for name, tensor in plain().items() if not name.startswith("norm.")}
    assert {"embed.weight", "decoder.bias"} <= aligned(state | {"model.extra": torch.ones(1)}).tensors.keys()


@pytest.mark.parametrize(
    "save",
    [
        lambda net: {"state_dict": {f"model._orig_mod.{name}": each for name, each in net.state_dict().items()}},
        lambda net: torch.optim.swa_utils.AveragedModel(net).state_dict(),
        lambda net: {name.replace("norm.", "norm._orig_mod."): each for name, each in net.state_dict().items()},
    ],
    ids=["lightning and compile", "AveragedModel", "a compiled part"],
)
def test_files_of_trainers_are_read_as_the_model(tmp_path: Path, save: Callable[[Net], State]) -> None:
    torch.save(save(filled()), tmp_path / "m.ckpt")
    found = AlignedReader(signature_of(Net()))(tmp_path / "m.ckpt")
    assert fits(found)
    assert found.notices


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_that_a_library_has_in_memory_alone(prefix: str) -> None:
    state = {f"{prefix}old.{name}": tensor for name, tensor in plain().items()}
    signature = signature_of(Net(), lambda name: name.removeprefix("old."))
    found = align(Checkpoint(Path("m.pt"), state), signature)
    assert fits(found)
    assert found.renamed == {name: f"{prefix}{name.removeprefix(f'{prefix}old.')}" for name in state}
