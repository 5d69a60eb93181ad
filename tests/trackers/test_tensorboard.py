"""TensorBoard's event files, read back as it reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixopt.errors import RunError
from mixopt.listener import Listener
from mixopt.trackers import Place, tensorboard
from tests.trackers.records import record_in


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def scalars(folder: Path) -> dict[str, float]:
    """The last value by name."""
    found = read(folder)
    return {name: found.Scalars(name)[-1].value for name in found.Tags()["scalars"]}


def test_a_run_is_a_folder_with_the_curve_the_table_and_the_files(tmp_path: Path) -> None:
    record = record_in(tmp_path)
    done = tensorboard.write(record, Place(None, tmp_path / "logs"), Listener())
    assert done.run == "pool-abababab"
    folder = tmp_path / "logs" / done.run
    found = read(folder)
    for name, steps in (("search/best_by_trial", [0, 1, 2]), ("search/best_by_images", [100, 150, 250])):
        assert [(each.step, each.value) for each in found.Scalars(name)] == list(
            zip(steps, [0.25, 0.25, 0.5], strict=True)
        )
        assert {each.wall_time for each in found.Scalars(name)} == {record.made}
    assert scalars(folder)["score/validation"] == pytest.approx(0.7)
    (table,) = found.Tensors("rows")[0].tensor_proto.string_val
    header, _, *lines = table.decode().splitlines()
    assert header.startswith("| row | score/validation | low/validation |")
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| greedy", "0.5"],
        ["| wise\\_ft:a\\|b", "0.6"],
        ["| model\\_stock", ""],
        ["| search", "0.7"],
    ]
    assert lines[2].endswith("| needs a base |")
    assert found.SummaryMetadata("rows").plugin_data.plugin_name == "text"
    for name, path in record.files.items():
        assert (folder / "files" / name).read_bytes() == path.read_bytes()


def test_every_row_is_a_session_of_hparams(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import api_pb2
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    record = record_in(tmp_path)
    done = tensorboard.write(record, Place(None, tmp_path / "logs"), Listener())
    rows = sorted((tmp_path / "logs" / done.run / "rows").iterdir())
    assert [path.name for path in rows] == ["01-greedy", "02-wise_ft_a_b", "03-model_stock", "04-search"]
    for row, path in zip(record.rows, rows, strict=True):
        assert scalars(path) == pytest.approx(dict(row.numbers))
        said = {}
        for part in ("start", "end"):
            metadata = read(path).SummaryMetadata(f"_hparams_/session_{part}_info")
            said[part] = HParamsPluginData.FromString(metadata.plugin_data.content)
        params = said["start"].session_start_info.hparams
        assert params["method"].string_value == row.name
        assert params["seed"].number_value == 3
        ended = api_pb2.STATUS_FAILURE if row.error else api_pb2.STATUS_SUCCESS
        assert said["end"].session_end_info.status == ended


def test_logged_again_it_is_replaced(tmp_path: Path) -> None:
    place = Place(None, tmp_path / "logs")
    done = tensorboard.write(record_in(tmp_path), place, Listener())
    before = scalars(tmp_path / "logs" / done.run)
    tensorboard.write(record_in(tmp_path), place, Listener())
    assert scalars(tmp_path / "logs" / done.run) == before
    assert len(list((tmp_path / "logs").rglob("*tfevents*"))) == 5
    assert len(read(tmp_path / "logs" / done.run).Scalars("search/best_by_trial")) == 3


def test_a_folder_that_is_a_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match=r"could not write .*logs"):
        tensorboard.write(record_in(tmp_path), Place(None, tmp_path / "logs"), Listener())
