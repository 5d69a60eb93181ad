"""The model card: its metadata is YAML that says what was given, and its text shows names as they stand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mixopt.reporting.card import model_card
from mixopt.reporting.rows import LabelledOutcomes, Row
from mixopt.reporting.schema import Report
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix
from mixopt.values.recipe import Recipe
from tests.reports import report_of

SIZES = {"a.w": 3, "b.w": 4}
TESTS = ("test", "a: b | c")
ODD = [
    "plain",
    'a: "b" # c',
    "- x",
    "yes",
    "\\n\u2028\x85\x7f",
    "line\nbreak",
    "日本 🤖",
    "{a: 1}",
    "'",
    "\ufeff*&!%@`",
]


def report(*tests: str, metric: str = "accuracy", **fields: Any) -> Report:
    """Of four rows, a base and a search among them."""
    random = np.random.default_rng(0)
    rows = []
    for name in ("base", "individual", "wise_ft:alpha=0.5", "search"):
        samples = {}
        for split in ("validation", *tests):
            labels = random.integers(0, 3, 50)
            samples[split] = LabelledOutcomes(labels, np.where(random.random(50) < 0.3, 3, labels), random.random(50))
        metrics = {
            split: {"accuracy": float(each.correct.mean()), "nll": float(each.losses.mean())}
            for split, each in samples.items()
        }
        rows.append(Row(name, metrics, samples, 4, 4, 100, 0, 0.5, 2))
    return report_of(rows, metric, **{"best": "search", **fields})


def recipe(scheme: str = "tensor", family: str = "open_clip") -> Recipe:
    groups = make_groups(scheme, SIZES)
    return Recipe(
        method="search",
        mix=Mix(groups, ("one", "two_b", "unused", "base"), np.tile([0.25, 0.25, 0.0, 0.5], (len(groups), 1))),
        ingredients={name: f"{name}-{'0' * 60}" for name in ("one", "two_b", "unused", "base")},
        base="base",
        family={"name": family, "model": {}, "classnames": ["a"], "templates": ["{}"]},
        dtypes={"*": "float32"},
        buffers_from=None,
        batchnorm="average",
        metric="accuracy",
        data={"search": "f" * 64},
        scores={"search": {"accuracy": 0.5}},
        seed=0,
        output_hash="0123456789",
        version="1",
    )


def scalar(text: str) -> Any:
    """A scalar of YAML as the card writes them: in JSON's quotes, a number, a list of nothing, or a plain word."""
    if text.startswith('"'):
        return json.loads(text)
    if re.fullmatch(r"-?\d+\.\d+", text):
        return float(text)
    assert re.fullmatch(r"\[\]|[a-z_][\w-]*", text), f"not safe without quotes: {text}"
    return [] if text == "[]" else text


def block(lines: list[str]) -> Any:
    """Nested lists and mappings in block form; every line must be one of them."""
    indent = len(lines[0]) - len(lines[0].lstrip())
    listed = lines[0].lstrip().startswith("- ")
    # A list may stand as far left as its key.
    starts = [at for at, line in enumerate(lines) if line[indent] != " " and line[indent:].startswith("- ") == listed]
    if listed:
        parts = [lines[at:end] for at, end in zip(starts, [*starts[1:], len(lines)], strict=True)]
        inner = [[f"{' ' * (indent + 2)}{part[0][indent + 2 :]}", *part[1:]] for part in parts]
        return [block(part) if re.match(r"\s*\w+:( |$)", part[0]) else scalar(part[0].strip()) for part in inner]
    found: dict[str, Any] = {}
    for at, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        key, colon, value = lines[at].strip().partition(":")
        assert colon == ":"
        assert key not in found
        found[key] = scalar(value.strip()) if value else block(lines[at + 1 : end])
    return found


def metadata(card: str) -> dict[str, Any]:
    """The card's header, read line by line as YAML breaks lines."""
    head = re.fullmatch("---\n(.*?)\n---\n.*", card, flags=re.DOTALL)
    assert head
    lines = re.split("\r\n|[\n\r\x85\u2028\u2029]", head[1])
    assert all(line.isprintable() for line in lines)
    return dict(block([line for line in lines if not line.startswith("#")]))


def test_metadata_say_what_the_model_is_and_scores() -> None:
    made = report(*TESTS)
    found = metadata(model_card(made, recipe(), "pool"))
    assert found["library_name"] == "open_clip"
    assert {"model-soup", "mixopt"} <= set(found["tags"])
    assert found["metrics"] == ["accuracy"]
    assert "license" not in found, "it is not ours to choose"
    assert "base_model" not in found, "a file's name is no model's"
    ((index),) = found["model-index"]
    assert index["name"] == "pool"
    for split, result in zip(TESTS, index["results"], strict=True):
        assert result["task"] == {"type": "zero-shot-image-classification"}
        assert result["dataset"] == {"name": split, "type": split}
        assert result["metrics"] == [{"type": "accuracy", "value": pytest.approx(made.row("search").test[split])}]


@pytest.mark.parametrize("name", ODD)
def test_names_are_safe_in_the_metadata(name: str) -> None:
    found = metadata(model_card(report(name), recipe(), name))
    (index,) = found["model-index"]
    assert index["name"] == index["results"][0]["dataset"]["name"] == name


def test_a_base_with_a_hubs_name_is_the_base_model() -> None:
    columns = ("one", "owner/model-b")
    mix = Mix(make_groups("whole", SIZES), columns, np.array([[0.5, 0.5]]))
    given = replace(recipe(), mix=mix, base=columns[1], ingredients=dict.fromkeys(columns, "0" * 64))
    found = metadata(model_card(report("test"), given, "pool"))
    assert (found["base_model"], found["base_model_relation"]) == ("owner/model-b", "merge")


def test_a_function_of_ones_own_is_no_library_and_no_known_task() -> None:
    found = metadata(model_card(report("test"), recipe(family="own.nets:make"), "pool"))
    assert "library_name" not in found
    assert found["model-index"][0]["results"][0]["task"] == {"type": "other"}


def test_without_tests_there_are_no_results() -> None:
    assert metadata(model_card(report(), recipe(), "pool"))["model-index"] == [{"name": "pool", "results": []}]


def test_a_loss_too_small_for_a_short_decimal_stays_a_number() -> None:
    made = report("test", metric="nll")
    rows = tuple(row.model_copy(update={"test": {"test": 1e-7}}) for row in made.made)
    found = metadata(model_card(made.model_copy(update={"methods": rows}), recipe(), "pool"))
    assert found["model-index"][0]["results"][0]["metrics"][0]["value"] == 0


def test_the_text_says_what_was_mixed_and_what_it_scores() -> None:
    made = report("test")
    card = model_card(made, recipe(), "my_*pool*")
    assert "# my\\_\\*pool\\*" in card
    assert "| one | 0.2500 | `one-00000000` |" in card
    assert "| two\\_b | 0.2500 |" in card
    assert "| base (base) | 0.5000 |" in card
    assert "unused" not in card
    assert "all 2 rows" in card
    assert "the same for all layers" in model_card(made, recipe("whole"), "pool")
    low, high = made.row("search").interval["test"]
    assert f"{made.row('search').test['test']:.4f} ±{(high - low) / 2:.4f} |" in card
    assert "| wise" not in card, "the key rows alone"
    assert "0123456789" in card
    assert "mixopt build recipe.json" in card


def test_of_a_comparison_the_saved_row_is_named_as_it_is() -> None:
    made = report("test", command="compare", best="wise_ft:alpha=0.5")
    card = model_card(made, replace(recipe(), method="wise_ft:alpha=0.5"), "pool")
    assert "Chosen by `wise_ft:alpha=0.5`," in card
    assert "| wise\\_ft:alpha=0.5 |" in card
    assert "Chosen by `` a`b ``," in model_card(made, replace(recipe(), method="a`b"), "pool")
