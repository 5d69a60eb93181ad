"""The model card of a run: a README.md in the form of model hubs, beside the saved model."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

from mixopt.reporting import tables
from mixopt.reporting.schema import MadeRow, Report
from mixopt.values.recipe import Recipe
from mixopt.values.samples import VALIDATION

TAGS = ("model-soup", "weight-averaging", "mixopt")
# Hubs' names of tasks, by family; that of a family of the user's own is not known.
TASKS = {"open_clip": "zero-shot-image-classification", "clip_classifier": "image-classification"}
# What a hub calls a model: owner and name.
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
KEY_ROWS = ("base", "individual", "uniform", "greedy")


def model_card(report: Report, recipe: Recipe, name: str) -> str:
    """The card: metadata, what was mixed, the scores with their intervals, and how to get it again.

    The licence is left to the user: it is that of the checkpoints and their data.

    Args:
        report: Of the run.
        recipe: Of the saved model.
        name: What the run is called.
    """
    title = _plain(name)
    parts = [
        *_metadata(report, recipe, name),
        f"# {title}",
        "",
        *_what(report, recipe),
        "## Scores",
        "",
        *_scores(report),
        "",
        *_again(report, recipe),
    ]
    return "\n".join(parts) + "\n"


def _metadata(report: Report, recipe: Recipe, name: str) -> Iterator[str]:
    family = str(recipe.family["name"])
    yield "---"
    yield "# license: (that of the checkpoints and of the data they were trained on)"
    if ":" not in family:  # a function of the user's own is no library
        yield f"library_name: {_scalar(family)}"
    if recipe.base and HUB_NAME.fullmatch(recipe.base):
        yield f"base_model: {_scalar(recipe.base)}"
        yield "base_model_relation: merge"
    yield "tags:"
    yield from (f"- {tag}" for tag in TAGS)
    yield "metrics:"
    yield f"- {_scalar(report.metric)}"
    yield "model-index:"
    yield f"- name: {_scalar(name)}"
    known = {split: value for split, value in _saved(report).test.items() if math.isfinite(value)}
    yield "  results:" if known else "  results: []"
    for split, value in known.items():
        yield "  - task:"
        yield f"      type: {TASKS.get(family, 'other')}"
        yield "    dataset:"
        yield f"      name: {_scalar(split)}"
        yield f"      type: {_scalar(split)}"
        yield "    metrics:"
        yield f"    - type: {_scalar(report.metric_of(split))}"
        yield f"      value: {value:.6f}"
    yield "---"
    yield ""


def _what(report: Report, recipe: Recipe) -> Iterator[str]:
    used = [column for column in recipe.mix.support() if column != recipe.base]
    based = f", fine-tuned from {_code(recipe.base)}" if recipe.base else ""
    yield (
        f"One model whose weights are a mix of {len(used)} checkpoints{based}: same size, same cost to run as each of "
        f"them. Chosen by {_code(recipe.method)}, by {report.metric} on a validation split of "
        f"{report.splits[VALIDATION].samples:,} samples."
    )
    yield ""
    yield "| checkpoint | mean coefficient | content hash |"
    yield "|---|---|---|"
    means = dict(zip(recipe.mix.columns, recipe.mix.coefficients.mean(axis=0).tolist(), strict=True))
    for column in recipe.mix.support():
        mark = " (base)" if column == recipe.base else ""
        yield f"| {_plain(column)}{mark} | {means[column]:.4f} | `{recipe.ingredients[column][:12]}` |"
    yield ""
    rows = len(recipe.mix.groups)
    if rows > 1:
        yield f"Coefficients differ by layer group; all {rows} rows are in `recipe.json`."
    else:
        yield "The coefficients are the same for all layers; every digit is in `recipe.json`."
    yield ""


def _scores(report: Report) -> Iterator[str]:
    splits = [VALIDATION, *report.tests]
    yield f"{report.metric}, ± half the width of the 95 % interval. Every choice was made on the validation split."
    yield ""
    yield f"| row | selection | {' | '.join(map(_plain, report.tests))} |" if report.tests else "| row | selection |"
    yield "|---" * (len(splits) + 1) + "|"
    wanted = {*KEY_ROWS, _saved(report).name}
    _, cells = tables.table(report, intervals=True)
    places = [0, 1, *range(2 + len(report.steering), 2 + len(report.steering) + len(report.tests))]
    for cell in (cell for cell in cells if cell[0] in wanted):
        yield "| " + " | ".join(_plain(cell[place]) for place in places) + " |"


def _again(report: Report, recipe: Recipe) -> Iterator[str]:
    yield "## How to get it again"
    yield ""
    yield "With the same checkpoints, the recipe gives the same bytes:"
    yield ""
    yield "```sh"
    yield "mixopt build recipe.json -o model.safetensors --models CHECKPOINTS --verify"
    yield "```"
    yield ""
    versions = f"mixopt {report.version}, seed {report.seed}"
    yield f"The run was `mixopt {report.command}` with the options in `run.toml` ({versions})."
    yield f"Content hash of the weights: `{recipe.output_hash}`. Fingerprints of the data:"
    yield ""
    for split, info in report.splits.items():
        told = "".join(f"; {_plain(note)}" for note in info.notes)
        yield f"- {_plain(split)}: {info.samples:,} samples, `{info.fingerprint[:16]}`{told}"


def _saved(report: Report) -> MadeRow:
    """The row whose mix was saved."""
    return report.row("search" if report.command == "search" else report.best)


def _plain(text: str) -> str:
    """A text that Markdown shows as it stands, in a table's cell too."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>|#&~" else letter for letter in " ".join(text.split()))


def _code(text: str) -> str:
    """A text that Markdown shows as code, as it stands."""
    one_line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", one_line)), default=0))
    return f"{fence} {one_line} {fence}" if "`" in one_line else f"`{one_line}`"


def _scalar(text: str) -> str:
    """A text as YAML reads it back, in JSON's quotes; what YAML takes for a line break or not for text is escaped."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in quoted)


def _escaped(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
