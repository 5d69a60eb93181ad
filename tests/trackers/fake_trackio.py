"""What `mixopt.trackers.trackio` uses of Trackio, as version 0.43 has it: a project knows runs by their names."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class Run:
    """A run: its configuration, what was logged at which step, its artifacts."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.history: list[tuple[int, dict[str, Any]]] = []
        self.artifacts: list[Artifact] = []


class Table:
    """Cells under the names of columns."""

    def __init__(self, columns: list[str], data: list[list[Any]]) -> None:
        self.rows = [dict(zip(columns, cells, strict=True)) for cells in data]


class Html:
    """A page."""

    def __init__(self, data: Path, inject: bool = True) -> None:
        self.text = data.read_text(encoding="utf-8")
        self.inject = inject


class Artifact:
    """Files by name."""

    def __init__(self, name: str, type: str) -> None:  # noqa: A002 (Trackio's)
        assert name.replace("-", "").isalnum()
        self.files: dict[str, str] = {}

    def add_file(self, local_path: str, name: str) -> None:
        """Take a file in as it is now."""
        self.files[name] = Path(local_path).read_text(encoding="utf-8")


def fake_trackio() -> Any:
    """A module ``trackio``; its ``projects`` are what was written."""
    module: Any = ModuleType("trackio")
    module.projects = {}
    module.current = None

    def init(
        project: str,
        name: str,
        resume: str = "never",
        config: dict[str, Any] | None = None,
        embed: bool = True,
        auto_log_gpu: bool | None = None,
        auto_log_cpu: bool | None = None,
    ) -> Run:
        assert not embed
        assert auto_log_cpu is auto_log_gpu is False
        sys.stdout.write(f"* run {name}\n")
        runs = module.projects.setdefault(project, {})
        if resume == "must" and name not in runs:
            raise ValueError(f"Run '{name}' does not exist in project '{project}'")
        module.current = runs.setdefault(name, Run(dict(config or {})))
        return module.current  # type: ignore[no-any-return]

    def log(metrics: dict[str, Any], step: int) -> None:
        module.current.history.append((step, metrics))

    def finish() -> None:
        module.current = None

    def log_artifact(artifact: Artifact) -> None:
        module.current.artifacts.append(artifact)

    module.init, module.log, module.log_artifact, module.finish = init, log, log_artifact, finish
    module.Table, module.Html, module.Artifact = Table, Html, Artifact
    return module
