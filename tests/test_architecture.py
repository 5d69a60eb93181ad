"""House rules, checked from the sources: who may import whom, who prints, what no file may name."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mixopt"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}

# Each layer may import from those below it and from its own; adapters are listed apart.
LAYERS = (
    {"errors", "version"},
    {"compiled", "feed", "files", "listener", "metrics", "race", "split", "cobyla", "memory", "stopwatch"},
    {"checkpoints", "groups"},
    {"mix", "pool"},
    {"stack"},
    {"builder", "evaluator", "inspection", "prefix"},
    {"batchnorm", "cache", "keys", "precision", "score"},
    {"objective"},
    {"spec", "spaces", "spaces.simplex", "report", "runfolder"},
    {"methods", "search", "assemble", "saving"},
    {"ensembles", "finalists"},
    {"lineup"},
    {"crowning", "refit", "stages", "starts", "verbs"},
    {"refinement"},
    {"exploration"},
    {"run"},
    {"demo"},
    {"cli", "__main__"},
)
ADAPTERS = {"families": {"assemble", "saving", "verbs", "demo"}, "data": {"assemble", "demo"}}
NO_TORCH = {
    "errors",
    "files",
    "metrics",
    "race",
    "split",
    "groups",
    "mix",
    "spaces",
    "report",
    "spec",
    "listener",
    "runfolder",
}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(name: str) -> set[str]:
    found = {item.removeprefix("mixopt.") for item in imports_of(MODULES[name]) if item.startswith("mixopt.")}
    return {item for item in found if item in MODULES}


def layer_of(name: str) -> int:
    top = name.split(".")[0]
    return next(number for number, layer in enumerate(LAYERS) if name in layer or top in layer)


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] not in ADAPTERS])
def test_imports_go_one_way(name: str) -> None:
    for other in own_imports(name):
        family = other.split(".")[0]
        if family in ADAPTERS:
            assert name in ADAPTERS[family], f"{name} imports the adapter {other}"
        else:
            assert layer_of(other) <= layer_of(name), f"{name} imports {other} from above"


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in ADAPTERS])
def test_adapters_see_no_run(name: str) -> None:
    above = {"run", "verbs", "stages", "search", "assemble", "saving", "methods", "objective", "cli"}
    assert not own_imports(name) & above


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in NO_TORCH])
def test_values_know_no_torch(name: str) -> None:
    assert not {item for item in imports_of(MODULES[name]) if item.split(".")[0] in {"torch", "open_clip"}}


@pytest.mark.parametrize("name", list(MODULES))
def test_libraries_stay_where_they_belong(name: str) -> None:
    found = {item.split(".")[0] for item in imports_of(MODULES[name])}
    if name.split(".")[0] != "search":
        assert "optuna" not in found
    if name not in ("families.open_clip", "demo"):
        assert "open_clip" not in found
    if name != "checkpoints":
        assert "safetensors" not in found
    if name != "report.plots":
        assert "matplotlib" not in found
    if name.split(".")[0] != "cli":
        assert "typer" not in found
        assert "rich" not in found


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] != "cli"])
def test_only_the_command_line_prints_or_exits(name: str) -> None:
    called = {
        node.func.id
        for node in ast.walk(ast.parse(MODULES[name].read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"print", "exit", "quit", "input"}
    assert "sys.exit" not in MODULES[name].read_text()


def test_the_command_line_starts_without_torch() -> None:
    import subprocess

    code = "import sys, mixopt, mixopt.cli; sys.exit(bool({'torch', 'optuna', 'matplotlib'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_needs_no_pictures() -> None:
    import subprocess

    code = "import sys, mixopt.run; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_module_stands_in_a_layer() -> None:
    for name in MODULES:
        if name.split(".")[0] not in ADAPTERS:
            layer_of(name)
