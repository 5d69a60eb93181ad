"""The command line: help, output on the right stream, exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from mixopt import run
from mixopt.cli import app
from mixopt.spec import StudySpec
from mixopt.version import __version__

ESCAPE = "\x1b"
ROOT: Any = typer.main.get_command(app)
COMMANDS = list(ROOT.commands)


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def home(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool, a cache, and a finished run that the tests here only read."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(clip_pool_template, folder / "pool")
    result = invoke("search", *options_of(folder), "--trials", "6", "--json")
    assert result.exit_code == 0, result.output
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def options_of(folder: Path) -> list[str | Path]:
    return ["--models", folder / "pool", "--out", folder / "run", "--cache", folder / "cache", "--device", "cpu"]


# Help


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("wide")
def test_help_shows_an_example_and_every_option(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert f"Example: mixopt {name}" in result.stdout
    command = ROOT.commands[name]
    assert command.help
    assert command.help.splitlines()[0] in result.stdout
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} says what it is"
        assert parameter.help.rstrip()[-1] in ".)", f"{parameter.name} is a sentence"
        # What stands in brackets is markup, and vanishes from the page.
        assert " ".join(parameter.help.split()) in " ".join(result.stdout.split()), parameter.name
        for option in parameter.opts if parameter.param_type_name == "option" else ():
            assert option in result.stdout


def test_root_help_lists_the_commands_and_first_steps() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"^\W*{name}\s", result.stdout, flags=re.MULTILINE), name
    assert "First steps: mixopt demo" in result.stdout


def test_every_option_of_a_study_is_a_flag_of_search() -> None:
    flags = {option for parameter in ROOT.commands["search"].params for option in parameter.opts}
    renamed = {"top": "--ingredients"}
    for field in StudySpec.model_fields:
        assert renamed.get(field, f"--{field.replace('_', '-')}") in flags


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    "field", ["trials", "metric", "sampler", "radius", "start", "seed", "device", "dtype", "space"]
)
def test_defaults_in_help_are_the_real_ones(field: str) -> None:
    (parameter,) = (each for each in ROOT.commands["search"].params if each.name == field)
    told = re.search(r"\(default: (.*)\)", parameter.help)
    assert told is not None
    assert told[1] == str(StudySpec.model_fields[field].default)


def test_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{__version__}\n", "")


def test_without_a_command_shows_help() -> None:
    assert "Usage:" in invoke().output


def test_unknown_command_and_option() -> None:
    assert invoke("serch").exit_code == 2
    result = invoke("search", "--model-dir", "x")
    assert result.exit_code == 2
    assert "--model-dir" in result.stderr
    assert invoke("search").exit_code == 2, "search needs --models or --study"


@pytest.mark.parametrize("text", ["nothing", "=x.npz", "name="])
def test_test_split_needs_name_and_file(text: str, clip_pool_template: Path) -> None:
    result = invoke("search", "--models", clip_pool_template, "--test", text)
    assert result.exit_code == 2
    assert "expected NAME=FILE" in result.stderr


# What goes where


def test_json_stands_alone_on_stdout(home: Path) -> None:
    report = json.loads((home / "stdout").read_text())
    assert report == json.loads((home / "run" / "report.json").read_text())
    assert [row["name"] for row in report["methods"]] == ["base", "individual", "uniform", "greedy", "search"]
    assert "trials: 6 of 6" in (home / "stderr").read_text()


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_quiet_says_nothing_but_the_result(home: Path, more: list[str]) -> None:
    result = invoke("search", *options_of(home), "--trials", "6", "--quiet", *more)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "greedy" in result.stdout


def test_search_says_what_it_does(home: Path) -> None:
    said = (home / "stderr").read_text()
    for part in (
        "4 ingredients (model_0, model_1, model_2 and 1 more), base base",
        "32 tensors with 32,384 parameters are mixed",
        "every choice is made on search alone, by accuracy",
        "images/s",
        "baselines: individual 0.",
        "saved",
    ):
        assert part in said


@pytest.mark.parametrize("command", ["search", "inspect", "evaluate", "build"])
def test_output_is_plain_where_it_is_not_a_terminal(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    arguments: dict[str, list[str | Path]] = {
        "search": [*options_of(home), "--trials", "6"],
        "inspect": [home / "pool", "--cache", home / "cache"],
        "evaluate": [home / "run/model.safetensors", "--data", home / "pool/test.npz", "--cache", home / "cache"],
        "build": [home / "run/recipe.json", "-o", tmp_path / "fused.safetensors"],
    }
    result = invoke(command, *arguments[command])
    assert result.exit_code == 0, result.output
    for text in (result.stdout, result.stderr):
        assert ESCAPE not in text
        assert "\r" not in text
        assert "…" not in text, "nothing is cut off"


def test_table_holds_the_reports_numbers(home: Path) -> None:
    result = invoke("search", *options_of(home), "--trials", "6", "-q")
    title, *lines = (line.strip() for line in result.stdout.splitlines() if line.strip())
    assert title == f"accuracy by method; {home / 'run'}"
    rows = {line.split()[0]: line.split() for line in lines}
    for row in json.loads((home / "run" / "report.json").read_text())["methods"]:
        cells = rows[row["name"]]
        assert cells[1] == f"{row['search']:.4f}"
        assert cells[2:4] == [f"{value:.4f}" for value in row["test"].values()]
        assert (cells[4], cells[-1]) == (str(row["evaluations"]), str(row["ingredients"]))


# inspect


def test_inspect_lists_what_is_in_a_pool(home: Path) -> None:
    result = invoke("inspect", home / "pool", "--cache", home / "cache")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for part in (
        "4 ingredients; base: base",
        "layer groups (--groups block)",
        "32 tensors with 32,384 parameters differ; 18 with 396,377 are identical in all: ln_final.bias",
        "distance between ingredients",
        "cosine between ingredients' deltas",
        "split search: 96 samples, 4 classes",
        "split shift: 96 samples, 4 classes",
        "no problems found",
    ):
        assert part in shown


def test_inspect_json_holds_the_facts(home: Path) -> None:
    result = invoke("inspect", home / "pool", "--cache", home / "cache", "--groups", "block", "--json", "--quiet")
    found = json.loads(result.stdout)
    states = [load_file(home / "pool" / f"{name}.safetensors") for name in ("base", *(f"model_{i}" for i in range(4)))]
    mixed = [name for name in states[0] if name.startswith("visual.")]
    flat = [torch.cat([state[name].flatten() for name in mixed]).double() for state in states]
    deltas = [each - flat[0] for each in flat[1:]]
    assert [item["name"] for item in found["ingredients"]] == [f"model_{i}" for i in range(4)]
    for item, delta in zip(found["ingredients"], deltas, strict=True):
        assert item["bytes"] == (home / "pool" / f"{item['name']}.safetensors").stat().st_size
        assert item["distance"] == pytest.approx(float(delta.norm()), rel=1e-6)
    for one in range(4):
        for other in range(4):
            distance = float((deltas[one] - deltas[other]).norm())
            assert found["distances"][one][other] == pytest.approx(distance, abs=1e-3)
            cosine = float(deltas[one] @ deltas[other] / deltas[one].norm() / deltas[other].norm())
            assert found["cosines"][one][other] == pytest.approx(cosine, abs=1e-6)
    assert sum(group["parameters"] for group in found["groups"]) == len(deltas[0]) == found["mixed"]["parameters"]
    assert sum(group["tensors"] for group in found["groups"]) == len(mixed) == found["mixed"]["tensors"]
    assert {group["name"] for group in found["groups"]} == {
        "stem", "head", "visual.transformer.resblocks.0", "visual.transformer.resblocks.1"
    }  # fmt: skip
    assert found["identical"]["names"] == sorted(name for name in states[0] if name not in mixed)
    assert found["identical"]["parameters"] == sum(states[0][name].numel() for name in found["identical"]["names"])
    assert found["problems"] == []
    assert found["splits"]["test"] == {"samples": 96, "classes": 4}


def test_inspect_names_the_groups_it_shows(home: Path) -> None:
    result = invoke("inspect", home / "pool", "--cache", home / "cache", "--groups", "whole")
    assert "layer groups (--groups whole)" in result.stdout
    assert re.search(r"whole\s+32\s+32,384", result.stdout)


def test_inspect_without_pool_toml(clip_pool: Path, tmp_path: Path) -> None:
    (clip_pool / "pool.toml").unlink()
    result = invoke("inspect", clip_pool, "--cache", tmp_path / "cache", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [item["name"] for item in found["ingredients"]] == ["base", *(f"model_{i}" for i in range(4))]
    assert found["centre"] == "mean of the ingredients"


@pytest.mark.parametrize("as_json", [False, True])
def test_inspect_lists_all_problems(clip_pool: Path, tmp_path: Path, as_json: bool) -> None:
    state = load_file(clip_pool / "model_1.safetensors")
    state["visual.proj"][0, 0] = float("nan")
    save_file(state, clip_pool / "model_1.safetensors")
    np.savez(clip_pool / "val.npz", x=np.zeros((3, 16, 16, 3), np.uint8), y=np.array([0, 1, 9]))
    (clip_pool / "shift.npz").unlink()
    result = invoke("inspect", clip_pool, "--cache", tmp_path / "cache", *(["--json"] if as_json else []))
    assert result.exit_code == 2
    problems = json.loads(result.stdout)["problems"] if as_json else result.stderr.split("error: ")[1:]
    assert len(problems) == 3
    assert "visual.proj holds NaN" in problems[0]
    assert "labels go from 0 to 9" in problems[1]
    assert "shift.npz: no such file" in problems[2]
    assert "Traceback" not in result.output


def test_inspect_of_a_missing_folder(tmp_path: Path) -> None:
    result = invoke("inspect", tmp_path / "nothing")
    assert result.exit_code == 2
    assert "no such directory" in result.stderr


# evaluate and build


def test_evaluate_of_the_saved_model_is_the_reports_row(home: Path) -> None:
    splits = [f"{name}={home / 'pool' / name}.npz" for name in ("test", "shift")]
    more = ["--data", home / "pool" / "val.npz", "--test", splits[0], "--test", splits[1], "--cache", home / "cache"]
    result = invoke("evaluate", home / "run" / "model.safetensors", *more, "--verify", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    row = json.loads((home / "run" / "report.json").read_text())["methods"][-1]
    assert found["verified"] is True
    assert found["metric"] == "accuracy"
    assert {name: split["metrics"] for name, split in found["splits"].items()} == {
        "val": row["metrics"]["search"], "test": row["metrics"]["test"], "shift": row["metrics"]["shift"]
    }  # fmt: skip


def test_evaluate_shows_a_table(home: Path) -> None:
    more = ["--data", home / "pool" / "test.npz", "--cache", home / "cache", "--verify"]
    result = invoke("evaluate", home / "run" / "model.safetensors", *more)
    row = json.loads((home / "run" / "report.json").read_text())["methods"][-1]["metrics"]["test"]
    cells = next(line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["test"])
    assert cells == ["test", "96", *(f"{row[name]:.4f}" for name in ("accuracy", "nll", "balanced_accuracy"))]
    assert "its weights are those of its recipe" in result.stdout


def test_evaluate_of_an_ingredient_needs_its_pool(home: Path) -> None:
    more = ["--data", home / "pool" / "val.npz", "--cache", home / "cache", "--json"]
    result = invoke("evaluate", home / "pool" / "model_2.safetensors", *more)
    assert result.exit_code == 0, result.output
    report = json.loads((home / "run" / "report.json").read_text())
    individual = next(row for row in report["methods"] if row["name"] == "individual")
    assert json.loads(result.stdout)["splits"]["val"]["metrics"]["accuracy"] <= individual["search"]


def test_evaluate_verify_refuses_changed_weights(home: Path, tmp_path: Path) -> None:
    content = bytearray((home / "run" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    more = ["--data", home / "pool" / "val.npz", "--cache", home / "cache"]
    result = invoke("evaluate", tmp_path / "model.safetensors", *more, "--verify")
    assert result.exit_code == 2
    assert "not those of the recipe" in result.stderr
    assert invoke("evaluate", home / "pool" / "model_0.safetensors", *more, "--verify").exit_code == 2


@pytest.mark.parametrize("source", ["recipe.json", "model.safetensors"])
def test_build_gives_the_runs_bytes(home: Path, tmp_path: Path, source: str) -> None:
    result = invoke("build", home / "run" / source, "-o", tmp_path / "fused.safetensors", "--verify", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"model": str(tmp_path / "fused.safetensors"), "verified": True}
    assert (tmp_path / "fused.safetensors").read_bytes() == (home / "run" / "model.safetensors").read_bytes()


def test_build_finds_moved_and_renamed_checkpoints(home: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for number, path in enumerate(sorted((home / "pool").glob("*.safetensors"))):
        shutil.copy(path, moved / f"renamed_{9 - number}.safetensors")
    recipe = tmp_path / "alone" / "recipe.json"
    recipe.parent.mkdir()
    shutil.copy(home / "run" / "recipe.json", recipe)
    lost = invoke("build", recipe, "-o", tmp_path / "fused.safetensors")
    assert lost.exit_code == 2
    assert "not found" in lost.stderr
    assert "--models" in lost.stderr
    assert not (tmp_path / "fused.safetensors").exists()
    result = invoke("build", recipe, "-o", tmp_path / "fused.safetensors", "--models", moved)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "fused.safetensors").read_bytes() == (home / "run" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("content", [None, "{}", "no json", '{"format": 99}', "[1]"])
def test_build_from_something_else(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "recipe.json").write_text(content)
    result = invoke("build", tmp_path / "recipe.json", "-o", tmp_path / "fused.safetensors")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'recipe.json'}: ")
    assert "Traceback" not in result.stderr


# study.toml


def test_study_file_gives_the_options_and_flags_win(home: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text(
        f'models = "{home / "pool"}"\nout = "here"\ncache = "{home / "cache"}"\ntrials = 5\nsampler = "random"\n'
    )
    result = invoke("search", "--study", study, "--sampler", "tpe", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["sampler"] == "tpe"
    assert report["trials"] == {"complete": 5}
    assert (tmp_path / "here" / "model.safetensors").is_file(), "paths are relative to the file"


# Bugs and interrupts


def test_bug_shows_its_traceback(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(run, "search", broken)
    result = invoke("search", *options_of(home))
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)
    assert "error:" not in result.stderr, "a bug is not dressed up as bad input"


BROKEN = """
import sys
import mixopt.run
def broken(*arguments, **options):
    raise ZeroDivisionError("a bug")
mixopt.run.search = broken
sys.argv = ["mixopt", "search", "--models", "anything"]
from mixopt.cli import main
main()
"""


def test_bug_in_a_process_of_its_own_exits_with_1() -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Traceback (most recent call last)")
    assert done.stderr.rstrip().endswith("ZeroDivisionError: a bug")


@pytest.fixture
def interrupting(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the search receive a signal as soon as it begins."""

    def prepare(number: int) -> None:
        def hit(*_: Any, **__: Any) -> None:
            os.kill(os.getpid(), number)
            raise AssertionError("the signal was not heard")

        monkeypatch.setattr(run, "search", hit)

    return prepare


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_is_one_message(home: Path, interrupting: Callable[[int], None], number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    interrupting(number)
    result = invoke("search", *options_of(home))
    assert result.exit_code == 130
    assert result.stderr == ("error: interrupted; finished trials are kept: the same command again goes on from here\n")
    assert signal.getsignal(signal.SIGTERM) == before, "the caller's own handler is back"


@pytest.mark.parametrize("name", ["[bold]run[/bold]", "a[0]", "back\\slash\\[x]", "ends in \\"])
def test_names_are_shown_as_they_are(tmp_path: Path, name: str) -> None:
    result = invoke("inspect", tmp_path / name)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / name}: no such directory")
