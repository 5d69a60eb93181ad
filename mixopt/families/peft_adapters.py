"""peft adapters (https://github.com/huggingface/peft): each is merged into its base by peft itself, and mixed then.

To average the factors of adapters would give cross terms; what is mixed here are whole models. A merged one is kept in
the cache, by the content of adapter and base, so that the passes over a pool merge nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixopt.errors import CheckpointError, SpecError, names, short
from mixopt.files import MERGED, make_folder
from mixopt.untrusted import refusing
from mixopt.untrusted.texts import read_json
from mixopt.weights import checkpoints
from mixopt.weights.checkpoints import Checkpoint
from mixopt.weights.reading import Reader

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# What peft folds into weights exactly; tested one by one.
EXACT = ("ADALORA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "LORA", "OFT", "VERA")
# Keys that name code or a place to load from, and which peft needs none of to merge.
_NOT_FOLLOWED = ("auto_mapping", "base_model_name_or_path", "megatron_core", "parent_library", "revision")
# Ways to begin that change the base by chance, or by data that is not here: what was trained cannot be had again.
_CHANGES_BASE = ("corda", "loftq", "lora_ga", "mica", "pissa_niter")


@dataclass(eq=False)
class AdapterReader:
    """Opens a pool's checkpoints: adapters merged into the base, and whole models as they are.

    Attributes:
        module: A model that the family built, in float32; never changed.
        base: The checkpoint that the adapters were trained on.
        opener: Opens a checkpoint under the module's names.
        cache: The cache directory.
        key: What makes the model, for the names of what is kept.
    """

    module: nn.Module
    base: Path
    opener: Reader
    cache: Path
    key: Mapping[str, Any]
    _files: dict[Path, Path] = field(default_factory=dict)
    _base_hash: str = ""

    def __call__(self, path: Path) -> Checkpoint:
        """Open one.

        Raises:
            CheckpointError: It is an adapter that cannot be merged exactly, or does not fit the base.
        """
        if not checkpoints.is_adapter(path):
            return self.opener(path)
        if path not in self._files:
            self._files[path] = self._merged_file(path)
        merged = self.opener(self._files[path])
        said = f"{path.name}: a peft adapter, merged into {self.base}"
        return replace(merged, path=path, notices=(*merged.notices, said))

    def lacking(self) -> frozenset[str]:
        """The tensors of the model that the base has not: a head that each adapter must bring."""
        opened = self.opener(self.base)
        return frozenset(self.module.state_dict()) - opened.tensors.keys() - opened.tied.keys()

    def _merged_file(self, path: Path) -> Path:
        config = read_adapter_config(path)
        weights = checkpoints.adapter_file(path)
        with refusing(CheckpointError, str(weights), found="cannot be read", cure="copy the adapter again"):
            digest = hashlib.sha256(weights.read_bytes())
        digest.update(json.dumps([config, self._content_of_base(), self.key, _versions()], sort_keys=True).encode())
        folder = self.cache / MERGED / digest.hexdigest()[:32]
        file = folder / "model.safetensors"
        if not file.is_file():
            tensors = self._merge(path, config, weights)
            make_folder(folder, self.cache)
            checkpoints.write(file, tensors, tied={}, metadata={})
        return file

    def _content_of_base(self) -> str:
        if not self._base_hash:
            self._base_hash = checkpoints.content_hash(checkpoints.hash_tensors(self.opener(self.base).tensors))
        return self._base_hash

    def _merge(self, path: Path, config: Mapping[str, Any], weights: Path) -> dict[str, Tensor]:
        module, opened = deepcopy(self.module), self.opener(self.base)
        state = opened.tensors | {alias: opened.tensors[name] for alias, name in opened.tied.items()}
        with refusing(CheckpointError, str(self.base), found="does not fit the model", cure="correct --base"):
            lacking = module.load_state_dict(state, strict=False).missing_keys
        merged = merge(module, path, config, weights)
        brought = tuple(f"{name}." for name in config.get("modules_to_save") or ())
        if left := [name for name in lacking if not any(each in f".{name}" for each in _dotted(brought))]:
            raise CheckpointError(
                f"{path}: neither it (modules_to_save) nor the base {self.base} has {names(left)}; give the base that "
                "it was trained on: --base"
            )
        return _untied(merged)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter's config without the keys that are not followed.

    Raises:
        CheckpointError: Not one, or of an adapter that cannot be merged exactly.
    """
    found, where = _read(folder), folder / CONFIG
    kind = found.get("peft_type")
    if kind not in EXACT:
        raise CheckpointError(
            f"{where}: an adapter of the kind {short(str(kind))}, which cannot be merged into its base exactly; only "
            f"{', '.join(EXACT)} can"
        )
    start = str(found.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{where}: init_lora_weights is {short(repr(found['init_lora_weights']))}, which changed the base as it "
            "began and cannot be made again exactly; save it as a LoRA adapter of the unchanged base (peft: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...))"
        )
    for key in ("alora_invocation_tokens", "layer_replication", "megatron_config"):
        if found.get(key):
            raise CheckpointError(f"{where}: {key} is set; such an adapter cannot be merged into its base exactly")
    return {key: value for key, value in found.items() if key not in _NOT_FOLLOWED}


def merge(module: nn.Module, folder: Path, config: Mapping[str, Any], weights: Path) -> dict[str, Tensor]:
    """A base with an adapter folded into it by peft, by the base's names.

    Args:
        module: The base with its weights, in float32; used up.
        folder: The adapter's folder, for messages.
        config: From `read_adapter_config`.
        weights: From `mixopt.weights.checkpoints.adapter_file`.

    Raises:
        CheckpointError: The adapter does not fit the base.
        SpecError: peft is not installed.
    """
    peft, wanted = _library(), set(module.state_dict())
    with (
        tempfile.TemporaryDirectory() as place,
        refusing(
            CheckpointError,
            str(folder),
            found="peft cannot merge this adapter into the base",
            cure="give the base that it was trained on: --base",
            also=(ImportError,),
        ),
    ):
        (Path(place) / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        stored = _copied(weights, Path(place))
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # What they warn of is checked below, or says how to train.
            warnings.simplefilter("ignore")
            adapted = peft.PeftModel.from_pretrained(module, place, torch_device="cpu", autocast_adapter_dtype=True)
            used = peft.get_peft_model_state_dict(adapted)
            _check_used(folder, set(stored), set(used))
            merged = adapted.merge_and_unload(safe_merge=True).state_dict()
    if set(merged) != wanted:
        strange = sorted(set(merged) ^ wanted)
        raise CheckpointError(f"{folder}: merged into the base, it changes what there is ({names(strange)})")
    return {name: tensor.detach().float() if tensor.is_floating_point() else tensor for name, tensor in merged.items()}


def _read(folder: Path) -> dict[str, Any]:
    found = read_json(folder / CONFIG, CheckpointError, cure="copy the adapter again")
    if not isinstance(found, dict):
        raise CheckpointError(f"{folder / CONFIG}: expected a JSON object, found a {type(found).__name__}")
    return found


def _copied(weights: Path, place: Path) -> dict[str, Tensor]:
    """The adapter's tensors, and a safetensors file of them for peft, which would open a pickle in its own way."""
    opened = checkpoints.read(weights)
    tensors = {name: tensor.contiguous() for name, tensor in opened.tensors.items()}
    tensors |= {alias: tensors[name].clone() for alias, name in opened.tied.items()}
    checkpoints.write(place / WEIGHTS, tensors, tied={}, metadata={})
    return tensors


def _check_used(folder: Path, stored: set[str], used: set[str]) -> None:
    """Compare an adapter's tensors with those that peft has a place for.

    Raises:
        CheckpointError: Some have none, or some places are empty: it was trained on another base.
    """
    # Whole embeddings are stored beside adapters that change their size.
    extra = [name for name in stored - used if "lora_" in name or "modules_to_save" in name]
    if missing := sorted(used - stored) or sorted(extra):
        which = "lacks" if used - stored else "has no place in the base for"
        raise CheckpointError(
            f"{folder}: does not fit the base: {which} {names(missing)}; give the base that it was trained on: --base"
        )


def _dotted(brought: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{name}" for name in brought)


def _untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own, one for each name."""
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _versions() -> list[str]:
    return [_library().__version__, torch.__version__]


def _library() -> Any:
    try:
        import peft
    except ImportError as error:
        raise SpecError(f"peft adapters need the library ({error}); install it: pip install 'mixopt[peft]'") from error
    return peft
