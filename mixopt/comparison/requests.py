"""The rows of a comparison: which methods run, with which options, on which mixes, and what each of them chose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

from mixopt.comparison.ensembles import ENSEMBLES
from mixopt.errors import SpecError, listing, names, unknown
from mixopt.methods import method, method_names, options_of

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
        top: Only so many columns, the best on the validation split.
        seed: In place of the run's.
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    top: int | None = None
    seed: int | None = None


def default_rows(ingredients: int) -> tuple[str, ...]:
    """Every published recipe, in the order of the table, for a pool of so many ingredients."""
    half = ingredients // 2
    best_half = (f"uniform:top={half}",) if half >= 2 else ()
    return (
        "individual", "uniform", *best_half, "greedy", "greedy:random",
        "wise_ft:alpha=0.5", "wise_ft", "wise_ft:uniform", "wise_ft:greedy",
        "model_stock", "model_stock:top=2", "mono", "mono:greedy",
        "learned", "learned:affine", "learned_by_layer", "learned_by_layer:affine",
        "learned_by_layer:affine:groups=block",
        "manifold", "lines", "lines:greedy", "task_arithmetic", "trajectory", "trajectory:ema", "extrapolation",
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
    signature = options_of(function_of(head))
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


def function_of(name: str) -> Callable[..., Any]:
    """The function behind a method's or an ensemble's name."""
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
