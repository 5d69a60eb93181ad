"""Ways to damage what ``torch.save`` wrote, and pickles that hold something else, or would run code."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.faults.formats import members_of, zipped
from tests.faults.mutations import Change, Mutation, Random, rewriting
from tests.faults.payloads import Call, calls, pickled
from tests.faults.trees import NAMES, pick


def saved(value: Any, *, new: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


def state_of(content: bytes) -> dict[str, Tensor]:
    found = torch.load(io.BytesIO(content), weights_only=False)  # one that was made here
    return dict(found.get("state_dict_ema", found))


def _rebuilt(tensor: Tensor, *arguments: Any) -> Any:
    """A tensor's storage under any offset, shape and strides, which torch does not compare when it saves."""
    return Call(torch._utils._rebuild_tensor_v2, tensor.untyped_storage(), *arguments, False, OrderedDict())


def odd_tensors(tensor: Tensor) -> list[Callable[[], Any]]:
    """What stands in place of a tensor."""
    flat = torch.zeros(1)
    return [
        lambda: torch.empty(tensor.shape, device="meta"),
        lambda: torch.zeros(4).to(torch.float8_e4m3fn),
        lambda: torch.zeros(4).to(torch.float8_e5m2),
        lambda: flat.expand(2**31, 2**31),
        lambda: flat.expand(10**10),
        lambda: flat.expand(*tensor.shape),
        lambda: torch.zeros(3, dtype=torch.complex64),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        lambda: torch.zeros(0),
        lambda: torch.zeros(0, 2**40),
        lambda: torch.zeros((1,) * 60),
        lambda: tensor.double(),
        lambda: tensor.half(),
        lambda: tensor.bool(),
        lambda: tensor.to(torch.int64),
        lambda: tensor.to(torch.uint16),
        lambda: tensor.flip(0) if tensor.ndim else tensor,
        lambda: tensor.T if tensor.ndim == 2 else tensor,
        lambda: torch.nn.Parameter(tensor) if tensor.is_floating_point() else tensor,
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor + 1,
        lambda: _rebuilt(tensor, 0, (2**31, 2**31), (1, 1)),
        lambda: _rebuilt(tensor, 2**40, (1,), (1,)),
        lambda: _rebuilt(tensor, -8, (4,), (1,)),
        lambda: _rebuilt(tensor, 0, (-4,), (1,)),
        lambda: _rebuilt(tensor, 0, (4,), (-1,)),
        lambda: _rebuilt(tensor, 0, (4, 4), (2**62, 2**62)),
        lambda: tensor.untyped_storage(),
        lambda: 5,
        lambda: None,
        lambda: "text",
        lambda: [tensor],
        lambda: {"inner": tensor},
    ]


def odd_states(state: dict[str, Tensor]) -> list[Callable[[], Any]]:
    """What stands in place of a state dict."""
    nested: Any = ()
    for _ in range(100):
        nested = (nested,)
    itself: dict[str, Any] = dict(state)
    itself["state_dict"] = itself
    deep: Any = state
    for _ in range(100):
        deep = {"state_dict": deep}
    return [
        dict,
        list,
        lambda: None,
        lambda: 5,
        lambda: "text",
        lambda: list(state.values()),
        lambda: next(iter(state.values())),
        lambda: {"state_dict": state},
        lambda: {"state_dict": {}, **state},
        lambda: {"model": {"module": {"net": state}}},
        lambda: {**state, "epoch": 3, "best": 0.5},
        lambda: {5: next(iter(state.values())), **state},
        lambda: {("a", ("b",)): next(iter(state.values())), **state},
        lambda: {nested: next(iter(state.values())), **state},
        lambda: {None: next(iter(state.values()))},
        lambda: {1.5: 1, b"x": 2, **state},
        lambda: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda: {f"module.{'module.' * 3000}{name}": tensor for name, tensor in state.items()},
        lambda: {f"x{number}": torch.zeros(1) for number in range(3000)},
        lambda: itself,
        lambda: deep,
        lambda: OrderedDict(state),
        lambda: {**state, "alias": next(iter(state.values()))},
        lambda: {**state, "module": torch.nn.Linear(2, 2)},
        lambda: {**state, "set": {1, 2}, "date": bytearray(5)},
    ]


def _with_tensor(state: dict[str, Tensor], random: Random) -> Any:
    name = pick(random, list(state))
    return {**state, name: pick(random, odd_tensors(state[name].clone()))()}


def changes(*, new: bool) -> list[Change]:
    """By the format that the file is saved in again."""

    def odd_tensor(random: Random, content: bytes) -> bytes:
        return saved(_with_tensor(state_of(content), random), new=new)

    def odd_state(random: Random, content: bytes) -> bytes:
        return saved(pick(random, odd_states(state_of(content)))(), new=new)

    def odd_key(random: Random, content: bytes) -> bytes:
        state = state_of(content)
        old = pick(random, list(state))
        names = [name for name in NAMES if "\ud800" not in name]
        return saved({pick(random, names) if name == old else name: state[name] for name in state}, new=new)

    def code_in_it(random: Random, content: bytes) -> bytes:
        return saved({**state_of(content), "more": pick(random, calls())}, new=new)

    def code_alone(random: Random, content: bytes) -> bytes:
        return pick(random, pickled())  # type: ignore[no-any-return]

    def plain_pickle(random: Random, content: bytes) -> bytes:
        values = ({"a": 1}, [1], {name: tensor.tolist() for name, tensor in state_of(content).items()}, b"x", 10**3000)
        return pickle.dumps(pick(random, values), int(random.integers(0, 6)))

    return [odd_tensor, odd_tensor, odd_state, odd_state, odd_key, code_in_it, code_alone, plain_pickle]


def _pickle_member(members: dict[str, bytes]) -> str:
    return next(name for name in members if name.endswith("data.pkl"))


def compressed_members(random: Random, content: bytes) -> bytes:
    method = pick(random, (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    return zipped(members_of(content), method)


def code_in_the_archive(random: Random, content: bytes) -> bytes:
    members = members_of(content)
    members[_pickle_member(members)] = pick(random, pickled())
    return zipped(members)


def archive_member(random: Random, content: bytes) -> bytes:
    """A member of the archive missing, empty, short, long or under another name."""
    members = members_of(content)
    name = pick(random, list(members))
    data = members.pop(name)
    made: tuple[dict[str, bytes], ...] = (
        members,
        {**members, name: b""},
        {**members, name: data[: len(data) // 2]},
        {**members, name: data * 3},
        {**members, f"other/{name}": data},
        {**members, f"../{name}": data},
        {**members, name: data, f"{name.partition('/')[0]}/byteorder": b"big"},
        {**members, name: data, f"{name.partition('/')[0]}/byteorder": b"middle"},
        {**members, name: data, f"{name.partition('/')[0]}/version": b"999999\n"},
        {**members, name: data, f"{name.partition('/')[0]}/constants.pkl": b"\x80\x02)."},
    )
    return zipped(pick(random, made))


def pickle_bytes(random: Random, content: bytes) -> bytes:
    """The bytes of the pickle within the archive, with its checksum right again."""
    members = members_of(content)
    name = _pickle_member(members)
    data = bytearray(members[name])
    for _ in range(int(random.integers(1, 6))):
        data[int(random.integers(len(data)))] = int(random.integers(256))
    members[name] = bytes(data)
    return zipped(members)


ZIP: tuple[Mutation, ...] = tuple(
    rewriting(change)
    for change in (
        *changes(new=True),
        compressed_members,
        code_in_the_archive,
        archive_member,
        pickle_bytes,
        pickle_bytes,
    )
)
LEGACY: tuple[Mutation, ...] = tuple(rewriting(change) for change in changes(new=False))
