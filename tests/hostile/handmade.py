"""Files that somebody made to do harm: to run for ever, to take all memory, to end in a traceback.

Each is made from the sound file of its kind, and must be refused at once.
"""

from __future__ import annotations

import io
import json
import sqlite3
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amc.recovery import training_state
from amc.study import checkpoint
from amc.utils.sealed import Sealed


@dataclass(frozen=True)
class Handmade:
    """A hostile file.

    Attributes:
        kind: Of `tests.hostile.kinds.KINDS`.
        make: Its content, from a sound one's.
        said: A part of the error.
    """

    kind: str
    make: Callable[[bytes], bytes]
    said: str


# -- JSON ----------------------------------------------------------------------------------


def _edited(**values: Any) -> Callable[[bytes], bytes]:
    return lambda sound: json.dumps({**json.loads(sound), **values}).encode()


def _raw(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda sound: sound.replace(old, new, 1)


def _always(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


# -- databases -----------------------------------------------------------------------------

_ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"


def _by_sql(*statements: str) -> Callable[[bytes], bytes]:
    def make(sound: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            path.write_bytes(sound)
            database = sqlite3.connect(path)
            for statement in statements:
                database.execute(statement)
            database.commit()
            database.close()
            return path.read_bytes()

    return make


def _endless_view(table: str, columns: str) -> Callable[[bytes], bytes]:
    return _by_sql(
        f"DROP TABLE {table}", f"CREATE VIEW {table} AS {_ENDLESS} SELECT {columns} FROM n"
    )


def _twice_the_root(sound: bytes) -> bytes:
    """The first table's page points at itself, many times over: more rows than the file has."""
    page = int.from_bytes(sound[16:18], "big")
    pages = [bytearray(sound[at : at + page]) for at in range(0, len(sound), page)]
    for number, content in enumerate(pages[1:], start=2):
        if content[0] == 13:  # a leaf of a table: made an inner page of children that are itself
            cells = 40
            content[0] = 5
            content[3:5] = cells.to_bytes(2, "big")
            content[8:12] = number.to_bytes(4, "big")
            for cell in range(cells):
                at = page - 5 * (cell + 1)
                content[at : at + 5] = number.to_bytes(4, "big") + bytes([cell + 1])
                content[12 + 2 * cell : 14 + 2 * cell] = at.to_bytes(2, "big")
    return b"".join(map(bytes, pages))


# -- states --------------------------------------------------------------------------------


def _resealed(kind: Sealed, **values: Any) -> Callable[[bytes], bytes]:
    """Another document, with the checksum that belongs to it."""

    def make(sound: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            path.write_bytes(sound)
            tensors, document = kind.read(path)
            kept = {name: t for name, t in tensors.items() if values.get("tensors") != ()}
            changed = {n: v for n, v in (document | values).items() if n != "tensors"}
            kind.write(path, kept, changed)
            return path.read_bytes()

    return make


# -- pickles -------------------------------------------------------------------------------


def _shared_tuples(levels: int = 60) -> bytes:
    """A key of tuples that hold the one before twice: hashing it takes 2 ** levels steps."""
    steps = b"".join(
        b"h" + bytes([at]) + b"h" + bytes([at]) + b"\x86q" + bytes([at + 1]) + b"0"
        for at in range(levels)
    )
    return b"\x80\x02}N\x85q\x000" + steps + b"h" + bytes([levels]) + b"Ns."


def _copied_again_and_again(entries: int = 30_000, times: int = 30_000) -> bytes:
    """Dictionaries of one list, again and again: entries * times entries."""
    pairs = b"".join(b"J" + n.to_bytes(4, "little") + b"N\x86" for n in range(entries))
    name = b"ccollections\nOrderedDict\nq\x00"
    return (
        b"\x80\x02" + name + b"](" + pairs + b"eq\x01" + b"0]" + b"h\x00h\x01\x85Ra" * times + b"."
    )


def _call(function: str, argument: bytes) -> bytes:
    module, _, name = function.rpartition(".")
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"\x85R."


_BYTEARRAY = _call("builtins.bytearray", b"\x8a\x06" + (10**11).to_bytes(6, "little"))
_SYSTEM = _call("posix.system", b"X\x04\x00\x00\x00echo")

# -- archives ------------------------------------------------------------------------------


def _archive(
    pickled: bytes, members: Mapping[str, bytes] = {}, compression: int = zipfile.ZIP_STORED
) -> bytes:
    written = io.BytesIO()
    whole = {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **members}
    with zipfile.ZipFile(written, "w") as archive:
        for name, content in whole.items():
            archive.writestr(zipfile.ZipInfo(f"net/{name}"), content, compression)
    return written.getvalue()


def _tensor(size: bytes, stride: bytes, offset: bytes = b"K\x00", count: bytes = b"K\x08") -> bytes:
    """A state dict of one tensor, on a storage that says to hold ``count`` numbers."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n("
    rest = b"\x89ccollections\nOrderedDict\n)RtR"
    tensor = rebuilt + storage + count + b"tQ" + offset + size + stride + rest
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


def _long(number: int) -> bytes:
    return b"\x8a\x08" + number.to_bytes(8, "little", signed=True)


def _stored(pickled: bytes) -> bytes:
    return _archive(pickled, {"data/0": b"\0" * 32})


_HUGE = _tensor(b"(" + _long(10**6) * 2 + b"t", b"(K\x00K\x00t")
_BEYOND = _tensor(b"K\x09\x85", b"K\x01\x85")
_BEFORE = _tensor(b"K\x02\x85", b"K\x01\x85", offset=_long(-4))
_BACKWARDS = _tensor(b"K\x02\x85", _long(-1) + b"\x85", offset=b"K\x04")
_PROMISED = _tensor(b"K\x08\x85", b"K\x01\x85", count=_long(2**40))

# -- safetensors ---------------------------------------------------------------------------


def _safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(shape: list[int], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64


_LAUGHS = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 9)) for n in range(8)
)
_MERGED = b"a: &a {x: 1}\n" + b"".join(
    b"%c: &%c {<<: [%s]}\n" % (98 + n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 9))
    for n in range(8)
)

_PICKLES = {
    "shared tuples as a key": (_shared_tuples(), "a key that holds a tuple"),
    "dictionaries copied again and again": (_copied_again_and_again(), "instructions and copies"),
    "a bytearray of 1e11": (_BYTEARRAY, "bytearray"),
    "a call of the system": (_SYSTEM, "posix.system"),
    "marks without end": (b"(" * 1_000_000, "containers nested"),
    "lists without end": (b"]" * 6_000_000, "instructions"),
    "an integer of a megabyte": (b"\x8b\x00\x00\x10\x00" + b"\x01" * 2**20 + b".", "an integer of"),
    "a number of a megabyte": (b"L" + b"9" * 2**20 + b"L\n.", "a number of"),
}


HANDMADE: dict[str, Handmade] = {
    "strategy of brackets": Handmade("strategy", _always(b"[" * 200_000), "nested too deep"),
    "strategy 70 deep": Handmade(
        "strategy", _edited(bits=json.loads("[" * 70 + "]" * 70)), "nested more than 64 deep"
    ),
    "ratio of 400 digits": Handmade(
        "strategy", _raw(b'"conv1": 0.5', b'"conv1": 1' + b"0" * 400), "401 digits, at most 40"
    ),
    "ratio beyond floats": Handmade(
        "strategy", _raw(b'"conv1": 0.5', b'"conv1": 1e400'), "the number 1e400 is too large"
    ),
    "group named by half a character": Handmade(
        "strategy", _raw(b'"conv1"', b'"\\ud800"'), "half a character"
    ),
    "run without data.name": Handmade("run", _edited(data={"seed": 0}), "data.name must be text"),
    "run of brackets": Handmade("run", _always(b'{"a":' * 100_000), "nested too deep"),
    "policy of a million lists": Handmade(
        "policy", _always(b"[" + b"[]," * 1_000_001 + b"0]"), "over 1000000 lists and objects"
    ),
    "kept channel of 1e39": Handmade(
        "structure", _edited(kept={"conv1": [10**39]}), "a channel's number"
    ),
    "store with a byte that is no text": Handmade(
        "store", _raw(b"CREATE TABLE", b"CRE\xffTE TABLE"), "Remove the file"
    ),
    "store whose table is an endless view": Handmade(
        "store",
        _endless_view("scores", "'task', 'x', '{}', '1'"),
        "'view' 'scores', which is none of amc's",
    ),
    "store with a trigger": Handmade(
        "store",
        _by_sql("CREATE TRIGGER t AFTER INSERT ON scores BEGIN DELETE FROM scores; END"),
        "'trigger' 't', which is none of amc's",
    ),
    "store with scores of brackets": Handmade(
        "store", _by_sql(f"UPDATE scores SET scores = '{'[' * 100_000}'"), "nested too deep"
    ),
    "journal with a byte that is no text": Handmade(
        "journal", _raw(b"CREATE TABLE", b"CRE\xffTE TABLE"), "search again, in another folder"
    ),
    "journal whose trials are an endless view": Handmade(
        "journal",
        _endless_view("trials", "x, '{}', '0', '{}', '{}', '{}', 1"),
        "'view' 'trials', which is none of amc's",
    ),
    "journal whose pages hold themselves": Handmade("journal", _twice_the_root, "is damaged"),
    "journal of origin null": Handmade(
        "journal",
        _by_sql("UPDATE about SET value = 'null' WHERE name = 'origin'"),
        "'origin' must be an object",
    ),
    "journal with evaluations of brackets": Handmade(
        "journal", _by_sql(f"UPDATE trials SET costs = '{'[' * 100_000}'"), "nested too deep"
    ),
    "journal with more stale trials than trials": Handmade(
        "journal",
        _by_sql("UPDATE about SET value = '4' WHERE name = 'stale'"),
        "4 of 3 evaluations",
    ),
    "checkpoint without numbers": Handmade(
        "agent's checkpoint", _resealed(checkpoint._SEALED, numbers={}), "'model' must be an object"
    ),
    "checkpoint without tensors": Handmade(
        "agent's checkpoint",
        _resealed(checkpoint._SEALED, tensors=()),
        "does not fit this agent",
    ),
    "training state without history": Handmade(
        "training state", _resealed(training_state.STATE, history=None), "'history' must be a list"
    ),
    "training state without tensors": Handmade(
        "training state", _resealed(training_state.STATE, tensors=()), "does not fit the network"
    ),
    "table with a column of a megabyte": Handmade(
        "table", _raw(b"op,", b"o" * 2**20 + b","), "not a line of a CSV file"
    ),
    "table with a number of 5000 digits": Handmade(
        "table", _raw(b"# threads: 1", b"# threads: " + b"9" * 5000), "expected an integer"
    ),
    "step of two megabytes": Handmade(
        "channel step", _always(b"8" * 2**21), "must hold one of 8, 4"
    ),
    "array of 1e15 numbers": Handmade(
        "HAQ's table", _always(_npy("(1000000000000000, 8, 8)")), "64 bytes follow"
    ),
    "array of brackets": Handmade("HAQ's table", _always(_npy("(" * 5000)), "not a .npy array"),
    "aliases of aliases": Handmade("Once-for-All's table", _always(_LAUGHS), "it has an alias"),
    "merges of merges": Handmade("Once-for-All's table", _always(_MERGED), "it has an alias"),
    "number of base sixty": Handmade(
        "Once-for-All's table",
        _always(b"Logits-input:1x1x8-output:5: {mean: 1" + b":1" * 500_000 + b"}\n"),
        "milliseconds as a number",
    ),
    "brackets in YAML": Handmade("Once-for-All's table", _always(b"[" * 17 + b"]" * 17), "16 deep"),
    "brackets without end in YAML": Handmade(
        "Once-for-All's table", _always(b"[" * 100_000), "is not a YAML file"
    ),
    **{
        f"NetAdapt's table: {name}": Handmade("NetAdapt's table", _always(content), said)
        for name, (content, said) in _PICKLES.items()
    },
    **{
        f".pt: {name}": Handmade("checkpoint, .pt", _always(_archive(content)), said)
        for name, (content, said) in _PICKLES.items()
    },
    ".pt: a tensor of 1e12 numbers in 8": Handmade(
        "checkpoint, .pt", _always(_stored(_HUGE)), "does not lie within its 8 numbers"
    ),
    ".pt: a tensor beyond its storage": Handmade(
        "checkpoint, .pt", _always(_stored(_BEYOND)), "does not lie within its 8 numbers"
    ),
    ".pt: a tensor before its storage": Handmade(
        "checkpoint, .pt", _always(_stored(_BEFORE)), "not in whole numbers from 0"
    ),
    ".pt: a tensor that runs backwards": Handmade(
        "checkpoint, .pt", _always(_stored(_BACKWARDS)), "not in whole numbers from 0"
    ),
    ".pt: a storage of 1e12 numbers in 32 bytes": Handmade(
        "checkpoint, .pt", _always(_stored(_PROMISED)), "a storage has 32 bytes"
    ),
    ".pt: a gigabyte of zeros, compressed": Handmade(
        "checkpoint, .pt",
        _always(_archive(b"\0" * 2**27, compression=zipfile.ZIP_DEFLATED)),
        "is compressed, or larger",
    ),
    ".pt: of another byte order": Handmade(
        "checkpoint, .pt", _raw(b"little", b"bigbig"), "Bad CRC-32"
    ),
    ".pt: before 1.6, with another magic": Handmade(
        "checkpoint, .pt before 1.6", _raw(b"\x8a\nl\xfc", b"\x8a\nl\xfd"), "magic number"
    ),
    ".pt: before 1.6, lists without end": Handmade(
        "checkpoint, .pt before 1.6", _always(b"]" * 6_000_000), "instructions"
    ),
    "safetensors whose header is longer than it": Handmade(
        "checkpoint, .safetensors", _always(struct.pack("<Q", 2**63) + b"{}"), "is cut off"
    ),
    "safetensors of brackets": Handmade(
        "checkpoint, .safetensors", _always(_safetensors(b"[" * 100_000)), "nested too deep"
    ),
    "safetensors of more numbers than bytes": Handmade(
        "checkpoint, .safetensors",
        _always(_safetensors(_entry([2**40], 4), b"\0" * 4)),
        "has not as many bytes",
    ),
    "safetensors of a shape of no numbers beyond all bounds": Handmade(
        "checkpoint, .safetensors",
        _always(_safetensors(_entry([0, 2**62, 2**62], 0))),
        "no tensor can have",
    ),
    "safetensors of a thousand dimensions": Handmade(
        "checkpoint, .safetensors",
        _always(_safetensors(_entry([1] * 1000, 4), b"\0" * 4)),
        "in whole numbers",
    ),
    "safetensors of an unknown type": Handmade(
        "checkpoint, .safetensors",
        _always(_safetensors(_entry([1], 4, "F128"), b"\0" * 4)),
        "of type 'F128'",
    ),
    "safetensors with a hole": Handmade(
        "checkpoint, .safetensors",
        _always(_safetensors(_entry([1], 4), b"\0" * 8)),
        "one after the other",
    ),
}
