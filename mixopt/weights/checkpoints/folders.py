"""A folder as a checkpoint: as transformers, timm, open_clip, accelerate and peft leave it."""

from __future__ import annotations

import re
from pathlib import Path

from mixopt.errors import CheckpointError, names
from mixopt.untrusted.texts import read_json

# Where libraries keep the weights, the first that is there.
MAIN = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What mixopt leaves in a run folder beside its model.
RECIPE = "recipe.json"

# Beside the weights lies what training goes on with.
_SIDE = re.compile(
    r"^(optimizer|scheduler|scaler|lr_scheduler|grad_scaler)([._-].*)?\.(pt|pth|bin|safetensors)$"
    r"|^(rng_state|random_states|sampler|dl_state)[._-]?.*\.(pt|pth|bin|pkl)$"
    r"|^(training_args|trainer_state|optim|optim_state)\.(pt|pth|bin)$"
    r"|.*_optim_states\.pt$|^adapter_model\.(safetensors|bin)$"
)
_CONSOLIDATE = {
    "zero_to_fp32.py": "of DeepSpeed; join them: python {folder}/zero_to_fp32.py {folder} {folder}/pytorch_model.bin",
    "pytorch_model_fsdp_*": "of FSDP; join them: accelerate merge-weights {found} {folder}",
    "pytorch_model_fsdp.bin": "of FSDP in one file; rename it: mv {found} {folder}/pytorch_model.bin",
    "*_model_states.pt": "of DeepSpeed; join them with the zero_to_fp32.py of the folder above",
    "*.distcp": "of torch's distributed checkpoints; join them: python -m torch.distributed.checkpoint.format_utils "
    "dcp_to_torch {folder} {folder}/model.pt",
}


def is_side_file(path: Path) -> bool:
    """Whether a file belongs to a checkpoint's training state, not to its weights, by its name."""
    return _SIDE.match(path.name) is not None


def is_adapter(path: Path) -> bool:
    """Whether a folder holds a peft adapter in place of a model."""
    return (path / ADAPTER).is_file() and not any((path / name).is_file() for name in MAIN)


def base_of_adapter(folder: Path) -> str | None:
    """The model that an adapter was trained on, as its config names it: a folder, or a name on a hub.

    Raises:
        CheckpointError: Its config is none.
    """
    found = read_json(folder / ADAPTER, CheckpointError, cure="copy the adapter again")
    named = found.get("base_model_name_or_path") if isinstance(found, dict) else None
    return named if isinstance(named, str) and named else None


def adapter_file(folder: Path) -> Path:
    """The file with an adapter's own weights.

    Raises:
        CheckpointError: There is none.
    """
    found = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder}: {ADAPTER} without {' or '.join(ADAPTER_WEIGHTS)}; copy the adapter again")
    return found


def main_file(folder: Path) -> Path | None:
    """The file in a folder that holds its model's weights, or their index, by its name; None where there is none."""
    return next((folder / name for name in MAIN if (folder / name).is_file()), None)


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a folder is one checkpoint: a model or an adapter as libraries keep them, and no run of mixopt's."""
    if not path.is_dir() or path.name.startswith(".") or (path / RECIPE).is_file():
        return False
    return is_adapter(path) or main_file(path) is not None


def weights_in(folder: Path, files: list[Path]) -> Path:
    """The file to read for a folder that a user named as a checkpoint.

    Args:
        folder: The folder.
        files: The checkpoint files in it, side files left out.

    Raises:
        CheckpointError: There is none, or no telling which; names shards that have to be joined first.
    """
    if (main := main_file(folder)) is not None:
        return main
    if is_adapter(folder):
        raise CheckpointError(
            f"{folder}: a peft adapter, which is no model by itself; give the model that it was trained on: --base"
        )
    if problem := shards_in(folder):
        raise CheckpointError(problem)
    if len(files) != 1:
        what = f"several checkpoints ({names(file.name for file in files)}); name one of them" if files else "none"
        raise CheckpointError(f"{folder}: expected a folder with one checkpoint in it, found {what}")
    return files[0]


def shards_in(folder: Path) -> str:
    """Says which shards of a distributed run a folder holds and how to join them; empty where it holds none."""
    for pattern, text in _CONSOLIDATE.items():
        found = next(iter(sorted(folder.glob(pattern))), None)
        if found is not None:
            return f"{folder}: the weights are in shards {text.format(folder=folder, found=found)}"
    return ""
