"""StudySpec: everything a run depends on, validated together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationInfo, field_validator, model_validator

from mixopt.imports import is_import_path
from mixopt.spec import checks
from mixopt.spec.checks import AUTO, FAMILIES, known
from mixopt.spec.worker_options import WorkerFields
from mixopt.values.metrics import METRICS, find_metric
from mixopt.values.samples import SYNTHETIC, UNLABELLED, VALIDATION

SAMPLERS = (AUTO, "surface", "cmaes", "nsgaii", "tpe", "gp", "random")
STARTS = ("best", "individual", "uniform", "greedy", "learned")
# What a preset sets where nothing else does.
PRESETS: dict[str, dict[str, Any]] = {"fast": {"trials": 30}, "default": {}, "thorough": {"trials": 1000}}
DTYPES = ("ingredients", "fp32", "fp16", "bf16")


class StudySpec(WorkerFields):
    """Everything a run depends on. Every field is a key of the TOML files and a flag.

    The fields, and what each of them is, stand in `mixopt.spec.options` and the modules beside it; ``mixopt guide
    options`` lists them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @property
    def folder(self) -> Path:
        """The run folder: ``out``, or ``runs/<pool folder name>``."""
        return self.out or Path("runs") / self.models.resolve().name

    @property
    def ingredient_patterns(self) -> tuple[str, ...]:
        """Globs of the ingredients' files in the pool's folder; every checkpoint there but the base without any."""
        return checks.split_ingredients(self.ingredients)[0]

    @property
    def ingredient_count(self) -> checks.Count:
        """Over how many of the ingredients to search, or ``auto``; None where the run chooses."""
        return checks.split_ingredients(self.ingredients)[1]

    @property
    def sampler_name(self) -> str:
        """The sampler, with ``auto`` settled."""
        if self.sampler != AUTO:
            return self.sampler
        if self.pareto:
            return "nsgaii"
        # A surface has one round, and is fitted to logits, which a user's own function does not give.
        steer = (self.data.validation, *(path for path, _ in self.select.values()))
        return "cmaes" if self.refine is not None or any(is_import_path(str(path)) for path in steer) else "surface"

    @property
    def steering(self) -> dict[str, float]:
        """What each split that steers a search beside the validation split weighs, which has the rest."""
        found = {name: weight for name, (_, weight) in self.select.items()}
        return found if self.shifts == "none" else {**found, SYNTHETIC: checks.shift_weight(self.shifts)}

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        return {**PRESETS.get(str(values.get("preset")), {}), **values} if isinstance(values, dict) else values

    @field_validator("select")
    @classmethod
    def _usable_select(
        cls, value: dict[str, tuple[Path, float]], info: ValidationInfo
    ) -> dict[str, tuple[Path, float]]:
        if taken := {"search", VALIDATION, SYNTHETIC, UNLABELLED} & value.keys():
            raise ValueError(f"a split cannot be called {min(taken)!r} here; that is the name of another one")
        if both := [name for name in value if name in getattr(info.data.get("data"), "test", {})]:
            raise ValueError(f"{both[0]} is a test split too; what steers cannot also test")
        checks.check_weights([checks.weight_of(weight) for _, weight in value.values()])
        return value

    @field_validator("shifts")
    @classmethod
    def _usable_shifts(cls, value: str, info: ValidationInfo) -> str:
        if value == "none":
            return value
        if SYNTHETIC in getattr(info.data.get("data"), "test", {}):
            raise ValueError(f"a test split is called {SYNTHETIC} already; give that another name")
        others = [weight for _, weight in info.data.get("select", {}).values()]
        checks.check_weights([*others, checks.shift_weight(value)])
        return value

    @field_validator("unlabelled")
    @classmethod
    def _usable_unlabelled(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None:
            return value
        if is_import_path(str(value)):
            raise ValueError("expected a file or folder of samples, not a function")
        if info.data.get("robust") == "off":
            raise ValueError("judges the last step for shifts, which robust (off) leaves out; leave out one of them")
        select, shifts = info.data.get("select", {}), info.data.get("shifts", "none")
        if select or shifts != "none":
            raise ValueError(
                "judges the last step for shifts, which there is none of where other splits steer; leave out this or "
                f"{'select' if select else 'shifts'}"
            )
        if UNLABELLED in getattr(info.data.get("data"), "test", {}):
            raise ValueError(f"a test split is called {UNLABELLED} already; give that another name")
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

    @field_validator("scheduler")
    @classmethod
    def _own_workers(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("workers") is not None:
            raise ValueError("a cluster has the workers that were started there; leave out this or workers")
        return value

    @field_validator("mixed_devices")
    @classmethod
    def _of_a_cluster(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("scheduler") is None:
            raise ValueError("is about the workers of a scheduler, and there is none; leave out this or add scheduler")
        return value

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str, info: ValidationInfo) -> str:
        # A user's own objective names its numbers itself.
        validation = getattr(info.data.get("data"), "validation", None)
        is_known = is_import_path(str(validation)) or find_metric(value)
        return value if is_known else known("metric", value, METRICS, ", or top and any number")

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, value: str) -> str:
        return value if ":" in value else known("sampler", value, SAMPLERS, ", or package.module:Class")

    @field_validator("family")
    @classmethod
    def _known_family(cls, value: str) -> str:
        return value if ":" in value else known("family", value, (AUTO, *FAMILIES), ", or package.module:function")

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        return known("dtype", value, DTYPES)

    @field_validator("start")
    @classmethod
    def _known_start(cls, value: str, info: ValidationInfo) -> str:
        # With other mixes as columns, one of them may be the start: checked once their names are known.
        if info.data.get("from_") or value.endswith((".json", ".safetensors")):
            return value
        return known("start", value, STARTS, ", or a recipe.json")
