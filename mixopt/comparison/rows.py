"""The rows of a comparison: which methods run, with which options, on which mixes, and what each of them chose."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

import torch
from pydantic import TypeAdapter, ValidationError

from mixopt.comparison.ensembles import ENSEMBLES, Ensemble
from mixopt.errors import MixoptError, RunError, ScoreError, SpecError, listing, names, unknown
from mixopt.listener import Listener
from mixopt.methods import Choice, arguments_of, method, method_names, options_of
from mixopt.methods.individual import ranking
from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Tally
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix, one_hot
from mixopt.weights.memory import peak_memory

BASE = "base"
IMAGES_TOLD = 1000
# The one way to be the best individual has a second name.
_SAME = {"individual:best": "individual"}


@dataclass(frozen=True)
class Request:
    """A row that is wanted.

    Attributes:
        name: The row's name: the method, and its variant after a colon.
        method: A file of `mixopt.methods`, or an ensemble.
        options: Keyword arguments of the method.
        sources: Names of rows (or checkpoints) whose mixes are the columns; the ingredients where there are none.
        top: Only so many columns, the best on the selection split.
        seed: In place of the run's.
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    top: int | None = None
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Entry:
    """What became of a request.

    Attributes:
        request: The request.
        choice: What the method chose, or the ensemble; None where it failed.
        tally: All that it takes to come to the choice from nothing, its sources' share included.
        peak_memory: Bytes at its highest; None where nothing was computed or the system does not tell.
        error: Why it failed.
    """

    request: Request
    choice: Choice | Ensemble | None
    tally: Tally
    peak_memory: int | None = None
    error: MixoptError | None = None

    @property
    def mix(self) -> Mix | None:
        """The mix; None for an ensemble and for a failure."""
        return self.choice.mix if isinstance(self.choice, Choice) else None


def default_rows(ingredients: int) -> tuple[str, ...]:
    """Every published recipe, in the order of the table, for a pool of so many ingredients."""
    half = ingredients // 2
    best_half = (f"uniform:top={half}",) if half >= 2 else ()
    return (
        "individual", "uniform", *best_half, "greedy", "greedy:random",
        "wise_ft:alpha=0.5", "wise_ft", "wise_ft:uniform", "wise_ft:greedy",
        "model_stock", "model_stock:top=2",
        "learned", "learned:affine", "learned_by_layer", "learned_by_layer:affine",
        "learned_by_layer:affine:groups=block",
        "manifold", "lines", "lines:greedy", "task_arithmetic", "trajectory", "trajectory:ema",
        "ensemble", "greedy_ensemble",
    )  # fmt: skip


def soups_of_soups() -> tuple[str, ...]:
    """The methods that mix other methods' mixes unless told otherwise."""
    return ("individual", "uniform", "greedy", "learned:affine", "learned_by_layer:affine:groups=block")


def requests_of(
    texts: Sequence[str],
    checkpoints: Sequence[str],
    sources: Sequence[str] = (),
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Request]:
    """What a user asked for, with every row that another needs, in an order in which they can run.

    Args:
        texts: Rows, ``method`` or ``method:part:part``, where a part is an option's value (``greedy:random``), an
            option (``wise_ft:alpha=0.5``, sweeps as ``alphas=0/0.5/1``), ``top=k``, ``seed=n``, or the rows and
            checkpoints to mix (``wise_ft:greedy``, ``greedy:uniform+wise_ft``).
        checkpoints: Names of the pool's columns.
        sources: Rows whose mixes all methods take as columns, but for those that name their own.
        defaults: Method to option to the value it has where a row does not say.

    Raises:
        SpecError: Everything that is wrong with the texts.
    """
    found: dict[str, Request] = {}
    problems: list[str] = []

    def add_source(text: str) -> str:
        head = text.split(":")[0]
        known = [*method_names(), *checkpoints]
        if head in ENSEMBLES:
            raise SpecError("an ensemble is no mix; name rows that choose one")
        if head not in known:
            raise SpecError(unknown("row or checkpoint", head, known))
        return add(text, ())

    def add(text: str, columns: Sequence[str]) -> str:
        request = parse(text, checkpoints, columns, defaults or {})
        for source in request.sources:
            if source not in checkpoints and source not in found:
                add(source, ())
        found.setdefault(request.name, request)
        return request.name

    named = []
    for text in sources:
        try:
            named.append(text if text in checkpoints else add_source(text))
        except SpecError as error:
            problems.append(f"--from {text}: {error}")
    if clash := [name for name in checkpoints if name in (*method_names(), *ENSEMBLES)]:
        problems.append(f"{names(clash)}: a checkpoint is called like a method; rename its file")
    if len(set(named)) < len(named):
        problems.append(f"--from: a row stands there twice: {names(named, 10)}")
    for text in texts:
        try:
            add(text, named)
        except SpecError as error:
            problems.append(f"--methods {text}: {error}")
    if problems:
        raise SpecError(listing("these rows cannot be made", problems))
    return found


def source_names(
    sources: Sequence[str], checkpoints: Sequence[str], defaults: Mapping[str, Mapping[str, Any]]
) -> tuple[str, ...]:
    """The names of the rows and checkpoints that ``--from`` lists."""
    return tuple(text if text in checkpoints else parse(text, checkpoints, (), defaults).name for text in sources)


def parse(
    text: str, checkpoints: Sequence[str], sources: Sequence[str], defaults: Mapping[str, Mapping[str, Any]]
) -> Request:
    """One row's text; see `requests_of`.

    Raises:
        SpecError: An unknown method, option or row, or a value that an option cannot have.
    """
    head, *parts = _SAME.get(text, text).split(":")
    known = {**dict.fromkeys(method_names()), **dict.fromkeys(ENSEMBLES)}
    if head not in known:
        raise SpecError(unknown("method", head, known))
    signature = options_of(_function(head))
    # A row that says what holds anyway is the same row.
    usual = {**{name: default for name, (_, default) in signature.items()}, **defaults.get(head, {})}
    options: dict[str, Any] = {}
    columns: tuple[str, ...] = ()
    numbers: dict[str, int] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        literal = next((key for key, (hint, _) in signature.items() if part in _literals(hint)), None)
        if equals and name in ("top", "seed"):
            numbers[name] = _number(name, value, 1 if name == "top" else 0)
        elif equals and name in signature:
            options[name] = _value(name, signature[name][0], value)
        elif equals:
            raise SpecError(unknown("option", name, [*signature, "top", "seed"]))
        elif literal is not None:
            options[literal] = part
        elif part in signature:
            raise SpecError(f"option {part} needs a value: {part}=...")
        elif columns:
            raise SpecError(f"two parts name what to mix, {'+'.join(columns)} and {part}; join them with +")
        else:
            columns = _sources(part, checkpoints, known, signature)
    changed = {name: value for name, value in options.items() if value != usual[name]}
    wanted = columns or tuple(sources)
    shown = [
        "+".join(f"({name})" if ":" in name else name for name in wanted),
        *(_shown(name, changed[name], signature[name][0]) for name in signature if name in changed),
        *(f"{name}={number}" for name, number in numbers.items()),
    ]
    return Request(
        name=":".join([head, *(part for part in shown if part)]),
        method=head,
        options={**defaults.get(head, {}), **options},
        sources=wanted,
        top=numbers.get("top"),
        seed=numbers.get("seed"),
    )


def run_requests(
    objective: Objective,
    requests: Mapping[str, Request],
    *,
    seed: int,
    device: torch.device,
    listener: Listener,
    on_score: Callable[[str], None] | None = None,
) -> dict[str, Entry]:
    """Let every method choose; one that fails leaves its reason, and the others still run.

    Args:
        objective: Scores; each method counts on a tally of its own.
        requests: In an order in which sources come first.
        seed: The run's.
        device: Whose memory is watched.
        listener: Told about progress and failures.
        on_score: Told the content key of every mix scored on the selection split.

    Raises:
        RunError: The cache cannot be written.
    """
    found: dict[str, Entry] = {}
    for number, request in enumerate(requests.values()):
        on_batch = _progress_of(request.name, number, len(requests), listener)
        found[request.name] = entry = _run(objective.counting(on_score, on_batch), request, found, seed, device)
        if entry.error is not None:
            listener.warn(f"{request.name} failed: {entry.error}")
    listener.progress("methods", len(requests), len(requests))
    return found


def _progress_of(name: str, number: int, total: int, listener: Listener) -> Callable[[int], None]:
    """What a method's batches are told: how many images it has seen, and which row of how many it is."""
    listener.progress(name, number, total)
    images = 0

    def on_batch(count: int) -> None:
        nonlocal images
        if images // IMAGES_TOLD != (images + count) // IMAGES_TOLD:
            listener.progress(f"{name}, {images + count:,} images", number, total)
        images += count

    return on_batch


def _run(objective: Objective, request: Request, found: Mapping[str, Entry], seed: int, device: torch.device) -> Entry:
    try:
        with peak_memory(device) as peak:
            started = time.perf_counter()
            columns, before = _columns(objective, request, found)
            choose = _function(request.method)
            own_seed = seed if request.seed is None else request.seed
            choice = choose(objective, columns, seed=own_seed, **arguments_of(choose, request.options))
            own = time.perf_counter() - started - objective.tally.spent
            highest = peak()
    except RunError:
        raise
    except MixoptError as error:
        return Entry(request, None, objective.tally, error=error)
    except (torch.OutOfMemoryError, MemoryError) as error:
        told = ScoreError(f"out of memory ({error}); use a smaller --batch-size, or batch=N for what learns")
        return Entry(request, None, objective.tally, error=told)
    tally = objective.tally
    tally.own[request.name] = max(0.0, own)
    fresh = tally.computed > 0 or not (tally.asked or tally.learned)
    return Entry(request, choice, before.merged(tally), highest if fresh else None)


def _columns(objective: Objective, request: Request, found: Mapping[str, Entry]) -> tuple[dict[str, Mix], Tally]:
    """The mixes that a request works on, and what it took to come to them."""
    columns = ingredient_mixes(objective)
    tally = Tally()
    if request.sources:
        columns = {}
        for name in request.sources:
            if name in objective.pool.columns:
                columns[name] = checkpoint_mix(objective, name)
                continue
            entry = found[name]
            if entry.mix is None:
                raise MixoptError(f"it needs the mix of {name}, which {_why_none(entry)}")
            columns[name] = entry.mix
            tally = tally.merged(entry.tally)
    if request.top is not None:
        if request.top > len(columns):
            raise SpecError(f"top={request.top}: there are only {len(columns)} to choose from: {names(columns)}")
        best = [name for name, _ in ranking(objective, columns)[: request.top]]
        columns = {name: columns[name] for name in best}
    return columns, tally


def ingredient_mixes(objective: Objective) -> dict[str, Mix]:
    """Every ingredient alone, as a one-row mix."""
    return {name: checkpoint_mix(objective, name) for name in objective.pool.ingredients}


def checkpoint_mix(objective: Objective, name: str) -> Mix:
    """One column of the pool alone, as a one-row mix."""
    return one_hot(make_groups("whole", objective.pool.sizes), objective.pool.columns, name)


def _why_none(entry: Entry) -> str:
    return "failed" if entry.error is not None else "is an ensemble and no mix"


def _function(name: str) -> Callable[..., Any]:
    return ENSEMBLES[name] if name in ENSEMBLES else method(name)


def _literals(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) is Literal else ()


def _value(name: str, hint: Any, text: str) -> Any:
    adapter = TypeAdapter(hint)
    try:
        if get_origin(hint) is tuple:
            return adapter.validate_python(text.split("/"))
        return adapter.validate_strings(text)
    except ValidationError as error:
        details = error.errors()
        wanted = details[0]["msg"].removeprefix("Input should be ")
        raise SpecError(f"{name}={text}: expected {wanted}") from error


def _number(name: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise SpecError(f"{name}={text}: expected a whole number, {least} or more")
    return int(text)


def _sources(
    part: str, checkpoints: Sequence[str], methods: Mapping[str, Any], options: Mapping[str, tuple[Any, Any]]
) -> tuple[str, ...]:
    """The rows and checkpoints that a part names."""
    wanted = tuple(part.split("+"))
    for name in wanted:
        if name not in checkpoints and name not in methods:
            values = [str(value) for hint, _ in options.values() for value in _literals(hint)]
            raise SpecError(unknown("option, row or checkpoint", name, [*values, *options, *methods, *checkpoints]))
    if len(set(wanted)) < len(wanted):
        raise SpecError(f"{part}: a row stands there twice")
    return wanted


def _shown(name: str, value: Any, hint: Any) -> str:
    """An option as it stands in a row's name."""
    if value in _literals(hint):
        return str(value)
    text = "/".join(map(_plain, value)) if isinstance(value, tuple) else _plain(value)
    return f"{name}={text}"


def _plain(value: Any) -> str:
    """A value as a user writes it: 2 for 2.0, true for True."""
    short = f"{value:g}" if isinstance(value, float) else ""
    return short if short and float(short) == value else str(value).lower() if isinstance(value, bool) else str(value)
