"""House rules, checked from the sources: who may import whom, who prints, what no file may name."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PACKAGE = Path(__file__).parent.parent / "mixopt"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}

# From the ground up. A module imports from floors below its own and from its own package, not from above or beside.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "version"),
    ("memory",),
    ("untrusted",),
    ("files", "imports", "listener"),
    ("values",),
    ("weights", "spaces", "surface", "reporting", "spec", "mix"),
    ("scoring", "ingredients", "trackers"),
    ("families", "data"),
    ("assemble",),
    ("methods", "study", "workers"),
    ("comparison",),
    ("stages", "diagnosis"),
    ("runs",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
NO_TORCH = {"errors", "memory", "untrusted", "files", "listener", "values", "spaces", "reporting", "spec", "trackers"}


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


def package_of(name: str) -> str:
    return name.split(".")[0]


def floor_of(name: str) -> int:
    return next(number for number, packages in enumerate(FLOORS) if package_of(name) in packages)


@pytest.mark.parametrize("name", list(MODULES))
def test_imports_go_one_way(name: str) -> None:
    for other in own_imports(name):
        allowed = package_of(other) == package_of(name) or floor_of(other) < floor_of(name)
        assert allowed, f"{name} imports {other} from above or beside"


@pytest.mark.parametrize("name", list(MODULES))
def test_families_and_data_are_assembled_in_one_place(name: str) -> None:
    if package_of(name) in ("families", "data", "assemble"):
        return
    # The contract of a family may be named anywhere; what opens one may not.
    opened = {item for item in imports_of(MODULES[name]) if item.startswith(("mixopt.families", "mixopt.data"))}
    assert opened <= {f"mixopt.families{each}" for each in ("", ".Family", ".Compared")}, name


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] in NO_TORCH])
def test_values_know_no_torch(name: str) -> None:
    assert not {item for item in imports_of(MODULES[name]) if item.split(".")[0] in {"torch", "open_clip"}}


@pytest.mark.parametrize("name", list(MODULES))
def test_libraries_stay_where_they_belong(name: str) -> None:
    found = {item.split(".")[0] for item in imports_of(MODULES[name])}
    if package_of(name) != "study":
        assert "optuna" not in found
    if not name.startswith("families.open_clip") and name != "demo.tiny_clip":
        assert "open_clip" not in found
    if name != "families.peft_adapters":
        assert "peft" not in found
    if name != "families.timm_library":
        assert "timm" not in found
    if name not in ("families.torchvision", "data.shifts"):
        assert "torchvision" not in found
    if not name.startswith("families.transformers"):
        assert "transformers" not in found
    if name not in ("families.hub", "families.transformers.library"):
        assert "huggingface_hub" not in found
    if not name.startswith("weights.checkpoints"):
        assert "safetensors" not in found
    if not name.startswith("reporting.plots"):
        assert "matplotlib" not in found
    if name != "data.arrow":
        assert "pyarrow" not in found
    if name != "workers.processes":
        assert "pebble" not in found
    if name not in ("workers", "workers.cluster", "workers.scheduler"):  # the first names a type alone
        assert "distributed" not in found
    for tracker in ("mlflow", "tensorboard", "trackio", "wandb"):
        if name != f"trackers.{tracker}":
            assert tracker not in found
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


def calls_in(name: str) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(node, ast.Call)]


def called(node: ast.Call) -> str:
    """The dotted name of what is called, as it is written."""
    return ast.unparse(node.func)


def test_code_is_imported_by_name_where_the_guide_says() -> None:
    """`mixopt guide trust` lists them: users' functions, samplers; the others have names of mixopt's own."""
    found = {name for name in MODULES if any(called(node).endswith("import_module") for node in calls_in(name))}
    assert found == {"imports", "study.samplers", "families", "data", "methods", "trackers"}
    users = {name for name in MODULES if any(called(node) == "import_function" for node in calls_in(name))}
    assert users == {"families.custom", "scoring.own_objective"}


@pytest.mark.parametrize("name", list(MODULES))
def test_no_file_brings_code(name: str) -> None:
    for node in calls_in(name):
        options = {each.arg: ast.unparse(each.value) for each in node.keywords}
        if called(node) == "torch.load":
            assert options["weights_only"] == "True"
        if called(node) == "np.load":
            assert options["allow_pickle"] == "False"
        assert called(node) not in {"eval", "exec", "joblib.load", "pickle.load", "pickle.loads", "pickle.Unpickler"}


@pytest.mark.parametrize("name", list(MODULES))
def test_text_is_utf_8_in_every_locale(name: str) -> None:
    for node in calls_in(name):
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "write_text"):
            assert "encoding" in {each.arg for each in node.keywords}, ast.unparse(node)


def test_errors_of_every_kind_are_caught_nowhere_but_where_they_go_on() -> None:
    """What libraries raise is listed in `mixopt.untrusted.READER_ERRORS`; the rest are mistakes, and must show."""
    found = {name for name, path in MODULES.items() if "except Exception" in path.read_text()}
    assert found == {"data.decode", "scoring.compiled"}


def test_the_command_line_starts_without_torch() -> None:
    import subprocess

    code = "import sys, mixopt, mixopt.cli; sys.exit(bool({'torch', 'optuna', 'matplotlib'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_needs_no_pictures() -> None:
    import subprocess

    code = "import sys, mixopt.runs.search, mixopt.runs.compare; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Modules by another name than their package's.
PACKAGES = {
    "mlflow": "mlflow-skinny",
    "yaml": "pyyaml",
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
    "sklearn": "scikit-learn",
    "tomli_w": "tomli-w",
}


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    # A command that reads journals by itself, and a driver that SQLAlchemy imports.
    not_imported = ("test", "dev", "dashboard", "postgresql")
    extras = (lines for name, lines in project["optional-dependencies"].items() if name not in not_imported)
    declared = [*project["dependencies"], *(line for lines in extras for line in lines)]
    tops = {item.split(".")[0] for path in MODULES.values() for item in imports_of(path)}
    imported = tops - set(sys.stdlib_module_names) - {"mixopt"}
    assert {Requirement(line).name for line in declared} == {PACKAGES.get(name, name) for name in imported}


MOST_LINES, MOST_PARAMETERS = 350, 7


@pytest.mark.parametrize("name", list(MODULES))
def test_no_module_is_over_350_lines(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", [name for name in MODULES if package_of(name) != "cli"])
def test_no_function_takes_more_than_seven_parameters(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            each = node.args
            taken = {argument.arg for argument in [*each.posonlyargs, *each.args, *each.kwonlyargs]} - {"self", "cls"}
            assert len(taken) <= MOST_PARAMETERS, f"{name}, line {node.lineno}: {sorted(taken)}"


TESTS = sorted(Path(__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_no_test_imports_from_tests(path: Path) -> None:
    assert not [item for item in imports_of(path) if item.startswith("tests.") and ".test_" in item]


def test_every_module_stands_on_a_floor() -> None:
    for name in MODULES:
        floor_of(name)
