"""The command line: help, output on the right stream, exit codes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

import mixopt
from mixopt.cli import app, runs
from mixopt.cli.exits import EXIT_SOME_FAILED
from mixopt.cli.screen import Screen
from mixopt.cli.show import show_run
from mixopt.errors import MixoptError
from mixopt.listener import Listener
from mixopt.reporting.rows import Failure, LabelledOutcomes, Row
from mixopt.reporting.schema import Report
from mixopt.reporting.tables import comparisons, table, widths
from mixopt.spec import StudySpec, load_spec
from mixopt.spec.option import Described, described
from mixopt.stages.plan import LEARNED
from mixopt.version import __version__
from tests.reports import report_of

ESCAPE = "\x1b"
ROOT: Any = typer.main.get_command(app)
COMMANDS = list(ROOT.commands)
LONG = ["search", "compare"]


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
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.usefixtures("wide")
def test_help_shows_an_example_and_every_option(name: str) -> None:
    result = invoke(name, "--help-all" if name in LONG else "--help")
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


def flags_in(page: str) -> set[str]:
    return set(re.findall(r"^│ +(--[a-z-]+)", page, flags=re.MULTILINE))


@pytest.mark.parametrize("name", LONG)
@pytest.mark.usefixtures("wide")
def test_help_of_a_long_command_shows_the_common_options(name: str) -> None:
    shown = flags_in(invoke(name, "--help").stdout)
    whole = flags_in(invoke(name, "--help-all").stdout)
    common = {each.flag for each in described(StudySpec) if each.option.common and name in each.option.commands}
    assert shown == common | {"--help", "--help-all", "--quiet", "--json"}
    assert 10 <= len(common) <= 13
    assert shown < whole == {parameter.opts[0] for parameter in ROOT.commands[name].params} | {"--help"}
    assert flags_in(invoke(name, "--help").stdout) == shown, "showing all changes nothing"


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["compare", "--help-all"]])
def test_help_comes_at_once_and_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys, time; start = time.process_time()\n"
        f"sys.argv = ['mixopt', *{arguments!r}]\n"
        "from mixopt.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(time.process_time() - start, {'torch', 'optuna', 'matplotlib', 'numpy'} & sys.modules.keys(), sep=';')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.splitlines()[-1].split(";")
    assert not set(loaded.strip("{}").split(", ")) & {"'torch'", "'optuna'", "'matplotlib'"}
    # Of the processor's own time: what other processes do is not the command's.
    assert float(seconds) < 2


def test_root_help_lists_the_commands_and_first_steps() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"^\W*{name}\s", result.stdout, flags=re.MULTILINE), name
    assert "First steps: mixopt demo" in result.stdout


def parameters_of(command: str) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in ROOT.commands[command].params}


def test_every_option_of_a_study_is_a_flag_of_search_or_compare() -> None:
    flags = {
        option
        for command in ("search", "compare")
        for parameter in parameters_of(command).values()
        for option in parameter.opts
    }
    for field in StudySpec.model_fields:
        assert f"--{field.strip('_').replace('_', '-')}" in flags
    assert "--test" in flags


# A number of ingredients is for a search.
ONLY_COMPARE = {"methods", "ingredients"}


def test_help_of_compare_lists_the_methods() -> None:
    from mixopt.comparison.ensembles import ENSEMBLES
    from mixopt.methods import method_names

    assert ", ".join(sorted([*method_names(), *ENSEMBLES])) == runs.METHODS
    assert runs.METHODS in " ".join(invoke("compare", "--help").stdout.split())


@pytest.mark.parametrize("name", [name for name in parameters_of("compare") if name not in ONLY_COMPARE])
def test_compare_shares_the_options_of_search(name: str) -> None:
    here, there = parameters_of("compare")[name], parameters_of("search")[name]
    for what in ("opts", "secondary_opts", "help", "metavar", "rich_help_panel", "hidden", "default", "multiple"):
        assert getattr(here, what) == getattr(there, what), what


# The flags of each command, as they have been from the beginning.
FLAGS = {
    "search": "models trials preset study family model base ingredients classnames templates data test limit select "
    "shifts pareto metric from greedy-rule batchnorm confirm refit sampler population groups space refine race signal "
    "radius start timeout seed device batch-size precision compile stack dtype cache out force storage",
    "compare": "models methods study family model base ingredients classnames templates data test limit metric from "
    "greedy-rule batchnorm confirm seed device batch-size precision compile stack dtype cache out force",
    "evaluate": "data test verify models family model classnames templates limit metric device batch-size precision "
    "compile cache",
    "inspect": "family model base ingredients classnames data test groups cache",
    "build": "output models verify force",
    "report": "html force",
    "demo": "out trials seed cache",
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_command_keeps_the_flags_that_it_ever_had(name: str) -> None:
    found = {opt for each in ROOT.commands[name].params if each.param_type_name == "option" for opt in each.opts}
    assert found >= {f"--{flag}" for flag in FLAGS[name].split()} | {"--quiet", "-q", "--json"}


@pytest.mark.parametrize("each", described(StudySpec), ids=lambda each: each.key)
def test_help_has_the_default_and_is_written_once(each: Described) -> None:
    for command in each.option.commands:
        parameter = parameters_of(command)[each.parameter]
        assert parameter.help == each.help_of(command)
        assert parameter.default is None, "None is not given; the spec knows what then"
        assert each.default in parameter.help or command in each.option.otherwise


@pytest.mark.parametrize("flag", ["--from", "--batchnorm", "--methods"])
def test_options_of_a_run_are_not_of_other_commands(flag: str) -> None:
    with_flag = {name for name in COMMANDS for each in ROOT.commands[name].params if flag in each.opts}
    assert with_flag == ({"compare"} if flag == "--methods" else {"search", "compare"})


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    "field",
    [
        "trials",
        "preset",
        "metric",
        "sampler",
        "start",
        "seed",
        "device",
        "dtype",
        "space",
        "greedy_rule",
        "batchnorm",
        "confirm",
        "race",
        "signal",
    ],
)
def test_defaults_in_help_are_the_real_ones(field: str) -> None:
    told = re.search(r"\(default: (.*)\)", parameters_of("search")[field].help)
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
    assert [row["name"] for row in report["methods"]] == ["base", "individual", "uniform", "greedy", LEARNED, "search"]
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
        "every choice is made on validation alone, the last 19 of which steer no baseline, by accuracy",
        "images/s",
        "baselines: individual 0.",
        "saved",
    ):
        assert part in said


@pytest.mark.parametrize("command", ["search", "compare", "inspect", "evaluate", "build", "report"])
def test_output_is_plain_where_it_is_not_a_terminal(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    arguments: dict[str, list[str | Path]] = {
        "search": [*options_of(home), "--trials", "6"],
        "compare": [*options_of(home), "--out", tmp_path / "compared", "--methods", "individual,greedy"],
        "inspect": [home / "pool", "--cache", home / "cache"],
        "evaluate": [home / "run/model.safetensors", "--data", home / "pool/test.npz", "--cache", home / "cache"],
        "build": [home / "run/recipe.json", "-o", tmp_path / "fused.safetensors"],
        "report": [home / "run", "--html", tmp_path / "report.html"],
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
    lines = [line for line in lines if not line.startswith(("search scores ", "Use "))]  # why, and the answer
    header = columns_of(lines[0])
    shown = {cells[0]: dict(zip(header, cells, strict=True)) for cells in map(columns_of, lines[2:])}
    for row in json.loads((home / "run" / "report.json").read_text())["methods"]:
        cells = shown[row["name"]]
        assert cells["selection"] == f"{row['search']:.4f}"
        for name, value in row["test"].items():
            assert cells[name] == f"{value:.4f}"
        assert (cells["evaluations"], cells["ingredients"]) == (str(row["evaluations"]), str(row["ingredients"]))


def test_a_search_that_is_not_the_highest_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    def row(name: str, right: int) -> Row:
        labels = np.zeros(50, dtype=np.int64)
        found = LabelledOutcomes(labels, (np.arange(50) >= right).astype(np.int64), np.full(50, 0.5))
        splits = {"validation": {"accuracy": right / 50, "nll": 0.5}}
        return Row(name, splits, {"validation": found}, 1, 1, 50, 0, 0.1, 1, notes={"share": 0.0})

    for right, as_json in ((39, False), (40, False), (39, True)):
        report = report_of([row("uniform", 39), row("greedy", 40), row("search", right)])
        show_run(Screen(quiet=False, as_json=as_json), report, Path("run"))
        printed = capsys.readouterr().out
        *_, last = (line for line in printed.splitlines() if not line.startswith("Use ")) if not as_json else ("",)
        assert ("search scores" in printed) is (right == 39 and not as_json)
        assert right == 40 or as_json or last.startswith("search scores 0.7800 on selection and greedy 0.8000: it is ")


def columns_of(line: str) -> list[str]:
    """The cells of a line: two spaces or more stand between them."""
    return re.split(r"\s{2,}", line.strip())


# report


def test_report_shows_what_the_search_showed(home: Path, tmp_path: Path) -> None:
    searched = invoke("search", *options_of(home), "--trials", "6", "-q")
    result = invoke("report", home / "run")
    assert (result.exit_code, result.stdout) == (0, searched.stdout)
    page = tmp_path / "pages" / "report.html"
    result = invoke("report", home / "run", "--html", page, "--json")
    assert json.loads(result.stdout) == json.loads((home / "run" / "report.json").read_text())
    assert f"wrote {page}" in result.stderr
    assert "best trial so far" in page.read_text()


def test_report_shows_what_the_comparison_showed(home: Path, tmp_path: Path) -> None:
    options = [*options_of(home), "--out", tmp_path / "run", "--methods", "individual,greedy,lines:alphas=0/-1"]
    compared = invoke("compare", *options, "-q")
    result = invoke("report", tmp_path / "run", "-q")
    assert result.exit_code == 0
    assert result.stdout == compared.stdout
    assert result.stderr == compared.stderr.splitlines(keepends=True)[-1], "warned of once, told at the end"


def test_report_lists_the_front_and_says_where_a_search_ended_early(home: Path, tmp_path: Path) -> None:
    run_folder = Path(shutil.copytree(home / "run", tmp_path / "run"))
    report = json.loads((run_folder / "report.json").read_text())
    del report["checksum"]
    points = [{"trial": number, "values": [0.25, number / 8], "on_front": number == 3} for number in range(4)]
    objectives = [{"name": name, "weight": 0.5} for name in ("validation", "synthetic")]
    front = {"objectives": objectives, "signal": "accuracy", "direction": "maximize"}
    report["front"] = {**front, "points": points, "picked": 3}
    (run_folder / "report.json").write_text(json.dumps({**report, "finished": False}))
    result = invoke("report", run_folder)
    assert result.exit_code == 0
    assert ["3", "0.2500", "0.3750", "picked"] in [columns_of(line) for line in result.stdout.splitlines()]
    assert "stopped before all its trials" in result.stderr


def test_report_without_a_journal_leaves_a_picture_out(home: Path, tmp_path: Path) -> None:
    run_folder = Path(shutil.copytree(home / "run", tmp_path / "run", ignore=shutil.ignore_patterns("*.journal")))
    page = tmp_path / "report.html"
    result = invoke("report", run_folder, "--html", page)
    assert result.exit_code == 0
    assert "the picture of the search is left out" in result.stderr
    assert "--storage" in result.stderr
    assert "best trial so far" not in page.read_text()
    (run_folder / "study.journal").write_text("nothing\n")
    assert "study.journal: line 1: not JSON" in invoke("report", run_folder, "--html", page).stderr


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "not a run folder"),
        ({"run.toml": ""}, "the run has no report yet; the same command that began it continues"),
        (
            {"run.toml": "", "report.json": '{"metric": "accuracy"}'},
            "another version of mixopt (report format an older one, expected 2)",
        ),
        ({"run.toml": "", "report.json": "no JSON"}, "report.json: not JSON"),
    ],
)
def test_report_of_no_finished_run(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    result = invoke("report", tmp_path)
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr
    assert message in result.stderr


# compare


def three_rows(splits: list[str], failed: dict[str, str] | None = None) -> Report:
    """A report of three rows over 100 random samples per split, and of rows that failed."""
    random = np.random.default_rng(0)
    labels = {split: random.integers(0, 3, 100) for split in splits}
    rows: list[Row | Failure] = []
    for name in ("individual", "greedy", "learned_by_layer:affine:groups=block"):
        samples = {}
        for split in splits:
            wrong = random.random(100) < 0.3
            samples[split] = LabelledOutcomes(labels[split], np.where(wrong, 3, labels[split]), random.random(100))
        metrics = {split: {"accuracy": float(each.correct.mean())} for split, each in samples.items()}
        rows.append(Row(name, metrics, samples, 4, 4, 400, 0, 0.5, 3))
    every = [*rows, *(Failure(*each) for each in (failed or {}).items())]
    return report_of(every, best="greedy", command="compare", failed=failed or {})


@pytest.fixture
def comparing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Give ``mixopt.compare`` a result without work; what it is called with comes into the list."""

    def prepare(splits: tuple[str, ...] = ("validation", "test"), **failed: str) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        def compare(models: Any, *, study: Any, listener: Listener, **options: Any) -> SimpleNamespace:
            calls.append({"models": models, "study": study, **options})
            listener.info("a notice")
            return SimpleNamespace(folder=tmp_path / "run", report=three_rows(list(splits), failed), failed=failed)

        monkeypatch.setattr(mixopt, "compare", compare)
        return calls

    return prepare


Comparing = Callable[..., list[dict[str, Any]]]


def test_options_reach_the_comparison(comparing: Comparing) -> None:
    calls = comparing()
    text = (
        "--models pool --methods greedy,wise_ft:0.5 --methods uniform --study s.toml --family open_clip "
        "--model ViT-B-32 --base b.pt --ingredients a*.pt --ingredients b*.pt --classnames red --classnames green "
        "--templates {} --data v.npz --test t=t.npz --test u=u.npz --limit 7 --metric nll --greedy-rule strict "
        "--from greedy,uniform --from wise_ft --batchnorm recompute --confirm 0.3 "
        "--seed 3 --device cpu --batch-size 5 --precision bf16 --compile --stack bf16 --dtype fp16 --cache c --out o "
        "--force"
    )
    assert invoke("compare", *text.split()).exit_code == 0
    assert [{key: value for key, value in call.items() if value is not None} for call in calls] == [
        {
            "models": Path("pool"), "methods": ["greedy,wise_ft:0.5", "uniform"], "study": Path("s.toml"),
            "family": "open_clip", "model": "ViT-B-32", "base": Path("b.pt"), "ingredients": ["a*.pt", "b*.pt"],
            "classnames": ["red", "green"], "templates": ["{}"],
            "data": {"validation": Path("v.npz"), "test": {"t": Path("t.npz"), "u": Path("u.npz")}}, "limit": 7,
            "metric": "nll", "from_": ["greedy,uniform", "wise_ft"], "greedy_rule": "strict",
            "batchnorm": "recompute", "confirm": 0.3, "seed": 3, "device": "cpu", "batch_size": 5, "precision": "bf16",
            "compile": True, "stack": "bf16", "dtype": "fp16", "cache": Path("c"), "out": Path("o"),
            "force": True,
        }
    ]  # fmt: skip
    spec = load_spec({key: value for key, value in calls[0].items() if key != "study"})
    assert spec.methods == ("greedy", "wise_ft:0.5", "uniform")
    assert spec.from_ == ("greedy", "uniform", "wise_ft")


def test_options_not_given_are_left_to_the_files(comparing: Comparing) -> None:
    calls = comparing()
    assert invoke("compare", "--study", "s.toml").exit_code == 0
    assert {key: value for key, value in calls[0].items() if value is not None} == {"study": Path("s.toml")}


def test_new_options_reach_the_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = []

    def search(models: Any, **options: Any) -> SimpleNamespace:
        calls.append(options)
        return SimpleNamespace(folder=tmp_path, report=three_rows(["validation"]))

    monkeypatch.setattr(mixopt, "search", search)
    assert (
        invoke(
            "search",
            "--models",
            "x",
            "--from",
            "greedy,uniform",
            "--batchnorm",
            "average",
            "--precision",
            "fp16",
            "--preset",
            "fast",
        ).exit_code
        == 0
    )
    assert (calls[0]["from_"], calls[0]["batchnorm"]) == (["greedy,uniform"], "average")
    assert calls[0]["precision"] == "fp16"
    assert (calls[0]["preset"], calls[0]["trials"]) == ("fast", None)


@pytest.mark.parametrize(("preset", "trials"), [(None, 200), ("fast", 30), ("default", 200), ("thorough", 1000)])
def test_preset_sets_what_nothing_else_does(tmp_path: Path, preset: str | None, trials: int) -> None:
    assert load_spec({"models": tmp_path, "preset": preset}).trials == trials
    assert load_spec({"models": tmp_path, "preset": preset, "trials": 7}).trials == 7
    (tmp_path / "study.toml").write_text("trials = 9")
    assert load_spec({"models": tmp_path, "preset": preset}, tmp_path / "study.toml").trials == 9
    (tmp_path / "pool.toml").write_text('preset = "thorough"')
    assert load_spec({"models": tmp_path, "preset": preset}).trials == (trials if preset else 1000)


def test_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MixoptError, match="--preset: input should be 'fast', 'default' or 'thorough'"):
        load_spec({"models": tmp_path, "preset": "quick"})


def test_a_run_keeps_what_its_preset_meant(clip_pool: Path, tmp_path: Path) -> None:
    options = ["--models", clip_pool, "--out", tmp_path / "run", "--cache", tmp_path / "cache", "--device", "cpu"]
    assert invoke("search", *options, "--preset", "fast", "--limit", "30", "-q").exit_code == 0
    kept = tomllib.loads((tmp_path / "run" / "run.toml").read_text())
    assert (kept["preset"], kept["trials"]) == ("fast", 30)
    # The same study goes on, by its number of trials as well.
    again = invoke("search", *options, "--trials", "32", "--limit", "30", "--json", "-q")
    assert json.loads(again.stdout)["trials"]["complete"] == 32


@pytest.mark.parametrize("command", ["search", "compare"])
def test_unknown_batchnorm_is_refused(clip_pool_template: Path, tmp_path: Path, command: str) -> None:
    result = invoke(command, "--models", clip_pool_template, "--batchnorm", "mean", "--out", tmp_path)
    assert result.exit_code == 2
    assert "error:" in result.stderr
    assert "--batchnorm: input should be 'average', 'recompute' or 'auto' (found 'mean')" in result.stderr


def test_number_of_ingredients_is_not_ignored_by_compare(comparing: Comparing) -> None:
    calls = comparing()
    result = invoke("compare", "--models", "x", "--ingredients", "5")
    assert result.exit_code == 2
    assert not calls
    assert "--ingredients 5: a number is for mixopt search" in " ".join(result.stderr.replace("│", " ").split())


def test_comparison_shows_scores_then_differences(comparing: Comparing, tmp_path: Path) -> None:
    comparing()
    result = invoke("compare", "--models", "x")
    assert (result.exit_code, result.stderr) == (0, "a notice\n")
    report = three_rows(["validation", "test"])
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    assert lines[0] == f"accuracy by method; {tmp_path / 'run'}"
    assert lines[6] == "paired difference in accuracy, exact McNemar p"
    for at, (header, cells) in ((1, table(report, intervals=True, details=True)), (7, comparisons(report))):
        assert [columns_of(line) for line in (lines[at], *lines[at + 2 : at + 5])] == [header, *cells]
    assert "±" in lines[3]
    assert "intervals" not in result.stdout, "a line about them is only for terminals that are too narrow"


ON_A_TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.mark.parametrize("columns", [70, 100, 250])
def test_terminal_shows_what_it_has_room_for(
    comparing: Comparing, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    splits = ("validation", "test", "sketch")
    comparing(splits)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    result = invoke("compare", "--models", "x", "-q")
    assert result.exit_code == 0
    assert ESCAPE in result.stdout, "it takes stdout for a terminal"
    plain = " ".join(ON_A_TERMINAL.sub("", result.stdout).split())
    report = three_rows(list(splits))
    assert "…" not in plain, "nothing is cut off"
    found, whole = widths(report), columns == 250
    below = ", ".join(f"{name} ±{width:.4f}" for name, width in found.items())
    assert (f"95 % intervals are at most: {below}" in plain) != whole
    assert ("paired tests against individual and greedy: in report.json" in plain) != whole
    assert ("not shown: " in plain) != whole
    for row in [*table(report, intervals=True, details=True)[1], *comparisons(report)[1]] if whole else []:
        for cell in row:
            assert cell in plain


@pytest.mark.parametrize("more", [[], ["--quiet"], ["--json"], ["--json", "--quiet"]])
def test_rows_that_failed_are_told_last_and_make_the_exit_code(comparing: Comparing, more: list[str]) -> None:
    reason = "it needs the base:\n  give [bold] --base FILE"
    comparing(model_stock=reason, lines="no depth")
    result = invoke("compare", "--models", "x", *more)
    assert result.exit_code == EXIT_SOME_FAILED == 3
    told = "failed: model_stock: it needs the base: give [bold] --base FILE\nfailed: lines: no depth\n"
    assert result.stderr == ("" if "--quiet" in more else "a notice\n") + told
    if "--json" in more:
        report = json.loads(result.stdout)
        assert report == three_rows(["validation", "test"], {"model_stock": reason, "lines": "no depth"}).as_dict()
        assert report["methods"][3] == {"name": "model_stock", "search": None, "test": {}, "error": reason}
    else:
        header, *rows = (columns_of(line) for line in result.stdout.splitlines()[2:] if line.strip())
        (failed,) = (row for row in rows if row[0] == "model_stock")
        assert failed == ["model_stock", *("-" for _ in header[1:])]


def test_no_difference_to_show(comparing: Comparing, monkeypatch: pytest.MonkeyPatch) -> None:
    comparing()
    monkeypatch.setattr("mixopt.reporting.tables.comparisons", lambda report: (["method"], [["uniform"]]))
    result = invoke("compare", "--models", "x")
    assert result.exit_code == 0
    assert "McNemar" not in result.stdout


def test_comparison_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MixoptError("no such row")

    monkeypatch.setattr(mixopt, "compare", broken)
    result = invoke("compare", "--models", "x")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "error: no such row\n")
    assert invoke("compare", "--models", "x", "--test", "nothing").exit_code == 2


def test_interrupted_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def hit(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal was not heard")

    monkeypatch.setattr(mixopt, "compare", hit)
    result = invoke("compare", "--models", "x")
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted; scores so far are kept: the same command again goes on from here\n"


def test_comparison_of_a_pool(home: Path, tmp_path: Path) -> None:
    text = (home / "pool" / "pool.toml").read_text()
    pool = Path(shutil.copytree(home / "pool", tmp_path / "pool"))
    (pool / "pool.toml").write_text(text.replace('base = "base.safetensors"\n', ""))
    options = ["--models", pool, "--out", tmp_path / "out", "--cache", home / "cache", "--device", "cpu"]
    result = invoke("compare", *options, "--methods", "individual,wise_ft", "--methods", "greedy", "--json", "-q")
    assert result.exit_code == EXIT_SOME_FAILED, result.output
    report = json.loads(result.stdout)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    scores = {row["name"]: row["search"] for row in report["methods"]}
    searched = {row["name"]: row["search"] for row in json.loads((home / "stdout").read_text())["methods"]}
    assert scores["wise_ft"] is None
    assert {name: scores[name] for name in ("individual", "greedy")} == {
        name: searched[name] for name in ("individual", "greedy")
    }
    assert re.fullmatch(r"warning: wise_ft failed: .*\nfailed: wise_ft: .*base.*\n", result.stderr)
    assert invoke("compare", *options, "--methods", "individual,greedy", "-q").exit_code == 0


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
        "split validation: 96 samples, 4 classes",
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
        "val": row["metrics"]["validation"], "test": row["metrics"]["test"], "shift": row["metrics"]["shift"]
    }  # fmt: skip


def test_evaluate_shows_a_table(home: Path) -> None:
    more = ["--data", home / "pool" / "test.npz", "--cache", home / "cache", "--verify"]
    result = invoke("evaluate", home / "run" / "model.safetensors", *more)
    row = json.loads((home / "run" / "report.json").read_text())["methods"][-1]["metrics"]["test"]
    cells = next(line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["test"])
    assert cells == ["test", "96", *(f"{value:.4f}" for value in row.values())]
    assert list(row)[:3] == ["accuracy", "nll", "balanced_accuracy"]
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

    monkeypatch.setattr(mixopt, "search", broken)
    result = invoke("search", *options_of(home))
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)
    assert "error:" not in result.stderr, "a bug is not dressed up as bad input"


BROKEN = """
import sys
import mixopt
def broken(*arguments, **options):
    raise ZeroDivisionError("a bug")
mixopt.search = broken
sys.argv = ["mixopt", "search", "--models", "anything"]
from mixopt.cli import main
from tests.reports import report_of
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

        monkeypatch.setattr(mixopt, "search", hit)

    return prepare


@pytest.mark.usefixtures("interruptible")
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
