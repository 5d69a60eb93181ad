"""What a run trusts and what it touches: no code that a file names, no file that it did not write."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mixopt
from mixopt.errors import MixoptError, RunError, SpecError
from mixopt.files import atomic_write, make_folder, remove_leftovers, write_text
from mixopt.runs import export
from mixopt.runs.folder import RunFolder
from mixopt.spec import options
from mixopt.untrusted.texts import checksum_of
from tests.faults.commands import write_pools
from tests.listening import Recorder

FAMILY = "tests.tiny_family:plain"
OPTIONS: dict[str, Any] = {"trials": 2, "start": "individual", "device": "cpu", "precision": "fp32"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool, and a run of it."""
    folder = tmp_path_factory.mktemp("trust")
    pool = write_pools(folder)["plain"]
    mixopt.search(pool, out=folder / "run", cache=folder / "cache", **OPTIONS)
    return folder


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


@pytest.fixture
def pool(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "plain", tmp_path / "pool"))


def again(pool: Path, run: Path, **more: Any) -> mixopt.SearchResult:
    return mixopt.search(pool, out=run, cache=run.parent / "cache", **{**OPTIONS, **more})


def with_recipe(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A model with another recipe in its header, whose checksum fits."""
    content = model.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    recipe = json.loads(header["__metadata__"]["mixopt"])
    change(recipe)
    recipe["checksum"] = checksum_of(recipe)
    header["__metadata__"]["mixopt"] = json.dumps(recipe)
    text = json.dumps(header).encode()
    model.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


# Code that a file names


@pytest.mark.parametrize("name", ["payload:run", "os:abort", "time:sleep", ":", "sys:exit", "payload:run:more"])
def test_a_function_in_a_header_is_not_called(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    (run / "payload.py").write_text(f"open({str(run / 'ran')!r}, 'w')\ndef run(): pass\n")
    model = run / "model.safetensors"

    def change(recipe: dict[str, Any]) -> None:
        recipe["family"]["name"] = name

    with_recipe(model, change)
    with pytest.raises(SpecError, match=r"model\.safetensors: names the function .*name it yourself: --family"):
        mixopt.evaluate(model, data={"search": "val.npz"})
    assert not (run / "ran").exists()


def test_a_function_that_is_named_again_is_used(home: Path, run: Path) -> None:
    data = {"search": home / "plain" / "val.npz"}
    model = run / "model.safetensors"
    with pytest.raises(SpecError, match=f"--family {FAMILY}"):
        mixopt.evaluate(model, data=data, cache=home / "cache")
    found = mixopt.evaluate(model, data=data, family=FAMILY, cache=home / "cache")
    report = mixopt.report(run)
    assert found["splits"]["val"]["metrics"] == report.row("search").metrics["validation"]
    assert found["verified"], "its weights are compared with their hash without being asked"
    assert report.family == FAMILY


def test_changed_weights_are_refused_by_the_hash_that_lies_beside_them(home: Path, run: Path) -> None:
    model = run / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-5] ^= 0x40
    model.write_bytes(content)
    with pytest.raises(MixoptError, match="its weights are not those of the recipe"):
        mixopt.evaluate(model, data={"search": home / "plain" / "val.npz"}, family=FAMILY, cache=home / "cache")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda recipe: recipe["mix"]["groups"][0][1].append("layers.9.weight"), "has no such tensors"),
        (lambda recipe: recipe["dtypes"].update({"*": "qint8"}), "unknown dtype 'qint8'"),
        (lambda recipe: recipe.update(seed="0"), "seed: Input should be a valid integer"),
        (lambda recipe: recipe.update(base="nobody"), "base nobody is none of its columns"),
        (lambda recipe: recipe["mix"].update(columns=[1, 2, 3, 4]), "mix.columns.0: Input should be a valid string"),
        (lambda recipe: recipe["mix"].update(coefficients=[[10**400] * 4]), "mix.coefficients"),
        (lambda recipe: recipe["ingredients"].clear(), "lacks the content hash"),
    ],
)
def test_a_recipe_of_odd_values_is_one_error(
    home: Path, run: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    change(recipe)
    recipe["checksum"] = checksum_of(recipe)
    (run / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(MixoptError, match=says):
        mixopt.build(run / "recipe.json", run / "again.safetensors", models=home / "plain")


def test_an_edited_recipe_is_refused(home: Path, run: Path) -> None:
    text = (run / "recipe.json").read_text()
    (run / "recipe.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(MixoptError, match=r"recipe\.json: not a mixopt recipe \(its checksum is .*damaged or edited"):
        mixopt.build(run / "recipe.json", run / "again.safetensors", models=home / "plain")


# What is replaced


def test_build_replaces_no_checkpoint_and_nothing_of_others(home: Path, pool: Path, run: Path) -> None:
    recipe = run / "recipe.json"
    (run / "notes.safetensors").write_bytes(b"mine")
    save_file({"images": torch.ones(2)}, run / "batchnorm.safetensors", {"images": "5"})
    (run / "link.safetensors").symlink_to(pool / "model_0.safetensors")
    for target, says in (
        (pool / "model_0.safetensors", "no .safetensors file of mixopt's"),
        (pool / "base.safetensors", "no .safetensors file of mixopt's"),
        (recipe, r"is .*recipe\.json, which is read here"),
        (run / "notes.safetensors", "no .safetensors file of mixopt's"),
        (run / "report.json", "no .safetensors file of mixopt's"),
        (run / "batchnorm.safetensors", "no .safetensors file of mixopt's"),
        (run / "link.safetensors", "no .safetensors file of mixopt's"),
        (pool, "no .safetensors file of mixopt's"),
    ):
        before = target.read_bytes() if target.is_file() else b""
        with pytest.raises(RunError, match=rf"-o .*: (is|already there).*{says}.*|{says}"):
            mixopt.build(recipe, target, models=pool)
        assert not target.is_file() or target.read_bytes() == before
    wanted = (run / "model.safetensors").read_bytes()
    assert mixopt.build(recipe, run / "model.safetensors", models=pool).read_bytes() == wanted, "its own is replaced"
    assert mixopt.build(recipe, run / "notes.safetensors", models=pool, force=True).read_bytes() == wanted


def test_build_does_not_replace_a_model_that_it_mixes(pool: Path, run: Path) -> None:
    """A saved model may be an ingredient of another soup."""
    (pool / "soup").mkdir()
    soup = Path(shutil.copy(run / "model.safetensors", pool / "soup" / "model_9.safetensors"))
    shutil.copy(pool / "model_1.safetensors", pool / "soup" / "model_1.safetensors")
    second = mixopt.compare(
        pool, ingredients=["soup/*.safetensors"], methods="uniform", out=run.parent / "second", device="cpu",
        cache=run.parent / "cache", precision="fp32",
    )  # fmt: skip
    assert second.recipe.mix.support()
    with pytest.raises(RunError, match=r"model_9\.safetensors: is .*, which is read here"):
        mixopt.build(second.folder / "recipe.json", soup, models=pool)


def test_a_run_replaces_nothing_that_it_reads(pool: Path, run: Path) -> None:
    for name in ("model_0.safetensors", "model_1.safetensors", "val.npz", "base.safetensors", "pool.toml"):
        shutil.copy(pool / name, run / name)
    options = {"ingredients": ["model*.safetensors"]}
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match=r"the run would replace model\.safetensors, which the run reads"):
        again(run, run, **options, classnames=["a", "b", "c", "d"], data={"search": run / "val.npz"})
    assert (run / "model.safetensors").read_bytes() == before


def test_a_run_replaces_nothing_of_others(pool: Path, run: Path) -> None:
    (run / "README.md").write_text("My notes\n")
    with pytest.raises(RunError, match=r"would replace README\.md, which mixopt did not write; .*--force"):
        again(pool, run)
    assert (run / "README.md").read_text() == "My notes\n"
    save_file({"images": torch.ones(2)}, run / "batchnorm.safetensors")
    (run / "run.toml").write_text("# mine")
    with pytest.raises(RunError, match=r"would replace run\.toml, README\.md, batchnorm\.safetensors, which"):
        again(pool, run, precision="fp32", stack="fp32")
    (run / "batchnorm.safetensors").unlink()
    again(pool, run, force=True)
    assert "- mixopt\n" in (run / "README.md").read_text()
    assert "force" not in (run / "run.toml").read_text()


@pytest.mark.parametrize("name", ["report.json", "recipe.json", "model.safetensors", "README.md"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_what_was_damaged_since_is_still_its_own(pool: Path, run: Path, name: str, share: float) -> None:
    """The same command writes it anew, as errors about it say."""
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: int(share * len(content))])
    again(pool, run)
    assert name in ("report.json", "README.md") or (run / name).read_bytes() == content
    assert mixopt.report(run).best


def test_a_page_replaces_only_pages(run: Path) -> None:
    (run / "page.html").write_text("<p>mine</p>")
    with pytest.raises(RunError, match=r"--html .*page\.html: already there, and no .html file of mixopt's"):
        mixopt.report(run, html=run / "page.html")
    for force in (True, False):
        mixopt.report(run, html=run / "page.html", force=force)
        assert "<svg" in (run / "page.html").read_text()


# Whose folder


@pytest.mark.parametrize("name", ["study.journal", "run.log", "run.lock", "run.lock.holder"])
def test_a_run_writes_through_no_link(pool: Path, run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "precious").write_text("precious")
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match=rf"{name}: a link to .*precious; .*choose another --out"):
        again(pool, run)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_run_writes_to_no_file_of_two_names(pool: Path, run: Path) -> None:
    (run / "run.log").unlink()
    os.link(pool / "pool.toml", run / "run.log")
    before = (pool / "pool.toml").read_bytes()
    with pytest.raises(RunError, match=r"run\.log: a link to a file of another name"):
        again(pool, run)
    assert (pool / "pool.toml").read_bytes() == before


def test_a_folder_of_another_user_is_refused(pool: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in run.iterdir())
    monkeypatch.setattr(os, "geteuid", lambda: run.stat().st_uid + 1)
    with pytest.raises(RunError, match=r"run: belongs to another user .*choose another --out"):
        again(pool, run)
    assert sorted((path.name, path.stat().st_mtime_ns) for path in run.iterdir()) == before


def test_a_damaged_run_toml_is_told(pool: Path, run: Path) -> None:
    (run / "run.toml").write_text((run / "run.toml").read_text().replace("fp32", "fp33"))
    with pytest.raises(RunError, match=r"run\.toml: damaged .*remove it, and give --"):
        again(pool, run, precision="auto")


# What killed runs leave


def test_leftovers_go_and_what_is_being_written_stays(tmp_path: Path) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from mixopt.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as stream: stream.write(b'half'); stream.flush(); os._exit(9)"
    )
    target = tmp_path / "a[1].npz"
    assert subprocess.run([sys.executable, "-c", killed, str(target)], check=False).returncode == 9
    for name in (".mine.tmp", ".a[1].npz.mine.tmp"):
        (tmp_path / name).write_text("mine")
    assert len(list(tmp_path.glob(".a*.mixopt.tmp"))) == 1
    with atomic_write(tmp_path / "a[1].npz") as stream:
        stream.write(b"whole")
        remove_leftovers(tmp_path, "a[1].npz")
        assert len(list(tmp_path.glob(".a*.mixopt.tmp"))) == 1, "its writer is alive"
    assert target.read_bytes() == b"whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a[1].npz.mine.tmp", ".mine.tmp", "a[1].npz"]


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".x.12345678.mixopt.tmp").write_text("left by another")
    (tmp_path / "tmp").symlink_to(tmp_path / "elsewhere")
    remove_leftovers(tmp_path / "tmp")
    assert list((tmp_path / "elsewhere").iterdir())
    remove_leftovers(tmp_path / "elsewhere")
    assert not list((tmp_path / "elsewhere").iterdir())


# The cache


def test_decoded_copies_that_were_exchanged_are_told(home: Path, pool: Path, tmp_path: Path) -> None:
    first = again(pool, tmp_path / "one")
    one, two = sorted((tmp_path / "cache" / "splits").iterdir())[:2]
    one.rename(tmp_path / "kept")
    two.rename(one)
    (tmp_path / "kept").rename(two)
    shutil.rmtree(tmp_path / "cache" / "outcomes")
    heard = Recorder()
    second = again(pool, tmp_path / "two", listener=heard.listener)
    assert sum("a copy of another split" in text for text in heard.warnings) == 2
    scores = [[(row.name, row.metrics) for row in result.report.made] for result in (first, second)]
    assert scores[0] == scores[1]


def test_a_cache_shared_by_a_group_is_written_by_all_of_it(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o2770)
    write_text(cache / "outcomes" / "ab" / "x.npz", "1", cache=cache)
    for folder in (cache / "outcomes", cache / "outcomes" / "ab", cache / "tmp"):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o070 == 0o070
        assert folder.stat().st_mode & stat.S_ISGID
    assert stat.S_IMODE((cache / "outcomes" / "ab" / "x.npz").stat().st_mode) & 0o060 == 0o060


def test_a_cache_of_one_user_stays_of_one(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o755)
    before = os.umask(0o077)
    try:
        make_folder(cache / "outcomes" / "ab", cache)
        write_text(cache / "outcomes" / "ab" / "x.npz", "1", cache=cache)
    finally:
        os.umask(before)
    assert stat.S_IMODE((cache / "outcomes").stat().st_mode) == 0o700
    assert stat.S_IMODE((cache / "outcomes" / "ab" / "x.npz").stat().st_mode) == 0o600


def test_flipped_outcomes_are_scored_again_with_a_warning(home: Path, pool: Path, tmp_path: Path) -> None:
    first = again(pool, tmp_path / "one")
    for entry in (tmp_path / "cache" / "outcomes").rglob("*.npz"):
        content = bytearray(entry.read_bytes())
        content[len(content) // 3] ^= 0x40
        entry.write_bytes(content)
    heard = Recorder()
    second = again(pool, tmp_path / "two", listener=heard.listener)
    assert any(text.startswith("damaged cache entry") for text in heard.warnings)
    scores = [[(row.name, row.metrics) for row in result.report.made] for result in (first, second)]
    assert scores[0] == scores[1]
    assert (first.folder / "model.safetensors").read_bytes() == (second.folder / "model.safetensors").read_bytes()


# Surroundings


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["report", "RUN"], ["report", "RUN", "--json"]])
@pytest.mark.parametrize(
    ("how", "codes"),
    [(">/dev/full", {2}), (">&-", {0}), ("| head -c 1 >/dev/null; exit ${PIPESTATUS[0]}", {0, 1, 141})],
    ids=["full", "closed", "read no further"],
)
def test_output_that_cannot_be_written(run: Path, arguments: list[str], how: str, codes: set[int]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    command = [sys.executable, "-m", "mixopt", *(str(run) if each == "RUN" else each for each in arguments)]
    done = subprocess.run(["bash", "-c", f"{shlex.join(command)} {how}"], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode in codes


def test_no_home_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(SpecError, match=r"--cache: there is no home folder .*--cache DIR"):
        options.default_cache()


@pytest.fixture
def ascii_locale() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_without_utf_8(pool: Path, tmp_path: Path, ascii_locale: dict[str, str]) -> None:
    """Files are UTF-8 wherever they are read, and what the terminal cannot show is shown as a code."""
    text = (pool / "pool.toml").read_text().replace('"red"', '"röt \\u001b[31m"')
    (pool / "pool.toml").write_text(text, encoding="utf-8")
    for name in ("val", "test"):
        arrays = dict(np.load(pool / f"{name}.npz"))
        np.savez(pool / f"{name}.npz", x=arrays["x"], y=arrays["y"])
    arguments = [
        "compare",
        "--models",
        pool,
        "--methods",
        "uniform",
        "--out",
        tmp_path / "ü",
        "--cache",
        tmp_path / "c",
    ]
    command = [sys.executable, "-m", "mixopt", *map(str, arguments)]
    done = subprocess.run(command, env=ascii_locale, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    output = (done.stdout + done.stderr).decode("ascii")
    assert r"\xfc" in output or "\\udc" in output
    assert "\x1b" not in output


def test_a_name_with_nul_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text('base = "a\\u0000b"\n')
    with pytest.raises(SpecError, match=r"pool\.toml: base: holds a NUL character"):
        mixopt.load_spec({"models": tmp_path})


def test_a_model_of_the_wrong_size_names_the_samples(home: Path, pool: Path, tmp_path: Path) -> None:
    state = {name: tensor[..., :5].clone() if tensor.ndim == 2 else tensor for name, tensor in
             load_file(pool / "model_0.safetensors").items()}  # fmt: skip
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(MixoptError, match=r"odd\.safetensors: does not fit the model"):
        mixopt.evaluate(tmp_path / "odd.safetensors", models=pool, cache=home / "cache")


def test_what_lies_where_a_companion_would_is_not_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "config.json").write_text('{"mine": 1}')
    export._check_companions(folder, {"config.json": '{"mine": 1}', "vocab.txt": b"a"})
    with pytest.raises(RunError, match=r"would replace config\.json, which mixopt did not write; .*--force"):
        export._check_companions(folder, {"config.json": "{}"})
    folder.recipe.write_text("{}")  # of an earlier run, which wrote the other as well
    export._check_companions(folder, {"config.json": "{}"})
