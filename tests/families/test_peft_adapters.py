"""peft adapters: the merged model gives what peft's own adapted model gives, for every kind; what is refused."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixopt.errors import CheckpointError, SpecError
from mixopt.families.peft_adapters import (
    EXACT,
    AdapterReader,
    merge,
    read_adapter_config,
)
from mixopt.weights import checkpoints

NAMED = {"target_modules": ["first", "second"]}


class Net(nn.Module):
    """Embedded words through two layers to a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.first, self.norm, self.second = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8)
        self.classifier = nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        """Word numbers ``[b]`` to logits ``[b, 3]``."""
        hidden = torch.relu(self.norm(self.first(self.words(words))))
        logits: Tensor = self.classifier(self.second(hidden))
        return logits


KINDS: dict[str, Callable[[], Any]] = {
    "LORA": lambda: peft.LoraConfig(r=4, **NAMED),
    "LORA, rank-stabilised": lambda: peft.LoraConfig(r=4, lora_alpha=7, use_rslora=True, **NAMED),
    "LORA, DoRA": lambda: peft.LoraConfig(r=4, use_dora=True, **NAMED),
    "LORA, patterns": lambda: peft.LoraConfig(r=4, rank_pattern={"second": 2}, alpha_pattern={"first": 3}, **NAMED),
    "LORA, biases": lambda: peft.LoraConfig(r=2, bias="lora_only", **NAMED),
    "LORA, all biases": lambda: peft.LoraConfig(r=2, bias="all", **NAMED),
    "LORA, a head": lambda: peft.LoraConfig(r=2, modules_to_save=["classifier"], **NAMED),
    "LORA, embeddings": lambda: peft.LoraConfig(r=2, target_modules=["words", "first"]),
    "LORA, some tokens": lambda: peft.LoraConfig(r=2, trainable_token_indices={"words": [1, 2]}, **NAMED),
    "LORA, OLoRA": lambda: peft.LoraConfig(r=2, init_lora_weights="olora", **NAMED),
    "LORA, PiSSA": lambda: peft.LoraConfig(r=2, init_lora_weights="pissa", **NAMED),
    "ADALORA": lambda: peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, tinit=1, tfinal=1, **NAMED),
    "HRA": lambda: peft.HRAConfig(r=2, **NAMED),
    "IA3": lambda: peft.IA3Config(feedforward_modules=["second"], **NAMED),
    "LN_TUNING": lambda: peft.LNTuningConfig(target_modules=["norm"]),
    "LOHA": lambda: peft.LoHaConfig(r=2, **NAMED),
    "LOKR": lambda: peft.LoKrConfig(r=2, **NAMED),
    "OFT": lambda: peft.OFTConfig(oft_block_size=4, r=0, **NAMED),
    "VERA": lambda: peft.VeraConfig(r=2, target_modules=["first"]),
}


def new_base(seed: int = 0) -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net().eval()


def write_adapter(folder: Path, config: Any, base: nn.Module, seed: int = 0) -> nn.Module:
    """An adapter as after training, saved by peft; and the adapted model."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        adapted: Any = peft.get_peft_model(copy.deepcopy(base), config)
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.add_(0.1 * torch.randn_like(weight))
        adapted.save_pretrained(folder)
    model: nn.Module = adapted.eval()
    return model


def reader(tmp_path: Path, base: nn.Module | None = None) -> AdapterReader:
    save_file((base or new_base()).state_dict(), tmp_path / "base.safetensors")
    return AdapterReader(new_base(9), tmp_path / "base.safetensors", checkpoints.read, tmp_path / "cache", {})


def test_every_kind_that_is_merged_is_tested() -> None:
    assert {kind.partition(",")[0] for kind in KINDS} == set(EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_as_peft_does(kind: str, tmp_path: Path) -> None:
    base, words = new_base(), torch.arange(10)
    adapted = write_adapter(tmp_path / "adapter", KINDS[kind](), base)
    found = reader(tmp_path, base)(tmp_path / "adapter")
    module = new_base(1)
    module.load_state_dict(found.tensors)
    with torch.inference_mode():
        expected = adapted(words)
        torch.testing.assert_close(module(words), expected, atol=1e-6, rtol=0)
        assert not torch.allclose(base(words), expected, atol=1e-3), "control: the adapter does something"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layer norms, which are tuned as a whole
        by_hand = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "adapter"))
    for name, tensor in by_hand.merge_and_unload(safe_merge=True).state_dict().items():
        torch.testing.assert_close(found.tensors[name], tensor, atol=1e-6, rtol=0)
    assert found.path == tmp_path / "adapter"
    assert found.notices == (f"adapter: a peft adapter, merged into {tmp_path}/base.safetensors",)


def test_a_merged_model_is_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapter(tmp_path / "one", KINDS["LORA"](), new_base())
    opened = reader(tmp_path)
    first = opened(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    monkeypatch.setattr("mixopt.families.peft_adapters.merge", None)  # would fail if it were called
    again = reader(tmp_path)(tmp_path / "two")
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    monkeypatch.undo()
    write_adapter(tmp_path / "two", KINDS["LORA"](), new_base(), seed=5)
    changed = reader(tmp_path)(tmp_path / "two")
    assert not torch.equal(changed.tensors["first.weight"], first.tensors["first.weight"])
    other_base = reader(tmp_path, new_base(3))(tmp_path / "two")
    assert not torch.equal(other_base.tensors["first.weight"], changed.tensors["first.weight"])
    assert len(list((tmp_path / "cache" / "merged").iterdir())) == 3


def test_whole_models_are_opened_as_they_are(tmp_path: Path) -> None:
    opened = reader(tmp_path)(tmp_path / "base.safetensors")
    assert torch.equal(opened.tensors["first.weight"], new_base().state_dict()["first.weight"])
    assert not (tmp_path / "cache").exists()


def test_weights_in_a_pickle_are_read_without_code(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", KINDS["LORA"](), new_base())
    expected = reader(tmp_path)(tmp_path / "adapter").tensors
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(file), tmp_path / "adapter" / "adapter_model.bin")
    file.unlink()
    found = reader(tmp_path)(tmp_path / "adapter").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_head_that_the_base_lacks_comes_with_each_adapter(tmp_path: Path) -> None:
    base = new_base()
    for name, kind in (("with", "LORA, a head"), ("without", "LORA")):
        write_adapter(tmp_path / name, KINDS[kind](), base)
    opened = reader(tmp_path, base)
    assert not opened.lacking()
    headless = {name: x for name, x in base.state_dict().items() if not name.startswith("classifier")}
    save_file(headless, tmp_path / "base.safetensors")
    opened = reader_of_file(tmp_path)
    assert opened.lacking() == {"classifier.weight", "classifier.bias"}
    expected = load_file(tmp_path / "with" / "adapter_model.safetensors")
    head = opened(tmp_path / "with").tensors["classifier.weight"]
    assert torch.equal(head, expected["base_model.model.classifier.weight"])
    with pytest.raises(CheckpointError, match=r"without: neither it \(modules_to_save\) nor the base .*has classifier"):
        opened(tmp_path / "without")


def reader_of_file(tmp_path: Path) -> AdapterReader:
    return AdapterReader(new_base(9), tmp_path / "base.safetensors", checkpoints.read, tmp_path / "cache", {})


def test_another_base_is_told(tmp_path: Path) -> None:
    wider = new_base()
    wider.third = nn.Linear(8, 8)
    write_adapter(tmp_path / "more", peft.LoraConfig(r=2, target_modules=["first", "third"]), wider)
    with pytest.raises(CheckpointError, match=r"more: does not fit the base: has no place in the base for .*third"):
        reader(tmp_path)(tmp_path / "more")
    narrow = new_base()
    narrow.second = nn.Linear(16, 4)
    write_adapter(tmp_path / "shape", KINDS["LORA"](), narrow)
    with pytest.raises(CheckpointError, match=r"shape: peft cannot merge this adapter into the base .*--base"):
        reader(tmp_path)(tmp_path / "shape")


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "prompt tuning": ({"peft_type": "PROMPT_TUNING"}, "an adapter of the kind PROMPT_TUNING, which cannot be merged"),
    "prefix tuning": ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
    "x-lora": ({"peft_type": "XLORA"}, "XLORA"),
    "nothing": ({"peft_type": None}, "of the kind None"),
    "loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq', which changed the base"),
    "by chance": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    "by data": ({"init_lora_weights": "corda"}, "corda"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is set"),
    "layers": ({"layer_replication": [[0, 2]]}, "layer_replication is set"),
    "code": ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config is set"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_exactly_is_refused_by_name(case: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", KINDS["LORA"](), new_base())
    changes, says = REFUSED[case]
    with pytest.raises(CheckpointError, match=says) as caught:
        reader(tmp_path)(edited(tmp_path / "adapter", **changes))
    assert "adapter_config.json" in str(caught.value)


def test_code_that_a_config_names_is_not_imported(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", KINDS["LORA"](), new_base())
    named = {"auto_mapping": {"base_model_class": "X", "parent_library": "no.such.module"}, "megatron_core": "no.such"}
    folder = edited(tmp_path / "adapter", base_model_name_or_path="someone/model", **named)
    assert reader(tmp_path)(folder).tensors
    assert not read_adapter_config(folder).keys() & {"auto_mapping", "megatron_core", "base_model_name_or_path"}
    assert checkpoints.base_of_adapter(folder) == "someone/model"


def test_folders_that_are_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    assert not checkpoints.is_adapter(folder)
    write_adapter(folder, KINDS["LORA"](), new_base())
    assert checkpoints.is_adapter(folder)
    checkpoints.adapter_file(folder).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged or truncated safetensors file"):
        reader(tmp_path)(folder)
    checkpoints.adapter_file(folder).unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config\.json without adapter_model\.safetensors or"):
        reader(tmp_path)(folder)
    (folder / "adapter_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a JSON object, found a list"):
        reader(tmp_path)(folder)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    write_adapter(tmp_path / "adapter", KINDS["LORA"](), new_base())
    config = read_adapter_config(tmp_path / "adapter")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SpecError, match=r"pip install 'mixopt\[peft\]'"):
        merge(new_base(), tmp_path / "adapter", config, checkpoints.adapter_file(tmp_path / "adapter"))
