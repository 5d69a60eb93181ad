"""Options from files, flags and Python become one spec; what is told of them is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import mixopt
from mixopt.cli import app
from mixopt.errors import SpecError
from mixopt.runs.folder import RunFolder
from mixopt.spec import StudySpec, load_spec
from mixopt.spec.option import Described, described
from tests.reports import report_of


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    (tmp_path / "pool").mkdir()
    return tmp_path / "pool"


@pytest.mark.parametrize(
    ("value", "kept", "patterns", "count"),
    [
        ((), (), (), None),
        (["a*", "b*"], ("a*", "b*"), ("a*", "b*"), None),
        (4, 4, (), 4),
        ("auto", "auto", (), "auto"),
        (["a*", 4], ("a*", 4), ("a*",), 4),
        (["auto", "a*"], ("a*", "auto"), ("a*",), "auto"),
        ([4, "a*", 5], ("a*", 5), ("a*",), 5),
        ([4], 4, (), 4),
        (["4"], ("4",), ("4",), None),
    ],
)
def test_ingredients_are_globs_a_number_or_both(
    pool: Path, value: Any, kept: Any, patterns: tuple[str, ...], count: int | str | None
) -> None:
    spec = load_spec({"models": pool, "ingredients": value})
    assert (spec.ingredients, spec.ingredient_patterns, spec.ingredient_count) == (kept, patterns, count)


@pytest.mark.parametrize(
    ("written", "given", "patterns", "count"),
    [
        ('["a*"]', [4], ("a*",), 4),
        ('["a*"]', ["b*"], ("b*",), None),
        ("4", ["b*"], ("b*",), 4),
        ("4", [5], (), 5),
        ('["a*", 4]', ["b*", "auto"], ("b*",), "auto"),
        ('["a*", 4]', None, ("a*",), 4),
    ],
)
def test_a_number_given_keeps_the_globs_of_the_file(
    pool: Path, written: str, given: Any, patterns: tuple[str, ...], count: int | str | None
) -> None:
    (pool / "pool.toml").write_text(f"ingredients = {written}\n")
    spec = load_spec({"models": pool, "ingredients": given})
    assert (spec.ingredient_patterns, spec.ingredient_count) == (patterns, count)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (1, "--ingredients: expected 2 or more, or auto (found 1)"),
        (["a*", 0], "--ingredients: expected 2 or more, or auto (found 0)"),
        (0.5, "--ingredients: input should be a list of texts (found 0.5)"),
        ("a*", "--ingredients: input should be a list of texts (found 'a*')"),
        ([0.5], "--ingredients: input should be a list of texts"),
    ],
)
def test_ingredients_that_cannot_be(pool: Path, value: Any, says: str) -> None:
    with pytest.raises(SpecError) as error:
        load_spec({"models": pool, "ingredients": value})
    assert str(error.value) == f"the options cannot be used: {says}"


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., StudySpec]:
    """What the search gets from a command."""

    def command(*arguments: object) -> StudySpec:
        calls: list[StudySpec] = []

        def search(listener: Any, study: Any, **options: Any) -> Any:
            calls.append(load_spec(options, study))
            return SimpleNamespace(report=report_of([]), folder=tmp_path)

        monkeypatch.setattr(mixopt, "search", search)
        result = CliRunner().invoke(app, ["search", *map(str, arguments), "--json"])
        assert result.exit_code == 0, result.output
        return calls[0]

    return command


def test_a_glob_and_a_number_in_one_command(searched: Callable[..., StudySpec], pool: Path) -> None:
    spec = searched("--models", pool, "--ingredients", "a*", "--ingredients", "4")
    assert (spec.ingredient_patterns, spec.ingredient_count) == (("a*",), 4)


@pytest.mark.parametrize("key", ["from", "from_"])
def test_from_goes_by_both_names(searched: Callable[..., StudySpec], pool: Path, key: str) -> None:
    assert load_spec({"models": pool, key: "greedy, uniform"}).from_ == ("greedy", "uniform")
    (pool / "pool.toml").write_text('from = ["greedy", "wise_ft"]\n')
    assert load_spec({"models": pool}).from_ == ("greedy", "wise_ft")
    assert load_spec({"models": pool, key: "lines"}).from_ == ("lines",)
    assert searched("--models", pool, "--from", "lines", "--from", "uniform").from_ == ("lines", "uniform")


@pytest.mark.parametrize("place", ["flag", "file"])
def test_a_problem_with_from_is_told_where_it_stands(pool: Path, place: str) -> None:
    if place == "file":
        (pool / "pool.toml").write_text('from = " , "\n')
    with pytest.raises(SpecError) as error:
        load_spec({"models": pool, **({"from_": " , "} if place == "flag" else {})})
    where = "--from" if place == "flag" else f"{pool / 'pool.toml'}: from"
    assert f"{where}: expected at least one row (found ' , ')" in str(error.value)


@pytest.mark.parametrize("old", ["top", "sources"])
def test_fields_that_had_another_name_are_no_keys(pool: Path, old: str) -> None:
    with pytest.raises(SpecError, match=f"--{old}: unknown key '{old}'"):
        load_spec({"models": pool, old: 4})


def test_the_options_of_a_run_can_be_read_back(pool: Path, tmp_path: Path) -> None:
    given = {"models": pool, "from_": ("greedy", "uniform"), "ingredients": ("a*", 4), "out": tmp_path / "run"}
    spec = load_spec({**given, "select": {"s": (pool / "s.npz", 0.25)}, "data": {"search": pool / "v.npz"}})
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").write_spec(spec)
    assert load_spec({}, tmp_path / "run" / "run.toml") == spec


def test_unlabelled_samples_lie_beside_the_file_that_names_them(searched: Callable[..., StudySpec], pool: Path) -> None:
    study = pool.parent / "study.toml"
    study.write_text('models = "pool"\nunlabelled = "target"\n')
    assert load_spec({}, study).unlabelled == pool.parent.resolve() / "target"
    assert load_spec({"unlabelled": "other"}, study).unlabelled == Path("other")
    assert searched("--models", pool, "--unlabelled", "more").unlabelled == Path("more")
    with pytest.raises(SpecError, match=r"study\.toml: unlabelled: judges the last step for shifts, which robust"):
        load_spec({"robust": "off"}, study)


def test_a_table_that_is_unknown_gets_a_suggestion(pool: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'from'"):
        load_spec({"models": pool, "fromm": "x"})
    with pytest.raises(SpecError, match=r"--data\.tests: unknown key 'tests'; did you mean 'test'"):
        load_spec({"models": pool, "data": {"tests": {}}})


@pytest.mark.parametrize("each", described(StudySpec), ids=lambda each: each.key)
def test_every_option_says_what_it_is(each: Described) -> None:
    assert each.option.help.endswith(".")
    assert "(default" not in each.option.help, "made of the field's default"
    assert set(each.option.otherwise) <= set(each.option.commands)
    for command in each.option.commands:
        assert each.help_of(command)
    assert each.kind in (str, int, float, bool, Path, list)


@pytest.mark.parametrize(
    ("key", "flag", "parameter", "kind", "default"),
    [
        ("trials", "--trials", "trials", int, "200"),
        ("confirm", "--confirm", "confirm", float, "0.2"),
        ("greedy_rule", "--greedy-rule", "greedy_rule", str, "at-least"),
        ("data.validation", "--data", "data", Path, ""),
        ("data.test", "--test", "test", list, ""),
        ("from", "--from", "from_", list, ""),
        ("pareto", "--pareto", "pareto", bool, "no"),
        ("limit", "--limit", "limit", int, ""),
        ("ingredients", "--ingredients", "ingredients", list, "every checkpoint there but the base"),
        ("cache", "--cache", "cache", Path, "$XDG_CACHE_HOME/mixopt"),
    ],
)
def test_an_option_is_described_by_its_field(key: str, flag: str, parameter: str, kind: type, default: str) -> None:
    (found,) = (each for each in described(StudySpec) if each.key == key)
    assert (found.flag, found.parameter, found.kind, found.default) == (flag, parameter, kind, default)


@pytest.mark.timeout(60)
def test_ninety_thousand_unknown_keys_are_counted(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text("".join(f"k{number} = 1\n" for number in range(90_000)))
    with pytest.raises(SpecError, match=r"90000 problems:(.|\n)*\.\.\. and 89980 more"):
        load_spec({"models": tmp_path})


@pytest.mark.parametrize(
    "value",
    [
        {"text": "a, b", "label": "c"},
        "text=a, b,label=c",
        ["text=a, b", "label=c"],
        ["text=a, b, label=c"],
    ],
)
def test_fields_are_a_table_or_texts(pool: Path, value: Any) -> None:
    assert load_spec({"models": pool, "fields": value}).fields == {"text": "a, b", "label": "c"}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("sentence", r"--fields: expected ROLE=COLUMN, such as text=sentence"),
        ({"texts": "a"}, r"--fields: unknown role 'texts'; did you mean 'text'\?"),
        (["text="], r"--fields: expected ROLE=COLUMN"),
        (7, r"--fields: input should be a valid dictionary"),
    ],
)
def test_fields_that_cannot_be(pool: Path, value: Any, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        load_spec({"models": pool, "fields": value})
