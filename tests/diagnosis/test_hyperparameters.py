"""What trainers left beside checkpoints: read where it can be, and never run."""

from __future__ import annotations

import json
from pathlib import Path

from mixopt.diagnosis.hyperparameters import LONGEST, MOST, hyperparameters


def test_lines_of_a_sweep_name_their_checkpoint(tmp_path: Path) -> None:
    lines = [
        json.dumps({"model": "a", "lr": 0.1, "mixup": False, "targets": ["q", "v"], "nested": {"x": 1}}),
        "not json",
        json.dumps({"run": "b", "lr": 0.2}),
        json.dumps({"lr": 0.3}),
        json.dumps([1]),
    ]
    (tmp_path / "hparams.jsonl").write_text("\n".join(lines))
    paths = {"a": tmp_path / "a.safetensors", "other": tmp_path / "b.safetensors", "c": tmp_path / "c.safetensors"}
    assert hyperparameters(tmp_path, paths) == {
        "a": {"lr": 0.1, "mixup": False, "targets": "q, v"},
        "other": {"lr": 0.2},
        "c": {},
    }


def test_files_of_trainers_beside_or_above_a_checkpoint(tmp_path: Path) -> None:
    lightning = tmp_path / "lightning" / "version_0"
    (lightning / "checkpoints").mkdir(parents=True)
    (lightning / "hparams.yaml").write_text("lr: 0.5\nname: resnet\n")
    timm = tmp_path / "timm"
    timm.mkdir()
    (timm / "args.yaml").write_text("lr: 0.25\nepochs: 3\n")
    trainer = tmp_path / "trainer"
    trainer.mkdir()
    history = [{"learning_rate": 1e-5, "loss": 1.0}, {"learning_rate": 5e-5}, {"eval_loss": 2.0}, 3]
    state = {"num_train_epochs": 3, "best_metric": 0.9, "log_history": history}
    (trainer / "trainer_state.json").write_text(json.dumps(state))
    paths = {
        "l": lightning / "checkpoints" / "last.ckpt",
        "t": timm / "model.safetensors",
        "h": trainer,
    }
    assert hyperparameters(tmp_path, paths) == {
        "l": {"lr": 0.5, "name": "resnet"},
        "t": {"lr": 0.25, "epochs": 3.0},
        "h": {"num_train_epochs": 3.0, "highest learning rate": 5e-5},
    }


def test_nothing_above_the_pool_is_read(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text("lr: 1\n")
    pool = tmp_path / "pool"
    pool.mkdir()
    assert hyperparameters(pool, {"a": pool / "a.safetensors"}) == {"a": {}}


def test_what_a_file_brings_is_data(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    hostile = {
        "args.yaml": f"x: !!python/object/apply:os.mkdir ['{proof}']\n",
        "hparams.yaml": "[" * 40_000,
        "trainer_state.json": "[" * 100_000,
    }
    for number, (name, content) in enumerate(hostile.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_text(content)
        assert hyperparameters(tmp_path, {"a": folder / "a.safetensors"}) == {"a": {}}
    assert not proof.exists()


def test_long_and_many_values_are_cut(tmp_path: Path) -> None:
    values = {"model": "a", **{f"k{number}": "x" * 1000 for number in range(500)}, "inf": float("inf")}
    (tmp_path / "hparams.jsonl").write_text(json.dumps(values))
    found = hyperparameters(tmp_path, {"a": tmp_path / "a.pt"})["a"]
    assert len(found) == MOST
    assert {len(str(value)) for value in found.values()} == {LONGEST}
