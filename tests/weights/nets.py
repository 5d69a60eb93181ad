"""A small network, pools of its state dicts, and what fusing them must give, by a loop."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mixopt.values.mix import Mix
from mixopt.weights.pool import Pool, open_pool
from tests.conftest import State


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Linear(6, 6)


class Net(nn.Module):
    """Has the names and shapes of `random_states`."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 6, bias=False)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(6, 4, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.zeros(5))
        self.register_buffer("steps", torch.tensor(0))


def naive(states: list[State], mix: Mix) -> dict[str, Tensor]:
    """The reference: a loop over names and columns in float64."""
    row_of = mix.groups.index()
    fused = {}
    for name in states[0]:
        if name not in row_of:
            fused[name] = states[0][name]
            continue
        total = torch.zeros_like(states[0][name], dtype=torch.float64)
        for column, state in enumerate(states):
            total += float(mix.coefficients[row_of[name], column]) * state[name].double()
        fused[name] = total
    return fused


def scale_of(states: list[State], mix: Mix, name: str) -> Tensor:
    """Per entry, the largest term that is added up."""
    row = mix.coefficients[mix.groups.index()[name]]
    terms = [abs(float(weight)) * state[name].double().abs() for weight, state in zip(row, states, strict=True)]
    return torch.stack(terms).amax(dim=0)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def open_states(folder: Path, states: list[State]) -> Pool:
    paths = {}
    for number, state in enumerate(states):
        paths[f"model_{number}"] = folder / f"model_{number}.safetensors"
        save_file(state, paths[f"model_{number}"])
    return open_pool(paths)
