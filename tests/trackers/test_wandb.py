"""W&B's own offline store, read back record by record; and what is asked of a run that is taken up."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb as library

from mixopt.errors import SpecError
from mixopt.listener import Listener
from mixopt.trackers import Place, wandb
from tests.trackers.records import record_in

PLACE = Place(None, Path("unused"))
BLOCK = 2**15


def records(folder: Path) -> Iterator[tuple[str, Any]]:
    """Kind and content of every record of a run: LevelDB's log, behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found = Record.FromString(whole)
            whole = b""
            yield str(found.WhichOneof("record_type")), getattr(found, str(found.WhichOneof("record_type")))


def values(items: Any) -> dict[str, Any]:
    return {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in items}


def test_a_run_holds_the_curve_the_table_and_the_files(stores: Path, tmp_path: Path) -> None:
    record = record_in(tmp_path)
    done = wandb.write(record, PLACE, Listener())
    assert done.run == "mixopt-" + "ab" * 8
    folder = Path(done.place)
    assert folder.parent == stores / "wandb"
    library.teardown()  # its service writes the last records after a run has finished
    found = list(records(folder))
    sizes = [(path.name, path.stat().st_size) for path in folder.iterdir()]
    assert {"run", "history", "summary", "artifact"} <= {kind for kind, _ in found}, sizes
    (run,) = [each for kind, each in found if kind == "run"]
    assert (run.run_id, run.project, run.display_name) == (done.run, "mixopt", "pool")
    assert {**values(run.config.update), **record.params} == values(run.config.update)
    history = [values(each.item) for kind, each in found if kind == "history"]
    assert [(each["search/images"], each["search/best"]) for each in history[:3]] == [
        (100, 0.25),
        (150, 0.25),
        (250, 0.5),
    ]
    assert [each["_step"] for each in history] == [0, 1, 2, 3]
    summary: dict[str, Any] = {}
    for kind, each in found:
        summary |= values(each.update) if kind == "summary" else {}
    assert summary["score/validation"] == 0.7
    for row in record.rows:
        for name, value in row.numbers.items():
            assert summary[f"{row.name}/{name}"] == value
    (table,) = (folder / "files" / "media" / "table").iterdir()
    content = json.loads(table.read_text())
    assert content["columns"] == ["row", *record.columns, "failed"]
    assert [(cells[0], cells[1], cells[-1]) for cells in content["data"]] == [
        ("greedy", 0.5, None),
        ("wise_ft:a|b", 0.6, None),
        ("model_stock", None, "needs a base"),
        ("search", 0.7, None),
    ]
    (page,) = (folder / "files" / "media" / "html").iterdir()
    assert page.read_text() == "<p>report.html"
    (artifact,) = [each for kind, each in found if kind == "artifact" and each.type == "mixopt-run"]
    assert {each.path for each in artifact.manifest.contents} == set(record.files)
    assert not (folder / "files" / "requirements.txt").exists(), "of another machine than the run's"
    assert not (folder / "files" / "wandb-metadata.json").exists()


def test_a_run_that_is_taken_up_gets_what_it_lacks(tmp_path: Path) -> None:
    logged: list[int] = []
    run = SimpleNamespace(
        starting_step=2,
        summary={},
        define_metric=lambda *_, **__: None,
        log=lambda _, step: logged.append(step),
        log_artifact=lambda artifact: logged.append(len(artifact.manifest.entries)),
    )
    wandb._write_all(library, run, record_in(tmp_path))
    assert logged == [2, 3, 3], "the steps that are not there, then three files"


def test_nothing_is_logged_where_it_is_disabled(stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(SpecError, match="WANDB_MODE is disabled"):
        wandb.write(record_in(tmp_path), PLACE, Listener())


def test_a_folder_that_was_removed_is_logged_anew(stores: Path, tmp_path: Path) -> None:
    import shutil

    done = wandb.write(record_in(tmp_path), PLACE, Listener())
    shutil.rmtree(done.place)
    assert not wandb.write(record_in(tmp_path), PLACE, Listener()).was_there
