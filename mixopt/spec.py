"""StudySpec: pool.toml, study.toml and flags, validated together, all problems at once."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from mixopt.errors import SpecError, listing, unknown
from mixopt.values.groups import SCHEMES
from mixopt.values.metrics import METRICS
from mixopt.values.samples import SYNTHETIC, VALIDATION

POOL_FILE = "pool.toml"
AUTO = "auto"
SAMPLERS = (AUTO, "cmaes", "nsgaii", "tpe", "gp", "random")
SPACES = ("simplex",)
STARTS = ("best", "individual", "uniform", "greedy", "learned")
SYNTHETIC_WEIGHT = 0.5
# What a preset sets where nothing else does.
PRESETS: dict[str, dict[str, Any]] = {"fast": {"trials": 30}, "default": {}, "thorough": {"trials": 1000}}
DTYPES = ("ingredients", "fp32", "fp16", "bf16")
# Flags that are not called like their field.
_FLAGS = {"data.validation": "data", "data.test": "test", "top": "ingredients", "sources": "from"}


class DataSpec(BaseModel):
    """Where the splits are.

    Attributes:
        validation: Selects: every choice is made on it. In TOML files ``search`` is the same key.
        test: Name to split; only reported.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    validation: Path | None = None
    test: dict[str, Path] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _one_key(cls, values: Any) -> Any:
        """``search`` is the key that pool.toml and study.toml have had from the beginning."""
        return _renamed(values) if isinstance(values, Mapping) else values

    @field_validator("test")
    @classmethod
    def _not_validation(cls, value: dict[str, Path]) -> dict[str, Path]:
        if taken := sorted({"search", VALIDATION} & value.keys()):
            raise ValueError(f"a test split cannot be called {taken[0]!r}; that is the selection split's name")
        return value


class StudySpec(BaseModel):
    """Everything a run depends on. Every field is a key of the TOML files and a flag.

    Attributes:
        models: The pool's folder.
        family: ``open_clip``, or ``package.module:function``.
        model: Architecture name or config file.
        base: The pretrained checkpoint; never an ingredient.
        ingredients: Globs in the pool's folder; every checkpoint there but the base by default.
        classnames: Class names in the order of the labels.
        templates: Prompts with ``{}`` for the class name.
        data: The splits.
        metric: Drives every choice.
        preset: ``fast`` (30 trials), ``default``, or ``thorough`` (1,000 trials); what else is given wins.
        trials: Complete trials in all, the start included.
        race: Whether a trial is given up once it will not reach the best so far.
        signal: What the sampler is told: the metric, or ``smooth``, the metric and the loss in one.
        sampler: ``cmaes``, ``tpe``, ``gp``, ``random``, ``package.module:Class``, with ``pareto`` alone ``nsgaii``, or
            ``auto``: ``cmaes``, or ``nsgaii`` with ``pareto``.
        population: Trials asked at a time; the sampler's own default without.
        groups: Layer groups, see `mixopt.values.groups.make_groups`; chosen to keep the dimensions few without.
        space: How a sampler's box becomes rows; ``auto`` is ``residual`` or, where columns or layer groups are given,
            ``simplex`` (``affine`` where the start has negative entries).
        radius: How far a coefficient is pushed at the edge of the box (``residual``: the part of the way to the other
            mix); by default 0.5, or 0.1 in the spaces ``affine``, ``shared`` and ``depth``.
        top: Search over the so many ingredients that rank first, or ``auto``: those that the gradient of the loss at
            the uniform soup says help; chosen by rank to keep the dimensions few without. On the command line and in
            TOML files, ``ingredients`` with a number or ``auto``.
        start: Where the search starts: the best baseline, one by name, or a recipe.
        greedy_rule: ``at-least`` (the paper's >=) or ``strict`` (the authors' code).
        methods: Rows of a comparison, each ``method`` or ``method:variant``; all of them without. A text with commas
            is a list.
        sources: Rows whose mixes take the place of the ingredients: soups of soups. On the command line and in TOML
            files, ``from``.
        select: Name to split and weight: more splits that steer a search's trials, beside the selection split, which
            has the rest of the weight.
        shifts: ``none``, or ``synthetic``: the selection images under synthetic shifts steer as well, with a weight
            of 0.5 or another one after a colon.
        pareto: Whether the sampler is told the signal on each split that steers rather than their weighted mean.
        refine: How many layer groups the second half of the trials moves: those that matter most at the best mix of
            the first half. One stage without.
        batchnorm: BatchNorm statistics of mixes: the ``average`` of the checkpoints', ``recompute`` from selection
            images, or ``auto``, the better of the two on the uniform soup.
        confirm: The share of the selection split, the last of the fixed order, that steers no method; the last choice
            is made by it. 0 steers by all.
        refit: Whether a start that the gradient learned is learned again, from all selection samples, once the last
            choice is made.
        limit: Use only the first so many images of the selection split.
        timeout: Stop asking for trials after so many seconds.
        seed: Of the samplers.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ...
        batch_size: Images per forward pass; chosen by device without.
        precision: Of forward passes: ``fp32``, ``bf16``, ``fp16``, or ``auto``, the fastest that was measured to agree
            with fp32.
        compile: Whether forward passes go through ``torch.compile``.
        stack: How checkpoints are kept while mixes are scored: ``fp32``, ``bf16`` (an fp32 centre and bf16 differences
            from it), or ``auto``, fp32 wherever that fits.
        dtype: Of the saved model: that of the ingredients, or one by name.
        cache: Decoded splits and outcomes.
        out: The run folder.
        storage: An Optuna storage URL in place of the run folder's journal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: Path
    family: str = "open_clip"
    model: str | None = None
    base: Path | None = None
    ingredients: tuple[str, ...] = ()
    classnames: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    data: DataSpec = Field(default_factory=DataSpec)
    metric: str = "accuracy"
    methods: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    preset: Literal["fast", "default", "thorough"] = "default"
    trials: Annotated[int, Field(ge=1)] = 200
    race: Literal["on", "off"] = "on"
    signal: Literal["metric", "smooth"] = "smooth"
    sampler: str = AUTO
    population: Annotated[int, Field(ge=2)] | None = None
    groups: str | None = None
    space: Literal["auto", "simplex", "affine", "shared", "depth", "residual"] = "auto"
    radius: Annotated[float, Field(gt=0, le=1)] | None = None
    top: int | Literal["auto"] | None = None
    start: str = "best"
    greedy_rule: Literal["at-least", "strict"] = "at-least"
    select: dict[str, tuple[Path, float]] = Field(default_factory=dict)
    shifts: str = "none"
    pareto: Annotated[bool, Field(validate_default=True)] = False
    refine: Annotated[int, Field(ge=1)] | None = None
    batchnorm: Literal["average", "recompute", "auto"] = "auto"
    confirm: Annotated[float, Field(ge=0, lt=1)] = 0.2
    refit: Literal["on", "off"] = "on"
    limit: Annotated[int, Field(ge=1)] | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    device: str = "auto"
    batch_size: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    stack: Literal["auto", "fp32", "bf16"] = "auto"
    dtype: str = "ingredients"
    cache: Path = Field(default_factory=lambda: default_cache())
    out: Path | None = None
    storage: str | None = None

    @property
    def folder(self) -> Path:
        """The run folder: ``out``, or ``runs/<pool folder name>``."""
        return self.out or Path("runs") / self.models.resolve().name

    @property
    def sampler_name(self) -> str:
        """The sampler, with ``auto`` settled."""
        return self.sampler if self.sampler != AUTO else "nsgaii" if self.pareto else "cmaes"

    @property
    def weights(self) -> dict[str, float]:
        """What each split that steers a search beside the selection split weighs, which has the rest."""
        found = {name: weight for name, (_, weight) in self.select.items()}
        return found if self.shifts == "none" else {**found, SYNTHETIC: _shift_weight(self.shifts)}

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        return {**PRESETS.get(str(values.get("preset")), {}), **values} if isinstance(values, dict) else values

    @field_validator("select", mode="before")
    @classmethod
    def _file_and_weight(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        found = {}
        for name, each in value.items():
            if isinstance(each, str):
                file, sign, text = each.rpartition(":")
                if not (file and sign):
                    raise ValueError(f"{name}: expected FILE:WEIGHT, such as {each}:0.3 (found {each!r})")
                each = (file, _weight(text))
            found[name] = each
        return found

    @field_validator("select")
    @classmethod
    def _usable_select(
        cls, value: dict[str, tuple[Path, float]], info: ValidationInfo
    ) -> dict[str, tuple[Path, float]]:
        if taken := {"search", VALIDATION, SYNTHETIC} & value.keys():
            raise ValueError(f"a split cannot be called {min(taken)!r} here; that is the name of another one")
        if both := [name for name in value if name in getattr(info.data.get("data"), "test", {})]:
            raise ValueError(f"{both[0]} is a test split too; what steers cannot also test")
        _check_weights([_weight(weight) for _, weight in value.values()])
        return value

    @field_validator("shifts")
    @classmethod
    def _usable_shifts(cls, value: str, info: ValidationInfo) -> str:
        if value == "none":
            return value
        if SYNTHETIC in getattr(info.data.get("data"), "test", {}):
            raise ValueError(f"a test split is called {SYNTHETIC} already; give that another name")
        _check_weights([*(weight for _, weight in info.data.get("select", {}).values()), _shift_weight(value)])
        return value

    @field_validator("pareto")
    @classmethod
    def _several_objectives(cls, value: bool, info: ValidationInfo) -> bool:
        sampler = info.data.get("sampler")
        if not value:
            if sampler == "nsgaii":
                raise ValueError("the sampler nsgaii is for several objectives; add pareto, or choose another sampler")
            return value
        if not info.data.get("select", True) and info.data.get("shifts", "none") == "none":
            raise ValueError(
                "one split alone has no front; add another that steers: --shifts synthetic, or --select "
                "NAME=FILE:WEIGHT"
            )
        if sampler == "cmaes":
            raise ValueError("cmaes takes one objective; leave the sampler out (nsgaii), or choose tpe, gp or random")
        return value

    @field_validator("refine")
    @classmethod
    def _one_objective(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("pareto"):
            raise ValueError("a second stage begins at one best mix, and a front has many; leave out this or pareto")
        return value

    @field_validator("groups", mode="before")
    @classmethod
    def _number_or_name(cls, value: Any) -> Any:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(text, str) and not text.isdigit() and not text.endswith(".toml") and text not in SCHEMES:
            more = ", a number of groups, or a .toml file of regular expressions"
            raise ValueError(unknown("group scheme", text, SCHEMES, more))
        return text

    @field_validator("methods", "sources", mode="before")
    @classmethod
    def _split_at_commas(cls, value: Any) -> Any:
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
            return value
        found = tuple(name.strip() for part in parts for name in part.split(",") if name.strip())
        if parts and not found:
            raise ValueError("expected at least one row")
        return found

    @field_validator("top")
    @classmethod
    def _two_or_auto(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 2:
            raise ValueError(f"expected 2 or more, or auto (found {value})")
        return value

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        return _known("metric", value, METRICS)

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        return value if ":" in value else _known("sampler", value, SAMPLERS, ", or package.module:Class")

    @field_validator("family")
    @classmethod
    def _known_family(cls, value: str) -> str:
        return value if ":" in value else _known("family", value, ("open_clip",), ", or package.module:function")

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        return _known("dtype", value, DTYPES)

    @field_validator("start")
    @classmethod
    def _known_start(cls, value: str, info: ValidationInfo) -> str:
        # With other mixes as columns, one of them may be the start: checked once their names are known.
        if info.data.get("sources") or value.endswith((".json", ".safetensors")):
            return value
        return _known("start", value, STARTS, ", or a recipe.json")


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/mixopt``, or ``~/.cache/mixopt``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "mixopt"


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
    if pool_file.is_file():
        layers.insert(0, (str(pool_file), _read_toml(pool_file)))
    layers.append(("", {**given, "models": models}))
    merged: dict[str, Any] = {}
    where: dict[str, str] = {}
    for source, layer in layers:
        if isinstance(layer.get("ingredients"), int) or layer.get("ingredients") == AUTO:
            layer["top"] = layer.pop("ingredients")
        if "from" in layer:
            layer["sources"] = layer.pop("from")
        for key, value in layer.items():
            before = merged.get(key)
            if key == "data" and isinstance(value, Mapping):
                value = _renamed(value)
                merged["data"] = {**(before if isinstance(before, Mapping) else {}), **value}
                where |= {f"data.{part}": source for part in value}
            else:
                merged[key] = value
            where[key] = source
    try:
        return StudySpec.model_validate(merged)
    except ValidationError as error:
        problems = [_problem(dict(detail), where) for detail in error.errors()]
        raise SpecError(listing("the options cannot be used", problems)) from error


def pool_template(models: Path, checkpoints: list[str]) -> str:
    """A pool.toml to fill in, from what lies in a folder."""
    base = next((name for name in checkpoints if "base" in name or "zeroshot" in name or "pretrained" in name), None)
    config = next((path.name for path in sorted(models.glob("*config*.json"))), "ViT-B-32")
    splits = [path.name for path in sorted(models.glob("*.npz"))]
    search = next((name for name in splits if "val" in name), splits[0] if splits else "val.npz")
    tests = [name for name in splits if name != search] or ["test.npz"]
    lines = [
        'family = "open_clip"  # or "package.module:function"',
        f'model = {json.dumps(config)}  # a config file here, or an architecture such as "ViT-B-32"',
        f"base = {json.dumps(base)}" if base else '# base = "base.safetensors"  # the pretrained checkpoint, if any',
        'classnames = ["...", "..."]  # in the order of the labels',
        'templates = ["a photo of a {}."]',
        "[data]",
        f"search = {json.dumps(search)}  # an .npz (x uint8 [n, h, w, 3], y integer [n]) or a folder of class folders",
        "[data.test]",
        *(f"{json.dumps(Path(name).stem)} = {json.dumps(name)}" for name in tests),
    ]
    return "\n".join(lines)


def _read_toml(path: Path) -> dict[str, Any]:
    """The keys of a file, with its relative paths made absolute."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not valid TOML ({error})") from error
    folder = path.resolve().parent
    for key in ("models", "base", "cache", "out"):
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
                data[key] = folder / data[key]
        if isinstance(data.get("test"), dict):
            data["test"] = {
                name: folder / value if isinstance(value, str) else value for name, value in data["test"].items()
            }
    return values


def _renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``[data]``, of which ``search`` is another name for ``validation``."""
    if {"search", VALIDATION} <= data.keys():
        raise SpecError("[data]: search and validation are two names of one key, the split that selects; leave one out")
    return {(VALIDATION if key == "search" else key): value for key, value in data.items()}


def _in_folder(folder: Path, value: Any) -> Any:
    """FILE:WEIGHT, or a list of the two, with the file in a folder; what is neither stays, to be refused."""
    if isinstance(value, str):
        return str(folder / value)
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [folder / value[0], *value[1:]]
    return value


def _problem(detail: Mapping[str, Any], where: Mapping[str, str]) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    key = str(detail["loc"][0]) if detail["loc"] else ""
    source = where.get(".".join(str(part) for part in detail["loc"][:2]), where.get(key, ""))
    named = _FLAGS.get(place, place) if key == "sources" else place
    head = f"{source}: {named}" if source else f"--{_FLAGS.get(place, place).replace('_', '-')}"
    if detail["type"] == "extra_forbidden":
        known = (
            ("search", *DataSpec.model_fields) if key == "data" and len(detail["loc"]) > 1 else StudySpec.model_fields
        )
        return f"{head}: " + unknown("key", str(detail["loc"][-1]), known)
    message = str(detail["msg"]).removeprefix("Value error, ").replace("valid tuple", "list of texts")
    message = message.replace("valid dictionary or instance of DataSpec", "table, [data] with the key search")
    value = detail.get("input")
    shown = "" if isinstance(value, (dict, list)) or message.startswith("unknown") else f" (found {value!r})"
    return f"{head}: {message[0].lower()}{message[1:]}{shown}"


def _shift_weight(shifts: str) -> float:
    """The weight in ``synthetic`` or ``synthetic:WEIGHT``."""
    name, sign, weight = shifts.partition(":")
    if name != SYNTHETIC or (sign and not weight):
        raise ValueError(f"expected none, {SYNTHETIC} or {SYNTHETIC}:WEIGHT")
    return _weight(weight) if sign else SYNTHETIC_WEIGHT


def _weight(value: str | float) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = 0.0
    if not 0 < weight < 1:
        raise ValueError(f"expected a weight above 0 and below 1 (found {value!r})")
    return weight


def _check_weights(weights: list[float]) -> None:
    if sum(weights) >= 1:
        shown = " + ".join(f"{weight:g}" for weight in weights)
        raise ValueError(f"the weights {shown} leave nothing for the selection split; their sum must be below 1")


def _known(kind: str, value: str, known: Any, more: str = "") -> str:
    if value not in known:
        raise ValueError(unknown(kind, value, known, more))
    return value
