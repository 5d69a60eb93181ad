"""Ways to damage files by their formats: safetensors, npz, and images."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from mixopt.untrusted.arrays import packed
from tests.faults.mutations import Change, Mutation, Random, rewriting
from tests.faults.payloads import MODULE, calls
from tests.faults.trees import EDITS, MENDING, NAMES, Edit, encoded, json_text, mended, pick

# --- safetensors


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and the data behind it."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def with_header(header: str, data: bytes) -> bytes:
    text = encoded(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def header_change(edit: Edit) -> Change:
    def change(random: Random, content: bytes) -> bytes:
        header, data = header_of(content)
        return with_header(json_text(edit(random, header)), data)

    change.__name__ = f"header_{edit.__name__}"
    return change


def header_length(random: Random, content: bytes) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    lengths = (
        0,
        1,
        length - 1,
        length + 1,
        length + 8,
        len(content),
        100_000_000,
        100_000_001,
        2**32,
        2**63,
        2**64 - 1,
    )
    return struct.pack("<Q", pick(random, lengths)) + content[8:]


def _tensor(random: Random, header: dict[str, Any]) -> dict[str, Any]:
    return header[pick(random, [name for name in header if name != "__metadata__"])]  # type: ignore[no-any-return]


def tensor_dtype(random: Random, content: bytes) -> bytes:
    header, data = header_of(content)
    names = (
        "F8_E4M3",
        "F8_E5M2",
        "C64",
        "F4",
        "F6_E2M3",
        "F32 ",
        "f32",
        "F16",
        "BF16",
        "I32",
        "U32",
        "I64",
        "BOOL",
        "?",
    )
    _tensor(random, header)["dtype"] = pick(random, names)
    return with_header(json_text(header), data)


def tensor_of_few_bits(random: Random, content: bytes) -> bytes:
    """A dtype of other size with a shape and offsets that fit it."""
    header, data = header_of(content)
    tensor = _tensor(random, header)
    start, stop = tensor["data_offsets"]
    name, size = pick(
        random, (("F8_E4M3", 1), ("F8_E5M2", 1), ("C64", 8), ("U16", 2), ("U64", 8), ("BOOL", 1), ("I8", 1))
    )
    tensor["dtype"], tensor["shape"] = name, [(stop - start) // size]
    return with_header(json_text(header), data)


def tensor_shape(random: Random, content: bytes) -> bytes:
    header, data = header_of(content)
    tensor = _tensor(random, header)
    shapes: tuple[list[int], ...] = (
        [-1],
        [2**62],
        [2**62, 4],
        [2**64],
        [],
        [0],
        [0, 2**62],
        [*tensor["shape"], 1],
        [*tensor["shape"], 2],
        [1] * 300,
    )
    tensor["shape"] = pick(random, (*shapes, tensor["shape"][::-1], [True], [1.0], ["1"], None))
    return with_header(json_text(header), data)


def tensor_offsets(random: Random, content: bytes) -> bytes:
    header, data = header_of(content)
    tensor = _tensor(random, header)
    start, stop = tensor["data_offsets"]
    tensor["data_offsets"] = pick(
        random,
        ([stop, start], [0, stop - start], [start + 4, stop + 4], [start, len(data) + 8], [-4, stop], [start, 2**63],
         [2**64 - 8, 2**64 - 4], [start, start], [start], [], None, [start, stop, stop]),
    )  # fmt: skip
    return with_header(json_text(header), data)


def tensor_name(random: Random, content: bytes) -> bytes:
    header, data = header_of(content)
    old = pick(random, [name for name in header if name != "__metadata__"])
    return with_header(json_text({pick(random, NAMES) if name == old else name: header[name] for name in header}), data)


def tensor_named_twice(random: Random, content: bytes) -> bytes:
    header, data = header_of(content)
    name = pick(random, list(header))
    return with_header(f"{json_text(header)[:-1]}, {json.dumps(name)}: {json_text(header[name])}}}", data)


def data_that_nobody_names(random: Random, content: bytes) -> bytes:
    header, data = header_of(content)
    return with_header(json_text(header), data + bytes(int(random.integers(1, 64))))


def odd_metadata(random: Random, content: bytes) -> bytes:
    header, data = header_of(content)
    tensors = [name for name in header if name != "__metadata__"]
    texts: tuple[Any, ...] = (
        {"mixopt": "{}"},
        {"mixopt": "[" * 100_000},
        {"mixopt": ""},
        {"mixopt": "null"},
        {"mixopt": 5},
        {"alias": tensors[0], tensors[0]: "alias"},
        {"\x1b[31m": tensors[0]},
        dict.fromkeys(NAMES, tensors[0]),
        {f"alias{number}": tensors[0] for number in range(5000)},
        None,
        [],
    )
    header["__metadata__"] = pick(random, texts)
    return with_header(json_text(header), data)


def values_that_are_none(random: Random, content: bytes) -> bytes:
    header, data = header_of(content)
    start, _ = _tensor(random, header)["data_offsets"]
    value = struct.pack("<f", pick(random, (float("nan"), float("inf"), float("-inf"), 3e38, 1e-45)))
    return with_header(json_text(header), data[:start] + value + data[start + 4 :])


SAFETENSORS: tuple[Mutation, ...] = (
    *(rewriting(header_change(edit)) for edit in EDITS),
    *(
        rewriting(change)
        for change in (
            header_length,
            tensor_dtype,
            tensor_of_few_bits,
            tensor_shape,
            tensor_offsets,
            tensor_name,
            tensor_named_twice,
            data_that_nobody_names,
            odd_metadata,
            values_that_are_none,
        )
    ),
)

HOSTILE = (
    f"{MODULE}:run",
    f"{MODULE}:MARKER",
    f"{MODULE}:nothing",
    "builtins:exec",
    "time:sleep",
    ":",
    f"{MODULE}:",
    "",
)


def hostile_family(random: Random, content: bytes) -> bytes:
    """A recipe that names code of its own, in a recipe.json or in a model's header."""
    if content[:1] == b"{":
        recipe = json.loads(content)
        recipe["family"]["name"] = pick(random, HOSTILE)
        return encoded(json_text(mended(recipe)))
    header, data = header_of(content)
    recipe = json.loads(header["__metadata__"]["mixopt"])
    recipe["family"]["name"] = pick(random, HOSTILE)
    header["__metadata__"]["mixopt"] = json_text(mended(recipe))
    return with_header(json_text(header), data)


def recipe_change(edit: Edit) -> Change:
    """A change of the recipe in a model's header."""

    def change(random: Random, content: bytes) -> bytes:
        header, data = header_of(content)
        header["__metadata__"]["mixopt"] = json_text(edit(random, json.loads(header["__metadata__"]["mixopt"])))
        return with_header(json_text(header), data)

    change.__name__ = f"recipe_{edit.__name__}"
    return change


MODEL: tuple[Mutation, ...] = (
    *SAFETENSORS,
    *(rewriting(recipe_change(edit)) for edit in (*EDITS, *MENDING)),
    rewriting(hostile_family),
)

# --- npz


def members_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        return {info.filename: opened.read(info) for info in opened.infolist()}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        for name, data in members.items():
            made.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def declared(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An ``.npy`` file of any header."""
    text = header.encode("latin-1") + b"\n"
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text + data


def arrays_of(content: bytes) -> dict[str, Any]:
    return {name: np.load(io.BytesIO(data)) for name, data in members_of(content).items()}


HEADERS = (
    "{'descr': '|u1', 'fortran_order': False, 'shape': (3000000000, 8, 8, 3)}",
    f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({10**30}, 8, 8, 3)}}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (24, -8, -8, 3)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (True, 8, 8, 3)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (24, 8.0, 8, 3)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': 24}",
    "{'descr': '|u1', 'fortran_order': 1, 'shape': (24,)}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
    "{'descr': '|V8', 'fortran_order': False, 'shape': (1,)}",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (1,)}",
    "{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1,)}",
    "{'descr': '|u1', 'shape': (1,)}",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0, 4611686018427387904, 8, 3)}",
    "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (1,)}",
    "{'descr': '|S0', 'fortran_order': False, 'shape': (4,)}",
    "__import__('os').system('touch CODE_WAS_EXECUTED')",
    "(" * 5000 + ")" * 5000,
    "{" + " " * 9000 + "}",
    "",
)


def member_header(random: Random, content: bytes) -> bytes:
    members = members_of(content)
    name = pick(random, list(members))
    version = pick(random, (b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    members[name] = declared(pick(random, HEADERS), members[name][-64:], version)
    return zipped(members)


def member_array(random: Random, content: bytes) -> bytes:
    arrays = arrays_of(content)
    name = pick(random, list(arrays))
    array = arrays[name]
    made: tuple[Callable[[], Any], ...] = (
        lambda: np.asfortranarray(array),
        lambda: array.astype(array.dtype.newbyteorder(">")),
        lambda: np.atleast_1d(array)[:0],
        lambda: array[:, :0] if array.ndim > 1 else np.atleast_1d(array)[:0],
        lambda: array[..., :1] if array.ndim else array,
        lambda: array.reshape(-1),
        lambda: np.array(3),
        lambda: np.array("text"),
        lambda: np.array([None, {"a": 1}], dtype=object),
        lambda: np.array([calls()[0]], dtype=object),
        lambda: np.zeros(array.shape, dtype=[("a", "<i4"), ("b", "|u1")]),
        lambda: np.zeros(array.shape, dtype="M8[s]"),
        lambda: np.zeros(array.shape, dtype=np.complex64),
        lambda: np.zeros(array.shape, dtype=np.float16),
        lambda: np.full(array.shape, np.nan),
        lambda: np.full(array.shape, -1),
        lambda: np.full(array.shape, 2**63, dtype=np.uint64),
        lambda: np.zeros(array.shape, dtype=bool),
        lambda: np.array([b"\xff\xfe", b"b", b"c", b"d"]),
        lambda: np.array(["\x1b[31m", "[/]", "", "\x00"]),
        lambda: np.array(["a", "a", "a", "a"]),
        lambda: np.array(["x" * 100_000, "b", "c", "d"]),
        lambda: np.concatenate([array, array]) if array.ndim else array,
        lambda: np.zeros((1,) * 32, dtype=np.uint8),
        lambda: np.array("{}"),
        lambda: np.array("5"),
        lambda: np.array("[" * 100_000),
        lambda: np.array('{"arrays": ["../../../secret"], "classes": null, "notices": []}'),
        lambda: np.array('{"arrays": [5], "classes": 5, "notices": 5}'),
        lambda: np.array('{"arrays": [], "classes": null, "notices": []}'),
        lambda: np.array('{"arrays": ["images"], "classes": [1, 2], "notices": [[1]]}'),
    )
    arrays[name] = pick(random, made)()
    return zipped({key: npy(value) for key, value in arrays.items()})


def mended_member(random: Random, content: bytes) -> bytes:
    """As `member_array`, with the checksum that mixopt puts among the arrays of its own files."""
    made = {name.removesuffix(".npy"): data for name, data in members_of(member_array(random, content)).items()}
    if "_checksum" not in made:
        return content
    with suppress(ValueError, TypeError):  # an array of objects has none
        return bytes(packed({name: np.load(io.BytesIO(made[name])) for name in made if name != "_checksum"}))
    return content


def member_bytes(random: Random, content: bytes) -> bytes:
    members = members_of(content)
    members[pick(random, list(members))] = pick(
        random, (b"", b"hello", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"\x80\x04N.")
    )
    return zipped(members)


def member_name(random: Random, content: bytes) -> bytes:
    members = members_of(content)
    old = pick(random, list(members))
    new = pick(random, [name for name in NAMES if "\ud800" not in name and len(name) < 60_000])
    new = pick(random, (new, f"{old}x", old.removesuffix(".npy"), f"../{old}", f"dir/{old}", old.upper()))
    return zipped({new if name == old else name: data for name, data in members.items()})


def member_missing(random: Random, content: bytes) -> bytes:
    members = members_of(content)
    del members[pick(random, list(members))]
    return zipped(members)


def member_more(random: Random, content: bytes) -> bytes:
    return zipped({**members_of(content), "more.npy": npy(np.arange(3)), "not_an_array.txt": b"hello"})


def member_twice(random: Random, content: bytes) -> bytes:
    members = members_of(content)
    name = pick(random, list(members))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for each, data in members.items():
            made.writestr(zipfile.ZipInfo(each), data)
        # The writer warns of a name that is there already; a directory's entry is not looked at.
        made.NameToInfo.clear()
        made.writestr(zipfile.ZipInfo(name), pick(random, (members[name], b"", npy(np.zeros(3)))))
    return stream.getvalue()


def zip_fields(random: Random, content: bytes) -> bytes:
    """A field of every member's entry set: that it is encrypted, how it is compressed, its checksum, its sizes."""
    changed = bytearray(content)
    field, width, value = pick(
        random,
        (
            ((8, 6), 2, 1),
            ((8, 6), 2, 0x41),
            ((10, 8), 2, 99),
            ((10, 8), 2, 8),
            ((10, 8), 2, 12),
            ((10, 8), 2, 14),
            ((16, 14), 4, 0),
            ((20, 18), 4, 2**31),
            ((24, 22), 4, 2**32 - 2),
            ((24, 22), 4, 2**32 - 1),
            ((24, 22), 4, 1),
            ((42, 6), 4, 2**31),
            ((6, 4), 2, 255),
        ),
    )
    for signature, offset in zip((b"PK\1\2", b"PK\3\4"), field, strict=True):
        at = changed.find(signature)
        while at >= 0:
            changed[at + offset : at + offset + width] = value.to_bytes(width, "little")
            at = changed.find(signature, at + 4)
    return bytes(changed)


def compressed(random: Random, content: bytes) -> bytes:
    """Legal, with other methods; then flipped bits where these lie."""
    made = bytearray(
        zipped(members_of(content), pick(random, (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    )
    for _ in range(int(random.integers(0, 4))):
        made[int(random.integers(len(made)))] ^= 1 << int(random.integers(8))
    return bytes(made)


def zip_bomb(random: Random, content: bytes) -> bytes:
    """Little that becomes much: 300 MB in 300 kB, under a header that asks for it or one that does not."""
    members = members_of(content)
    name = pick(random, list(members))
    count = 300_000_000 // 192
    header = (
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count}, 8, 8, 3)}}" if random.random() < 0.5 else None
    )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        for each, data in members.items():
            made.writestr(zipfile.ZipInfo(each), declared(header) if each == name and header else data)
            if each == name:
                made.NameToInfo.clear()
        with made.open(zipfile.ZipInfo(f"bomb_{name}"), "w") as sink:
            for _ in range(30):
                sink.write(bytes(10_000_000))
    return stream.getvalue()


NPZ: tuple[Mutation, ...] = tuple(
    rewriting(change)
    for change in (
        member_header,
        member_header,
        member_array,
        member_array,
        mended_member,
        mended_member,
        member_bytes,
        member_name,
        member_missing,
        member_more,
        member_twice,
        zip_fields,
        zip_fields,
        compressed,
        zip_bomb,
    )
)


def npy_header(random: Random, content: bytes) -> bytes:
    return declared(pick(random, HEADERS), content[128:], pick(random, (b"\x01\x00", b"\x02\x00", b"\x03\x00")))


def npy_array(random: Random, content: bytes) -> bytes:
    array = np.load(io.BytesIO(content))
    made: tuple[Callable[[], Any], ...] = (
        lambda: array[..., :1] if array.ndim > 1 else array[:1],
        lambda: array[:, :1] if array.ndim > 1 else array[:1],
        lambda: array.reshape(len(array), -1),
        lambda: array[:-1],
        lambda: array[::-1],
        lambda: np.concatenate([array, array]),
        lambda: array.astype(np.float32),
        lambda: array.astype(np.int64) + 1,
        lambda: array.astype(bool),
        lambda: np.asfortranarray(array),
        lambda: np.zeros_like(array),
        lambda: np.array(3),
        lambda: np.array([None] * len(array), dtype=object),
        lambda: np.array([calls()[0]] * len(array), dtype=object),
        lambda: np.zeros((len(array), 0, 8, 3), dtype=array.dtype),
        lambda: np.zeros(array.shape, dtype="M8[s]"),
        lambda: np.full(array.shape, 2**31, dtype=np.int64),
    )
    return npy(pick(random, made)())


NPY: tuple[Mutation, ...] = tuple(rewriting(change) for change in (npy_header, npy_array, npy_array))

# --- images


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int = 8, colour: int = 0, rows: bytes = bytes(100), more: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + more
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def huge_image(random: Random, content: bytes) -> bytes:
    """Files of a few bytes that declare images of many."""
    return pick(  # type: ignore[no-any-return]
        random,
        (
            png(100_000, 100_000),
            png(13_000, 13_000),
            png(2**31 - 1, 2**31 - 1),
            png(2**32 - 1, 1),
            png(0, 0),
            png(0, 16),
            png(16, 16, 16, 2, bytes(16 * (1 + 16 * 6))),
            png(16, 16, 7, 9),
            png(9000, 9000, 1, 0, bytes(9000 * (1 + 1125))),
            png(16, 16, more=_chunk(b"PLTE", b"\0")),
            png(16, 16, more=_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(50_000_000)))),
            png(16, 16, more=_chunk(b"tEXt", b"a\0" + b"x" * 100_000)),
            png(16, 16, more=_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))),
            png(16, 16, more=_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
            b"P6 100000 100000 255\n" + bytes(30),
            b"P6 2 2 99999999999999999999\n" + bytes(12),
            b"P5 99999999999999999999 1 255\n",
            b"P3 2 2 255\n1 2 3 x",
            b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02L\x01\x00;",
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 100_000, -100_000, 1, 24, 0, 0, 0, 0, 0, 0),
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, -5, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
            b"II*\x00\x08\x00\x00\x00\x00\x00",
            b"II*\x00\xff\xff\xff\xff",
            b"RIFF\x10\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x10\x00\x00\x00\xff\xff\xff\xff\xff\xff",
            b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01\xff\xd9",
        ),
    )


def another_mode(random: Random, content: bytes) -> bytes:
    """A legal image of another kind."""
    picture = Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8))
    stream = io.BytesIO()
    mode, name = pick(
        random,
        (
            ("CMYK", "JPEG"),
            ("CMYK", "TIFF"),
            ("P", "PNG"),
            ("1", "PNG"),
            ("LA", "PNG"),
            ("RGBA", "PNG"),
            ("I;16", "PNG"),
            ("I", "TIFF"),
            ("F", "TIFF"),
            ("L", "GIF"),
            ("RGBA", "WEBP"),
            ("YCbCr", "JPEG"),
            ("LAB", "TIFF"),
            ("P", "TGA"),
            ("RGB", "ICO"),
            ("RGB", "PCX"),
        ),
    )
    (
        picture.convert("I").convert(mode)
        if mode == "I;16"
        else picture.convert(mode)
        if mode != "LAB"
        else Image.new("LAB", (8, 8))
    ).save(stream, name)
    return stream.getvalue()


def several_frames(random: Random, content: bytes) -> bytes:
    frames = [Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8)) for _ in range(3)]
    stream = io.BytesIO()
    frames[0].save(stream, pick(random, ("GIF", "PNG", "WEBP", "TIFF")), save_all=True, append_images=frames[1:])
    return stream.getvalue()


def another_size(random: Random, content: bytes) -> bytes:
    height, width = pick(random, ((1, 1), (1, 3000), (3000, 1), (9, 7), (16, 16)))
    stream = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


IMAGES: tuple[Mutation, ...] = tuple(
    rewriting(change)
    for change in (huge_image, huge_image, huge_image, another_mode, another_mode, several_frames, another_size)
)
