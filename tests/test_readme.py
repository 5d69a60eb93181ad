"""What the README promises is run: its commands, its Python, its list of files."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from mixopt.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("mixopt ")]


@pytest.fixture
def tour(clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which the demo has made its pool, as far as a reader can tell."""
    pool = Path(shutil.copytree(clip_pool_template, tmp_path / "runs" / "demo" / "pool"))
    shutil.copy(pool / "shift.npz", pool / "inverted.npz")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_commands_run_one_after_the_other(tour: Path) -> None:
    assert len(commands()) >= 4
    for command in commands():
        arguments = shlex.split(command.replace("--trials 200", "--trials 4"))[1:]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command}: {result.output}"
    assert (tour / "fused.safetensors").read_bytes() == (tour / "runs" / "pool" / "model.safetensors").read_bytes()


def test_python_examples_run_one_after_the_other(tour: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tour))
    examples = blocks("python")
    assert len(examples) == 4
    for example in examples:
        exec(compile(example.replace("trials=20", "trials=4"), "README.md", "exec"), {})


def test_the_pool_toml_of_the_readme_is_accepted(clip_pool: Path) -> None:
    from mixopt import load_spec

    (clip_pool / "pool.toml").write_text(blocks("toml")[0])
    spec = load_spec({"models": clip_pool})
    assert spec.model == "ViT-B-32"
    assert spec.data.test["sketch"] == clip_pool / "sketch"


def test_the_two_commands_are_those_that_ci_runs() -> None:
    first, second = blocks("sh")[:2]
    ci = (ROOT / ".ci" / "run").read_text()
    assert "pip install '.[demo]' && mixopt demo" in first
    assert second.strip() == "pip install -e '.[test]' && python -m pytest -n 2 -q"
    assert "README.md" in ci


def test_every_command_and_every_module_is_named() -> None:
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"mixopt {name}" in README
    for path in (ROOT / "mixopt").iterdir():
        listed = path.name if path.suffix == ".py" else f"{path.name}/"
        if not path.name.startswith("_") and (path.suffix == ".py" or path.is_dir()) and path.stem != "version":
            assert re.search(rf"^  {re.escape(listed)} ", README, re.MULTILINE), f"{listed} is not in the file tree"


def test_no_file_names_the_development_folder_or_hosts() -> None:
    for folder in ("mixopt", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "shared/" not in path.read_text(), path
