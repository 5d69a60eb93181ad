"""What the README and the guide promise is run: their commands, their Python, their lists of files and options."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from mixopt.cli import app
from mixopt.cli.guide import ORDER, page, topics
from mixopt.spec import StudySpec
from mixopt.spec.option import described
from mixopt.spec.reference import option_reference
from tests.tiny_images import write_images, write_timm_sweep
from tests.tiny_transformers import write_adapters, write_sentences, write_text_model, write_text_pool
from tests.workers.there import there

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "mixopt" / "guide"
README = (ROOT / "README.md").read_text()
PAGES = {"README": README, **{path.stem: path.read_text() for path in sorted(GUIDE.glob("*.md"))}}

# A server that is nobody's.
DATABASE = "postgresql://me@db.example.org/studies"
SCHEDULER = "tcp://10.0.0.5:8786"


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh", text) for line in block.splitlines()]
    return [line for line in lines if line.startswith("mixopt ")]


@pytest.fixture
def tour(clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which the demo has made its pool, as far as a reader can tell."""
    pool = Path(shutil.copytree(clip_pool_template, tmp_path / "runs" / "demo" / "pool"))
    shutil.copy(pool / "shift.npz", pool / "inverted.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write_folders(place: Path) -> None:
    """What the examples of the page about folders begin with."""
    write_text_pool(place / "out")
    write_text_model(place / "base", 1)
    write_adapters(place / "adapters", place / "base")
    for split, seed in (("val", 0), ("test", 1)):
        write_sentences(place / f"{split}.jsonl", seed)
        write_images(place / f"{split}.npz", 3, 160, seed)
    write_timm_sweep(place / "sweep", "test_vit", 3)


@pytest.fixture
def scheduler(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a scheduler with a worker, for the page that names one."""
    if SCHEDULER not in PAGES[request.getfixturevalue("name")]:
        yield SCHEDULER
        return
    with there(tmp_path_factory.mktemp("there")) as cluster:
        cluster.add("one", "--nthreads", "1")
        yield cluster.address


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if commands(text)])
def test_commands_run_one_after_the_other(name: str, tour: Path, scheduler: str) -> None:
    if name == "folders":
        write_folders(tour)
    for command in commands(PAGES[name]):
        few = (
            command.replace("--trials 200", "--trials 4")
            .replace(DATABASE, "sqlite:///studies.db")
            .replace(SCHEDULER, scheduler)
        )
        arguments = shlex.split(few)[1:]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}: {result.output}"
    if name == "folders":  # its Python loads what the commands left
        for example in blocks("python", PAGES[name]):
            exec(compile(example, f"{name}.md", "exec"), {})
    if name == "README":
        assert (tour / "fused.safetensors").read_bytes() == (tour / "runs" / "pool" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if blocks("python", text) and name != "folders"])
def test_python_examples_run_one_after_the_other(name: str, tour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tour))
    for example in blocks("python", PAGES[name]):
        exec(compile(example.replace("trials=20", "trials=4"), f"{name}.md", "exec"), {})


def test_there_is_something_to_run() -> None:
    assert len(commands(README)) >= 6
    assert {name: len(blocks("python", text)) for name, text in PAGES.items() if blocks("python", text)} == {
        "README": 1,
        "files": 3,
        "folders": 2,
        "python": 3,
        "surface": 1,
    }
    assert {"search", "recipes", "several-splits", "files"} <= {name for name, text in PAGES.items() if commands(text)}


@pytest.mark.parametrize("name", ["README", "files"])
def test_the_pool_toml_is_accepted(name: str, clip_pool: Path) -> None:
    from mixopt import load_spec

    (clip_pool / "pool.toml").write_text(blocks("toml", PAGES[name])[0])
    spec = load_spec({"models": clip_pool})
    assert spec.model == "ViT-B-32"
    assert spec.data.test["sketch"] == clip_pool / "sketch"


def test_the_two_commands_are_those_that_ci_runs() -> None:
    first, second = blocks("sh", README)[:2]
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install '.[demo]' && mixopt demo" in first
    assert second.strip() == "pip install -e '.[test]' && python -m pytest -n 2 -q"
    assert "README.md" in ci


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_command_is_named() -> None:
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert any(f"mixopt {name}" in text for text in PAGES.values()), name


def test_every_module_is_in_the_file_tree() -> None:
    for path in (ROOT / "mixopt").iterdir():
        listed = path.name if path.suffix == ".py" else f"{path.name}/"
        if not path.name.startswith("_") and (path.suffix == ".py" or path.is_dir()) and path.stem != "version":
            tree = PAGES["architecture"]
            assert re.search(rf"^  {re.escape(listed)} ", tree, re.MULTILINE), f"{listed} is not in the file tree"


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files(name: str) -> None:
    folder = ROOT if name == "README" else GUIDE
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        assert link.startswith("https://") or (folder / link).is_file(), link


@pytest.mark.parametrize("name", PAGES)
def test_pages_name_options_that_are(name: str) -> None:
    known = {"--help"} | {
        option
        for command in typer.main.get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    text = re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL)
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert found <= known, found - known


# The guide


def guide(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["guide", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_guide_lists_its_topics_by_their_first_lines() -> None:
    code, listed, _ = guide()
    assert code == 0
    assert set(topics()) == {path.stem for path in GUIDE.glob("*.md")} | {"options"}
    assert topics() == list(ORDER)
    for name, line in zip(topics(), listed.splitlines(), strict=False):
        assert line.split(maxsplit=1) == [name, page(name).splitlines()[0].removeprefix("# ")]


@pytest.mark.parametrize("name", topics())
def test_a_page_is_shown_as_it_is_where_there_is_no_terminal(name: str) -> None:
    text = page(name)
    assert text.startswith("# ")
    assert guide(name) == (0, text.rstrip() + "\n", "")
    assert f"| [{name}](mixopt/guide/{name}.md) |" in README or name == "options"


def test_a_page_is_typeset_and_paged_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    shown: list[str] = []
    monkeypatch.setattr("pydoc.pager", shown.append)
    code, printed, _ = guide("search")
    assert (code, printed) == (0, "")
    (text,) = shown
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", text)
    assert "How a search finds its mix" in plain
    assert "**Baselines.**" not in plain
    assert "Learned again" in plain
    assert max(map(len, plain.splitlines())) <= 70


def test_an_unknown_topic_is_one_message() -> None:
    assert guide("serch") == (
        2,
        "",
        f"error: unknown topic 'serch'; did you mean 'search'? Known: {', '.join(sorted(topics()))}\n",
    )


def test_the_guide_as_json_holds_the_pages() -> None:
    import json

    assert json.loads(guide("search", "--json")[1]) == {"search": page("search")}
    assert list(json.loads(guide("--json")[1])) == topics()


def test_the_reference_has_every_option_once() -> None:
    text = option_reference()
    options = described(StudySpec)
    fields = {each.key.partition(".")[0].replace("from", "from_") for each in options}
    assert fields == set(StudySpec.model_fields)
    for each in options:
        assert len(re.findall(rf"^- `{each.flag}[` ]", text, re.MULTILINE)) == 1, each.flag
        assert each.option.help in text
        assert f"(default: {each.default})".replace("<", "\\<") in text or not each.default


@pytest.mark.parametrize("topic", ["search", "options"])
def test_the_guide_comes_without_torch(topic: str) -> None:
    code = (
        f"import sys; sys.argv = ['mixopt', 'guide', {topic!r}]\n"
        "from mixopt.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "sys.exit(bool({'torch', 'optuna', 'matplotlib'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# ")


def test_the_guide_ships_with_the_package() -> None:
    import tomllib

    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["mixopt"]
    assert "guide/*.md" in data


def test_no_file_names_the_development_folder_or_hosts() -> None:
    for folder in ("mixopt", "benchmarks"):
        for path in [*(ROOT / folder).rglob("*.py"), *GUIDE.glob("*.md"), ROOT / "README.md"]:
            assert "shared/" not in path.read_text(), path


def test_the_guides_own_family_and_objective_drive_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import save_file

    import mixopt

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for example in blocks("python", PAGES["files"]):
        name = example.split("\n")[0].removeprefix("# ").split(";")[0].split()[0]
        (tmp_path / name).write_text(example)
    import importlib

    texts = importlib.import_module("mytexts")
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(3):
        torch.manual_seed(number)
        save_file(texts.Bag().state_dict(), pool / f"model_{number}.safetensors")
    lines = [f'{{"text": "{"word " * (number % 5 + 1)}", "label": {number % 2}}}\n' for number in range(20)]
    (pool / "val.jsonl").write_text("".join(lines))
    options: dict[str, Any] = {"family": "mytexts:bag", "cache": tmp_path / "cache", "device": "cpu", "trials": 3}
    found = mixopt.search(pool, data={"validation": pool / "val.jsonl"}, out=tmp_path / "texts", **options)
    assert found.report.splits["validation"].samples == 20
    monkeypatch.setattr(texts.Bag, "forward", lambda self, *_: torch.zeros(8, 2) + self.head.bias)
    scored = mixopt.search(pool, data={"validation": "myscores:likelihood"}, out=tmp_path / "scores", **options)
    assert scored.report.metric == "score"
    assert scored.report.splits["validation"].samples == 8
