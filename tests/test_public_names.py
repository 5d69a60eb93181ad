"""What a user may import is listed, exists, and is documented."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import mixopt
from mixopt import errors


def test_all_is_sorted_and_complete() -> None:
    assert list(mixopt.__all__) == sorted(mixopt.__all__)
    assert set(mixopt._PLACES) < set(mixopt.__all__)


@pytest.mark.parametrize("name", mixopt.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    value = getattr(mixopt, name)
    if name != "__version__":
        assert inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mixopt.nothing  # noqa: B018


VERBS = ["search", "compare", "diagnose", "build", "evaluate", "init", "inspect", "report", "log"]


@pytest.mark.parametrize("name", VERBS)
def test_the_verbs_are_what_the_commands_call(name: str) -> None:
    from mixopt.cli import app

    assert name in mixopt.__all__
    assert getattr(mixopt, name).__module__.startswith("mixopt.runs")
    assert {each.callback.__name__ for each in app.registered_commands if each.callback} == {*VERBS, "demo", "guide"}


def test_the_package_comes_without_what_its_names_need() -> None:
    code = "import sys, mixopt; sys.exit(bool({'torch', 'optuna', 'pydantic', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


MODULES = sorted(
    module.name for module in pkgutil.walk_packages(mixopt.__path__, "mixopt.") if module.name != "mixopt.__main__"
)


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_have_docstrings(module: str) -> None:
    loaded = importlib.import_module(module)
    for name, value in vars(loaded).items():
        if inspect.isfunction(value) and value.__module__ == loaded.__name__ and not name.startswith("_"):
            assert inspect.getdoc(value), f"{module}.{name}"


def test_every_error_is_a_mixopt_error_and_drawn_in_the_tree() -> None:
    kinds = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    for kind in kinds:
        assert issubclass(kind, errors.MixoptError)
        assert kind.__name__ in (errors.__doc__ or "")
        assert kind.__name__ in mixopt.__all__
