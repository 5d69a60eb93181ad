"""Examples of files of records, and ways to damage them: CSV, Parquet, Arrow, WebDataset shards, MNIST's files."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from PIL import Image

from tests.faults.mutations import Mutation, Random, rewriting
from tests.faults.trees import pick

COUNT = 16
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": ["a", "b", "c", "d"], "_type": "ClassLabel"},
}


def png(random: Random, size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (size, size, 3)).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_tables(folder: Path) -> None:
    """One example of each kind."""
    folder.mkdir()
    random = np.random.default_rng(0)
    labels = [number % 4 for number in range(COUNT)]
    images = [png(random) for _ in labels]
    words = ("sad", "glad", "angry")
    texts = [f'{words[number % 3]},"word{number}, and ""more""","n {number}"' for number in range(COUNT)]
    (folder / "val.csv").write_text("\n".join(["label,text,note", *texts]) + "\n")
    (folder / "photos").mkdir()
    for number, image in enumerate(images[:4]):
        (folder / "photos" / f"{number}.png").write_bytes(image)
    rows = [f"photos/{number}.png\t{'abcd'[number]}" for number in range(4)]
    (folder / "photos.tsv").write_text("\n".join(["file\tclass", *rows]) + "\n")
    table = pa.table({"image": [{"bytes": image, "path": None} for image in images], "label": labels})
    noted = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
    pq.write_table(noted, folder / "val.parquet", row_group_size=5)
    _write_saved(folder / "saved", table)
    (folder / "val.tar").write_bytes(
        shard(
            [(f"{n}.{end}", part) for n in range(COUNT) for end, part in (("png", images[n]), ("cls", b"%d" % (n % 4)))]
        )
    )
    pixels = random.integers(0, 256, (COUNT, 8, 8)).astype(np.uint8)
    for kind, array in (("images-idx3", pixels), ("labels-idx1", np.array(labels, dtype=np.uint8))):
        packed = gzip.compress(idx(array.shape) + array.tobytes(), mtime=0)
        (folder / f"t10k-{kind}-ubyte.gz").write_bytes(packed)
    cifar = [bytes([label]) + random.bytes(3072) for label in labels[:4]]
    (folder / "test_batch.bin").write_bytes(b"".join(cifar))
    (folder / "batches.meta.txt").write_text("a\nb\nc\nd\n\n")
    (folder / "codes.json").write_text(json.dumps({"a": "d", "b": "c", "c": 1, "d": 0}))


def _write_saved(folder: Path, table: pa.Table) -> None:
    folder.mkdir()
    (folder / "data-00000-of-00001.arrow").write_bytes(ipc(table))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def ipc(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


def idx(shape: tuple[int, ...]) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def shard(members: list[tuple[str, bytes]], change: Callable[[tarfile.TarInfo], None] = lambda member: None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as opened:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            change(member)
            opened.addfile(member, io.BytesIO(content))
    return stream.getvalue()


# CSV

ODD_CELLS: tuple[bytes, ...] = (
    *(b'"', b'""', b'"a', b"\0", b"\xff\xfe", b"", b"   ", b"a,b,c,d,e,f", b"a\tb\tc", b"-1", b"1e9", b"9" * 20),
    *(b"../../../secret.png", b"/etc/passwd.png", b"photos/../../x.png", b"https://x.org/a.png", b"photos", b"x.png"),
    *(b"\x1b[31m", "\u202e\ufeff".encode(), b"x" * 200_000, b"=cmd()", b"\r", b"a\nb"),
)
ODD_HEADERS: tuple[bytes, ...] = (
    *(b"label,text,text", b"a,b,c", b"label", b"", b"label;text,note", b"LABEL,Sentence,review", b"," * 50_000),
    *(b"\xef\xbb\xbflabel,text,x", b"file\tclass\ty", b"labels\ttarget", b"label,target,y"),
)


def odd_cell(random: Random, content: bytes) -> bytes:
    lines = content.splitlines()
    number = int(random.integers(len(lines)))
    mark = b"\t" if b"\t" in lines[0] else b","
    cells = lines[number].split(mark)
    cells[int(random.integers(len(cells)))] = pick(random, ODD_CELLS)
    lines[number] = mark.join(cells)
    return b"\n".join(lines) + b"\n"


def odd_header(random: Random, content: bytes) -> bytes:
    return bytes(pick(random, ODD_HEADERS)) + b"\n" + content.partition(b"\n")[2]


def another_encoding(random: Random, content: bytes) -> bytes:
    return content.decode(errors="replace").encode(pick(random, ("utf-16", "utf-8-sig", "utf-32-le")))


def other_ends(random: Random, content: bytes) -> bytes:
    return content.replace(b"\n", pick(random, (b"\r", b"\r\n", b"\n\n", b"\0\n", b" ")))


CSV: tuple[Mutation, ...] = tuple(
    rewriting(change) for change in (odd_cell, odd_cell, odd_cell, odd_header, odd_header, another_encoding, other_ends)
)


# Parquet and Arrow: other tables in their place

NESTED = pa.array([[{"a": [1]}]] * 3)
TABLES: tuple[dict[str, Any], ...] = (
    {"image": [b"", b"no image", None], "label": [0, 1, 2]},
    {"image": ["../../../x.png", "/etc/x.png", "x.png"], "label": [0, 1, 2]},
    {"image": [{"bytes": None, "path": "../x.png"}] * 3, "label": [0, 1, 2]},
    {"image": [{"bytes": b"x", "path": "a.png"}, None, {"bytes": None, "path": None}], "label": [0, 1, 2]},
    {"image": NESTED, "label": [0, 1, 2]},
    {"text": ["a", "b", None], "label": [0, 1, 2]},
    {"image": [b"x"] * 3, "label": [0.5, 1.0, 2.0]},
    {"image": [b"x"] * 3, "label": [True, False, None]},
    {"image": [b"x"] * 3, "label": [-1, 2**40, 7]},
    {"image": [b"x"] * 3, "label": pa.array(["a", "b", "c"]).dictionary_encode()},
    {"image": [b"x"] * 3, "label": pa.array([1, 2, 3], type=pa.date32())},
    {"image": [b"x"] * 3, "label": pa.array([1, 2, 3], type=pa.duration("s"))},
    {"image": [b"x"] * 3, "label": NESTED},
    {"image": [b"x"] * 3, "label": [None] * 3},
    {"image": [], "label": []},
    {"image": [b"x"] * 3},
    {"": [b"x"] * 3, "label": [0, 1, 2]},
    {f"c{number}": [0] for number in range(3000)},
)
NOTES: tuple[bytes, ...] = (
    b"", b"{", b"null", b"[" * 100_000, b'{"info": 5}', b'{"info": {"features": []}}', b"\xff",
    b'{"info": {"features": {"label": {"names": [1, 2], "_type": "ClassLabel"}}}}',
    b'{"info": {"features": {"label": {"names": ["\\u001b[31m", "b", "c", "d"], "_type": "ClassLabel"}}}}',
    b'{"info": {"features": {"label": {"names": ["a"], "_type": "ClassLabel"}}}}',
)  # fmt: skip


def _other(random: Random) -> pa.Table:
    table = pa.table(pick(random, TABLES))
    return table.replace_schema_metadata({"huggingface": pick(random, NOTES)}) if random.random() < 0.5 else table


def another_parquet(random: Random, content: bytes) -> bytes:
    return parquet(_other(random))


def another_arrow(random: Random, content: bytes) -> bytes:
    table = _other(random)
    return ipc(table)


def arrow_file_format(random: Random, content: bytes) -> bytes:
    table, stream = _other(random), io.BytesIO()
    with pyarrow.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


def footer_length(random: Random, content: bytes) -> bytes:
    length = pick(random, (0, 1, 2**31 - 1, 2**32 - 1, len(content), len(content) - 8))
    return content[:-8] + struct.pack("<I", length) + content[-4:]


def offsets(random: Random, content: bytes) -> bytes:
    """An aligned number in the file becomes another: offsets of columns of texts and bytes are such numbers."""
    place = 4 * int(random.integers(len(content) // 4))
    number = pick(random, (0, 1, -1, 2**31 - 1, -(2**31), 77, 10**6))
    return content[:place] + struct.pack("<i", number) + content[place + 4 :]


PARQUET: tuple[Mutation, ...] = tuple(
    rewriting(change) for change in (another_parquet, another_parquet, another_parquet, footer_length, offsets)
)
ARROW: tuple[Mutation, ...] = tuple(
    rewriting(change) for change in (another_arrow, another_arrow, another_arrow, arrow_file_format, offsets, offsets)
)


# Shards


def another_shard(random: Random, content: bytes) -> bytes:
    image = png(random)
    choices: tuple[list[tuple[str, bytes]], ...] = (
        [],
        [("a.png", image)],
        [("a.cls", b"0")],
        [("../../x.png", image), ("../../x.cls", b"0")],
        [("/etc/x.png", image), ("/etc/x.cls", b"1")],
        [("a.png", image), ("a.png", image), ("a.cls", b"0")],
        [("a.png", image), ("a.cls", b"99999999999")],
        [("a.png", image), ("a.cls", b"\xff")],
        [("a.png", image), ("a.cls", b"")],
        [("a.png", image), ("a.json", b"[" * 100_000)],
        [("a.png", image), ("a.json", b'{"label": {"a": 1}}')],
        [("a.png", b"no image"), ("a.cls", b"0")],
        [("a.pyd", b"cos\nsystem\n."), ("a.cls", b"0")],
        [(f"{'x' * 5000}.png", image), (f"{'x' * 5000}.cls", b"1")],
        [("a\x1b[31m.png", image), ("a\x1b[31m.cls", b"1")],
        [(f"{number}.txt", b"") for number in range(2000)],
    )
    return shard(pick(random, choices))


def another_member(random: Random, content: bytes) -> bytes:
    kinds = (
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
        tarfile.DIRTYPE,
        tarfile.GNUTYPE_SPARSE,
        b"?",
    )

    def change(member: tarfile.TarInfo) -> None:
        member.type = pick(random, kinds)
        member.linkname = "../../../secret"
        member.pax_headers = pick(
            random, ({}, {"size": "99999999999"}, {"path": "../x.png"}, {"GNU.sparse.major": "1"})
        )

    return shard([("a.png", png(random)), ("a.cls", b"0")], change)


def member_size(random: Random, content: bytes) -> bytes:
    """A size in a header, its checksum mended."""
    place = 512 * int(random.integers(len(content) // 512))
    size = pick(
        random,
        (b"00000000000\0", b"77777777777\0", b"\xff" * 12, b"\x80" + bytes(7) + b"\x7f\xff\xff\xff", b"0000000000x\0"),
    )
    header = content[place : place + 124] + size + content[place + 136 : place + 512]
    total = sum(header[:148]) + 8 * 32 + sum(header[156:])
    mended: bytes = header[:148] + b"%06o\0 " % total + header[156:]
    return content[:place] + mended + content[place + 512 :]


TAR: tuple[Mutation, ...] = tuple(
    rewriting(change)
    for change in (another_shard, another_shard, another_member, another_member, member_size, member_size)
)


# MNIST's files


def idx_header(random: Random, content: bytes) -> bytes:
    shapes = (
        (0, 8, 8),
        (16, 0, 8),
        (2**32 - 1,) * 3,
        (16, 8),
        (16,),
        (16, 8, 9),
        (17, 8, 8),
        (1, 1, 1),
        (16, 2**31, 1),
    )
    plain = gzip.decompress(content)
    return gzip.compress(idx(pick(random, shapes)) + plain[16:], mtime=0)


def gzip_bomb(random: Random, content: bytes) -> bytes:
    return gzip.compress(idx(pick(random, ((2**31, 8, 8), (16, 8, 8)))) + bytes(10**8), mtime=0)


IDX: tuple[Mutation, ...] = tuple(rewriting(change) for change in (idx_header, idx_header, gzip_bomb))
