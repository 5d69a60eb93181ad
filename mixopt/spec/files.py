"""pool.toml, study.toml and flags, brought together: who wins, what paths are relative to, and what is wrong where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mixopt.errors import LISTED, SpecError, listing, short, unknown
from mixopt.imports import is_import_path
from mixopt.spec.checks import merged_ingredients, one_name
from mixopt.spec.option import described
from mixopt.spec.study import StudySpec
from mixopt.untrusted import refusing
from mixopt.untrusted.texts import read_toml

POOL_FILE = "pool.toml"


def load_spec(flags: Mapping[str, Any], study: Path | None = None) -> StudySpec:
    """Bring pool.toml, study.toml and flags together; a flag wins over study.toml, which wins over pool.toml.

    Args:
        flags: Field name to value, as given on the command line or in Python; None means not given. Paths in them
            are relative to the working directory; those in a file, to that file.
        study: A study.toml.

    Raises:
        SpecError: Everything that is wrong, each with the file or flag it stands in.
    """
    given = {key: value for key, value in flags.items() if value is not None}
    layers: list[tuple[str, dict[str, Any]]] = []
    if study is not None:
        layers.append((str(study), _read_toml(study)))
    models = given.get("models", layers[0][1].get("models") if layers else None)
    if not isinstance(models, (str, Path)):
        raise SpecError("--models: the folder with the checkpoints is needed (--models DIR)")
    pool_file = Path(models) / POOL_FILE
    with refusing(SpecError, f"--models {short(str(models))}", found="not a folder", cure="name one"):
        has_pool_file = pool_file.is_file()
    if has_pool_file:
        layers.insert(0, (str(pool_file), _read_toml(pool_file)))
    layers.append(("", given))
    merged: dict[str, Any] = {}
    where: dict[str, str] = {}
    for source, layer in layers:
        _lay_over(merged, where, layer, source)
    if odd := [key for key, value in merged.items() if any("\0" in text for text in _texts(value))]:
        head = f"{where[odd[0]]}: " if where[odd[0]] else ""
        raise SpecError(f"{head}{odd[0]}: holds a NUL character, which no name of a file or class can have")
    try:
        return StudySpec.model_validate(merged)
    except ValidationError as error:
        details = error.errors()
        # The rest are counted: to word each of a hundred thousand would take minutes.
        problems = [_problem(dict(detail), where) for detail in details[:LISTED]] + [""] * len(details[LISTED:])
        raise SpecError(listing("the options cannot be used", problems)) from error


def _lay_over(merged: dict[str, Any], where: dict[str, str], layer: Mapping[str, Any], source: str) -> None:
    """Put a layer over those before it, and keep where each key comes from."""
    for name, value in layer.items():
        key = "from" if name == "from_" else name
        before = merged.get(key)
        if key == "data" and isinstance(value, Mapping):
            value = one_name(value)
            where |= {f"data.{part}": source for part in value}
            merged[key] = {**(before if isinstance(before, Mapping) else {}), **value}
        elif key == "ingredients" and key in merged:
            merged[key] = merged_ingredients(before, value)
        else:
            merged[key] = value
        where[key] = source


def _texts(value: Any) -> Iterator[str]:
    """Every text and path in a value."""
    if isinstance(value, (str, Path)):
        yield str(value)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts([key, each])


def _read_toml(path: Path) -> dict[str, Any]:
    """The keys of a file, with its relative paths made absolute."""
    values = read_toml(path, SpecError)
    folder = path.resolve().parent
    for key in ("models", "base", "class_map", "unlabelled", "cache", "out"):
        if isinstance(values.get(key), str):
            values[key] = folder / values[key]
    if isinstance(values.get("select"), dict):
        values["select"] = {name: _in_folder(folder, value) for name, value in values["select"].items()}
    for key, endings in (("model", (".json",)), ("groups", (".toml",)), ("start", (".json", ".safetensors"))):
        if isinstance(values.get(key), str) and values[key].endswith(endings):
            values[key] = str(folder / values[key])
    data = values.get("data")
    if isinstance(data, dict):
        for key in ("search", "validation"):
            if isinstance(data.get(key), str):
                data[key] = _place_of(folder, data[key])
        if isinstance(data.get("test"), dict):
            data["test"] = {
                name: _place_of(folder, value) if isinstance(value, str) else value
                for name, value in data["test"].items()
            }
    return values


def _place_of(folder: Path, text: str) -> Path:
    """A file or folder of samples, relative to a folder; the import path of a user's own objective stays as it is."""
    return Path(text) if is_import_path(text) else folder / text


def _in_folder(folder: Path, value: Any) -> Any:
    """FILE:WEIGHT, or a list of the two, with the file in a folder; what is neither stays, to be refused."""
    if isinstance(value, str):
        return str(folder / value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [folder / value[0], *value[1:]]
    return value


def _problem(detail: Mapping[str, Any], where: Mapping[str, str]) -> str:
    place = short(".".join(str(part) for part in detail["loc"]))
    key = str(detail["loc"][0]) if detail["loc"] else ""
    source = where.get(".".join(str(part) for part in detail["loc"][:2]), where.get(key, ""))
    flags = {option.key: option.flag for option in described(StudySpec)}
    head = f"{source}: {place}" if source else flags.get(place, f"--{place.replace('_', '-')}")
    if detail["type"] == "extra_forbidden":
        known = {name.partition(".")[0] for name in flags}
        if len(detail["loc"]) > 1:
            known = {"search", *(name.partition(".")[2] for name in flags if name.startswith(f"{key}."))}
        return f"{head}: " + unknown("key", str(detail["loc"][-1]), known)
    message = str(detail["msg"]).removeprefix("Value error, ").replace("valid tuple", "list of texts")
    message = message.replace("valid dictionary or instance of DataSpec", "table, [data] with the key search")
    value = detail.get("input")
    has_value = isinstance(value, (dict, list)) or message.startswith("unknown") or "(found " in message
    shown = "" if has_value else f" (found {short(repr(value))})"
    return f"{head}: {message[0].lower()}{message[1:]}{shown}"
