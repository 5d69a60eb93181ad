"""Every kind of file that mixopt reads: an example of it, how to damage it, and what mixopt makes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

import mixopt
from mixopt import Listener, Objective, Simplex
from mixopt import study as studies
from mixopt.data import class_map, open_split
from mixopt.data.shifts import open_shifted
from mixopt.errors import PoolError
from mixopt.families import FamilyOptions
from mixopt.families.custom import Custom
from mixopt.runs.folder import RunFolder
from mixopt.scoring import choose_precision as precisions
from mixopt.scoring.outcomes import Outcomes
from mixopt.scoring.score import Score
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.values.groups import Groups, make_groups
from mixopt.values.metrics import METRICS
from mixopt.values.mix import Mix, constant, one_hot
from mixopt.values.samples import Samples
from mixopt.weights import checkpoints
from mixopt.weights.pool import open_pool
from tests.faults import box, formats, pickles, tables, trees
from tests.faults import studies as storages
from tests.faults.families import ENCODING
from tests.faults.mutations import BYTES, PLACES, Mutation
from tests.unhurried import Unhurried

SIZES = {f"layers.{number}.{part}": 4 for number in (0, 2) for part in ("weight", "bias")}
COLUMNS = ("a", "b", "c", "d")
GROUPS = Groups((("lower", ("one",)), ("upper", ("two",))))
SPACE = Simplex(constant(GROUPS, COLUMNS, np.full(4, 0.25)), COLUMNS, 0.5)
IDENTITY = {"metric": "accuracy"}
SILENT = Listener()


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: Its name.
        target: A glob of its examples in the box.
        own: Ways to damage it beside those that fit any file.
        read: What mixopt makes of it, as a value that can be compared.
        command: The same through the command line; empty where no command reads it on every machine.
        carries_checksum: Whether damage must show: any other result is then wrong.
        command_target: The example that the command reads, where it is another one.
    """

    name: str
    target: str
    own: tuple[Mutation, ...]
    read: Callable[[Listener], Any]
    command: tuple[str, ...]
    carries_checksum: bool = False
    command_target: str = ""

    @property
    def mutations(self) -> tuple[Mutation, ...]:
        """Every way to damage it."""
        return (*BYTES, *PLACES, *self.own)


def digest(content: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(content).tobytes()).hexdigest()[:16]


def pool_reader(folder: str) -> Callable[[Listener], Any]:
    def read(listener: Listener) -> Any:
        files = checkpoints.find(Path(folder))
        pool = open_pool(dict(zip(checkpoints.names_of(files, Path(folder)), files, strict=True)))
        return pool.columns, sorted(pool.fingerprints.items()), digest(pool.stack), sorted(pool.tied.items())

    return read


def read_pool_toml(listener: Listener) -> Any:
    spec = mixopt.load_spec({"models": "pool", **box.OPTIONS})
    found = mixopt.inspect("pool", listener=listener, **box.OPTIONS)
    if found["problems"]:
        raise PoolError("\n".join(found["problems"]))
    return repr(spec), found


def read_study_toml(listener: Listener) -> Any:
    return repr(mixopt.load_spec({}, Path("study.toml")))


def read_groups(listener: Listener) -> Any:
    return make_groups("groups.toml", SIZES).as_dict()


def builder(recipe: str, **options: Any) -> Callable[[Listener], Any]:
    def read(listener: Listener) -> Any:
        made = mixopt.build(recipe, "made.safetensors", listener=listener, **options)
        return checkpoints.content_hash(checkpoints.hash_tensors(checkpoints.read(made).tensors))

    return read


def read_run_toml(listener: Listener) -> Any:
    folder = RunFolder(Path("run"))
    resolved = folder.resolved(mixopt.load_spec({"models": "pool", "stack": "auto"}))
    return resolved.stack, builder("run/recipe.json")(listener)


def read_model(listener: Listener) -> Any:
    data = {"search": Path("clip/val.npz")}
    options: dict[str, Any] = {"cache": Path("cache"), "device": "cpu"}
    return mixopt.evaluate("cliprun/model.safetensors", data=data, verify=True, listener=listener, **options)


def read_config(listener: Listener) -> Any:
    data = {"search": Path("clip/val.npz")}
    options: dict[str, Any] = {"models": "clip", "cache": Path("cache"), "device": "cpu"}
    return mixopt.evaluate("clip/model_0.safetensors", data=data, listener=listener, **options)


def read_report(listener: Listener) -> Any:
    from mixopt.reporting.tables import table

    found = mixopt.report("run", listener=listener)
    return found.to_json(), table(found), RunFolder(Path("run")).holds()


def read_page(listener: Listener) -> Any:
    found = mixopt.report("run", html="page.html", listener=listener)
    return found.to_json()


class Near(Unhurried):
    """Scores a mix by its distance from a point: a stand-in for `mixopt.Objective`."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()
        self.samples = 3
        self.metric = self.signal = METRICS["accuracy"]
        self.weights: dict[str, float] = {}
        self.recalled: list[tuple[Any, int, float]] = []

    def score(self, mix: Mix) -> Score:
        value = 1 - float(np.sum((mix.coefficients - [0.7, 0.1, 0.2, 0.0]) ** 2))
        seen = Outcomes(np.zeros(0, np.int64), np.zeros(0))
        return Score(value, {"accuracy": value}, seen, 0.25, cached=True, signal=value)

    def recall(self, mix: Mix, images: int, seconds: float) -> None:
        self.recalled.append((mix.coefficients.tolist(), images, seconds))


def resume(journal: Path, url: str | None, trials: int) -> Any:
    """A study brought to so many trials, as a search does it, and all that is read of it afterwards."""
    with studies.storage_errors(journal, url):
        return _resumed(journal, url, trials)


def _resumed(journal: Path, url: str | None, trials: int) -> Any:
    near = Near()
    study = studies.open_study(
        studies.open_storage(journal, url, near.stopwatch), "near", "maximize", metric="accuracy"
    )
    studies.check_identity(study, IDENTITY, journal.parent, ["maximize"])
    space = studies.keep_space(study, IDENTITY, lambda: SPACE)
    objective = cast(Objective, near)
    schedule = studies.Schedule("cmaes", trials, seed=5, population=4)
    studies.run_trials(study, objective, space, schedule)
    studies.recall_trials(study, objective, space)
    best = {number: mix.coefficients.tolist() for number, mix in studies.best_mixes(study, space, 3).items()}
    kept = [(trial.number, trial.state.name, trial.values, trial.params) for trial in study.trials]
    return kept, best, near.recalled, studies.race_counts(study, 3), studies.count_states(study)


def read_journal(listener: Listener) -> Any:
    return studies.read_trials(Path("near/study.journal")), resume(Path("near/study.journal"), None, 14)


def read_database(listener: Listener) -> Any:
    return resume(Path("near.db"), "sqlite:///near.db", 14)


def samples_in(split: Samples) -> Any:
    arrays = {name: digest(array) for name, array in split.arrays.items()}
    return split.fingerprint, arrays, split.labels.tolist(), split.classes


def _images(path: str, cache: str, listener: Listener) -> Samples:
    family = Custom(FamilyOptions("tests.tiny_family:with_preprocess", None, box.CLASSES, None, Path()))
    return open_split(Path(path), "val", family.encoding, classnames=box.CLASSES, cache=Path(cache), listener=listener)


def read_npz(listener: Listener) -> Any:
    return samples_in(_images("pool/val.npz", "cache", listener))


def read_folder(listener: Listener) -> Any:
    return samples_in(_images("images", "cache", listener))


def _texts(cache: str, listener: Listener) -> Any:
    path = Path("texts/val.jsonl")
    return samples_in(open_split(path, "val", ENCODING, classnames=box.WORDS, cache=Path(cache), listener=listener))


def read_jsonl(listener: Listener) -> Any:
    return _texts("cache", listener)


def read_csv(listener: Listener) -> Any:
    path = Path("tables/val.csv")
    return samples_in(open_split(path, "val", ENCODING, classnames=box.WORDS, cache=Path("cache"), listener=listener))


def table_reader(path: str) -> Callable[[Listener], Any]:
    def read(listener: Listener) -> Any:
        return samples_in(_images(path, "cache", listener))

    return read


def read_class_map(listener: Listener) -> Any:
    return class_map.read_class_map(Path("tables/codes.json"))


def read_images_again(listener: Listener = SILENT) -> Any:
    return samples_in(_images("pool/val.npz", "cache_images", listener))


def read_texts_again(listener: Listener = SILENT) -> Any:
    return _texts("cache_texts", listener)


def read_shifted(listener: Listener = SILENT) -> Any:
    # The split itself lies in another folder.
    split = _images("pool/val.npz", "cache_images", listener)
    return samples_in(open_shifted(split, "shifted", Path("cache_shifted"), listener))


def read_objective(listener: Listener = SILENT) -> Any:
    objective = mixopt.open_objective(mixopt.load_spec({"models": "pool", **box.OPTIONS}), listener)
    pool = objective.pool
    groups = make_groups("whole", pool.sizes)
    mixes = [
        *(one_hot(groups, pool.columns, name) for name in pool.columns),
        constant(groups, pool.columns, [1 / 3] * 3),
    ]
    scores = [objective.score(mix, split) for mix in mixes for split in ("validation", "test")]
    gradient = objective.gradient(mixes[-1], np.arange(10))
    return (
        [
            (score.value, digest(score.outcomes.losses), digest(score.outcomes.predicted), _logits(score.outcomes))
            for score in scores
        ],
        (gradient.loss, gradient.scale, gradient.coefficients.tolist()),
    )


def read_ledger(listener: Listener = SILENT) -> Any:
    """Which mixes are known, whatever is scored after that, and that all of those were scored."""
    cache = Path("cache_ledger")
    objective = mixopt.open_objective(mixopt.load_spec({"models": "pool", **box.OPTIONS, "cache": cache}), listener)
    known = {split: objective.scorer.known_mixes(split) for split in ("validation", "test")}
    for split, mixes in known.items():
        assert all(objective.score(mix, split).cached for mix in mixes)
    groups = make_groups("whole", objective.pool.sizes)
    for row in ([1.0, 0.0, 0.0], [0.25, 0.25, 0.5], [0.1, 0.2, 0.7]):
        for split in known:
            objective.score(constant(groups, objective.pool.columns, row), split)
    return {split: [mix.as_dict() for mix in mixes] for split, mixes in known.items()}


def _logits(outcomes: Outcomes) -> Any:
    return None if outcomes.logits is None else digest(outcomes.logits.values)


def precision_file() -> Path:
    """Where the measurement lies that `read_precision` finds."""
    return Path("cache_precision/precision") / f"{hashlib.sha256(b'machine').hexdigest()}.json"


def read_precision(listener: Listener) -> Any:
    found = precisions.read_measured(precision_file(), listener)
    # What cannot be read is measured again: with so few images, as fp32.
    return "fp32" if found is None else (precisions.Precision(found.precision, found).as_dict()["mode"], str(found))[0]


TINY = ("--models", "pool", "--device", "cpu", "--precision", "fp32")
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("safetensors", "pool/m1.safetensors", formats.SAFETENSORS, pool_reader("pool"), ("inspect", "pool")),
        Kind("index", "sharded/*.json", trees.JSON, pool_reader("sharded"), ("inspect", "sharded")),
        Kind("part", "sharded/m1-*.safetensors", formats.SAFETENSORS, pool_reader("sharded"), ("inspect", "sharded")),
        Kind("pickle", "pickled/m1.pt", pickles.ZIP * 2, pool_reader("pickled"), ("inspect", "pickled")),
        Kind(
            "trainer",
            "trainers/checkpoint-1.pth.tar",
            pickles.ZIP * 2,
            pool_reader("trainers"),
            ("inspect", "trainers"),
        ),
        Kind("bin_index", "steps/checkpoint-1/*.json", trees.JSON, pool_reader("steps"), ("inspect", "steps")),
        Kind("bin_part", "steps/checkpoint-1/*-00001-*.bin", pickles.ZIP, pool_reader("steps"), ("inspect", "steps")),
        Kind("legacy_pickle", "legacy/m1.pth", pickles.LEGACY * 2, pool_reader("legacy"), ("inspect", "legacy")),
        Kind("pool_toml", "pool/pool.toml", trees.TOML, read_pool_toml, ("inspect", "pool", "--cache", "cache")),
        Kind(
            "study_toml",
            "study.toml",
            trees.TOML,
            read_study_toml,
            ("compare", "--study", "study.toml", "--methods", "uniform", "--out", "made"),
        ),
        Kind("groups", "groups.toml", trees.TOML, read_groups, ("inspect", "pool", "--groups", "groups.toml")),
        Kind(
            "run_toml",
            "run/run.toml",
            trees.TOML,
            read_run_toml,
            ("build", "run/recipe.json", "-o", "made.safetensors"),
        ),
        Kind(
            "recipe",
            "run/recipe.json",
            trees.JSON,
            builder("run/recipe.json", models="pool"),
            ("build", "run/recipe.json", "--models", "pool", "-o", "made.safetensors"),
            carries_checksum=True,
        ),
        Kind(
            "recipe_in_model",
            "run/model.safetensors",
            formats.MODEL,
            builder("run/model.safetensors", models="pool"),
            ("build", "run/model.safetensors", "--models", "pool", "-o", "made.safetensors"),
            carries_checksum=True,
        ),
        Kind(
            "model",
            "cliprun/model.safetensors",
            (*formats.MODEL, formats.MODEL[-1]),
            read_model,
            ("evaluate", "cliprun/model.safetensors", "--data", "clip/val.npz", "--verify", "--cache", "cache"),
            carries_checksum=True,
        ),
        Kind(
            "batchnorm",
            "bnrun/batchnorm.safetensors",
            formats.SAFETENSORS,
            builder("bnrun/recipe.json", models="bnpool"),
            ("build", "bnrun/recipe.json", "--models", "bnpool", "-o", "made.safetensors"),
            carries_checksum=True,
        ),
        Kind(
            "clip_config",
            "clip/open_clip_config.json",
            trees.JSON,
            read_config,
            ("evaluate", "clip/model_0.safetensors", "--models", "clip", "--data", "clip/val.npz", "--cache", "cache"),
        ),
        Kind("report", "run/report.json", trees.JSON, read_report, ("report", "run"), carries_checksum=True),
        Kind(
            "report_page",
            "run/report.json",
            trees.JSON,
            read_page,
            ("report", "run", "--html", "page.html"),
            carries_checksum=True,
        ),
        Kind(
            "journal",
            "near/study.journal",
            storages.JOURNAL,
            read_journal,
            ("search", *TINY, "--out", "run", "--cache", "cache", "--trials", "14", "--start", "individual"),
            command_target="run/study.journal",
        ),
        Kind(
            "database",
            "near.db",
            storages.DATABASE,
            read_database,
            (
                "search",
                *TINY,
                "--out",
                "rundb",
                "--storage",
                "sqlite:///rundb.db",
                "--cache",
                "cache",
                "--trials",
                "14",
                "--start",
                "individual",
            ),
            command_target="rundb.db",
        ),
        Kind(
            "npz",
            "pool/val.npz",
            formats.NPZ * 2,
            read_npz,
            ("evaluate", "pool/m0.safetensors", "--models", "pool", "--data", "pool/val.npz", "--cache", "cache"),
        ),
        Kind(
            "jsonl",
            "texts/val.jsonl",
            trees.LINES,
            read_jsonl,
            ("evaluate", "texts/m0.safetensors", "--models", "texts", "--data", "texts/val.jsonl", "--cache", "cache"),
        ),
        *(
            Kind(
                f"image_{suffix}",
                f"images/*/*.{suffix}",
                formats.IMAGES,
                read_folder,
                ("evaluate", "pool/m0.safetensors", "--models", "pool", "--data", "images", "--cache", "cache"),
            )
            for suffix in box.IMAGE_SUFFIXES
        ),
        Kind(
            "csv",
            "tables/val.csv",
            tables.CSV,
            read_csv,
            ("evaluate", "texts/m0.safetensors", "--models", "texts", "--data", "tables/val.csv", "--cache", "cache"),
        ),
        *(
            Kind(
                name,
                target,
                own,
                table_reader(path),
                ("evaluate", "pool/m0.safetensors", "--models", "pool", "--data", path, "--cache", "cache"),
            )
            for name, target, path, own in (
                ("table_of_images", "tables/photos.tsv", "tables/photos.tsv", tables.CSV),
                ("parquet", "tables/val.parquet", "tables/val.parquet", tables.PARQUET * 2),
                ("arrow", "tables/saved/*.arrow", "tables/saved", tables.ARROW * 2),
                ("saved_dataset", "tables/saved/*.json", "tables/saved", trees.JSON),
                ("shard", "tables/val.tar", "tables/val.tar", tables.TAR * 2),
                ("idx", "tables/t10k-*", "tables/t10k-images-idx3-ubyte.gz", tables.IDX),
                ("cifar", "tables/test_batch.bin", "tables/test_batch.bin", ()),
            )
        ),
        Kind(
            "class_map",
            "tables/codes.json",
            trees.JSON,
            read_class_map,
            (
                "evaluate",
                "pool/m0.safetensors",
                "--models",
                "pool",
                "--data",
                "images",
                "--class-map",
                "tables/codes.json",
                "--cache",
                "cache",
            ),
        ),
        Kind(
            "outcomes",
            "cache/outcomes/*/*.npz",
            formats.NPZ,
            read_objective,
            ("compare", *TINY, "--methods", "uniform,greedy", "--cache", "cache", "--out", "made"),
            carries_checksum=True,
        ),
        Kind(
            "ledger",
            "cache_ledger/ledger/*/*.jsonl",
            trees.LINES,
            read_ledger,
            (),
        ),
        Kind(
            "gradients",
            "cache/gradients/*/*.npz",
            formats.NPZ,
            read_objective,
            ("compare", *TINY, "--methods", "learned", "--cache", "cache", "--out", "made"),
            carries_checksum=True,
        ),
        *(
            Kind(
                f"decoded_{called}",
                f"cache_{name}/splits/*/{file}",
                own,
                read,
                ("evaluate", "pool/m0.safetensors", "--models", "pool", "--data", "pool/val.npz", "--cache", "cache"),
                carries_checksum=True,
                command_target=f"cache/splits/*/{file.replace('*', 'images')}",
            )
            for called, name, file, own, read in (
                ("images", "images", "images.npy", formats.NPY, read_images_again),
                ("images_labels", "images", "labels.npz", formats.NPZ, read_images_again),
                ("texts", "texts", "*.npy", formats.NPY, read_texts_again),
                ("texts_labels", "texts", "labels.npz", formats.NPZ, read_texts_again),
                ("shifted", "shifted", "images.npy", formats.NPY, read_shifted),
            )
        ),
        Kind(
            "precision",
            "cache_precision/precision/*.json",
            trees.JSON,
            read_precision,
            (),
            carries_checksum=True,
        ),
    )
}
