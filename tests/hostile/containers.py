"""Changes inside of a container that stays sound: its lengths and checksums are right."""

from __future__ import annotations

import io
import json
import pickle
import sqlite3
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from amc.utils.sealed import Sealed
from tests.hostile.mutations import BYTES, Mutation, changed_value, json_value, odd_value


def safetensors_header(content: bytes, draw: Random) -> bytes:
    """Change the header of a safetensors file."""
    (length,) = struct.unpack_from("<Q", content)
    change = json_value if draw.random() < 0.7 else draw.choice(BYTES)
    header = change(content[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def safetensors_tensors(content: bytes, draw: Random) -> bytes:
    """Change the tensors of a safetensors file, whatever its metadata say."""
    with _file(content) as path, safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    return save(_changed_tensors(load(content), draw), metadata)


def _changed_tensors(tensors: dict[str, Tensor], draw: Random) -> dict[str, Tensor]:
    name = draw.choice(sorted(tensors))
    found = tensors.pop(name)
    odd = (
        found.flatten(),
        found[:0] if found.ndim else found.reshape(1),
        found.to(torch.int64),
        found.to(torch.float16),
        found.to(torch.float8_e5m2) if found.is_floating_point() else found.bool(),
        torch.full_like(found, -1 if found.dtype != torch.uint8 else 255),
        torch.full(found.shape, float("nan")),
        torch.zeros(2, 3, 4),
    )
    way = draw.randrange(len(odd) + 3)
    if way < len(odd):
        tensors[name] = odd[way].contiguous().clone()
    elif way == len(odd):
        tensors[draw.choice(("x", "", "a/b", f"{name}x", "model/0/0"))] = found
    elif way == len(odd) + 1 and tensors:
        other = draw.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], found
    return tensors


def sealed(kind: Sealed) -> Mutation:
    """Change what a sealed file holds, and seal it again."""

    def change(content: bytes, draw: Random) -> bytes:
        with _file(content) as path:
            tensors, document = kind.read(path)
            if draw.random() < 0.7:
                document = changed_value(document, draw)
            else:
                tensors = _changed_tensors(tensors, draw)
            try:
                kind.write(path, tensors, document)
            except (TypeError, ValueError):  # the document is no object any more
                kind.write(path, tensors, {"numbers": document})
            return path.read_bytes()

    return change


def archive(content: bytes, draw: Random) -> bytes:
    """Change a member of a zip archive, or the list of them."""
    with zipfile.ZipFile(io.BytesIO(content)) as found:
        members = {name: found.read(name) for name in found.namelist()}
    names = sorted(members)
    name = draw.choice([n for n in names if n.endswith("data.pkl")] * len(names) + names)
    way = draw.random()
    if way < 0.8 and members[name]:
        members[name] = draw.choice(BYTES)(members[name], draw)
    elif way < 0.9:
        del members[name]
    else:
        other = draw.choice(names)
        members[name], members[other] = members[other], members[name]
    written = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if draw.random() < 0.05 else zipfile.ZIP_STORED
    with zipfile.ZipFile(written, "w") as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name), member, compression)  # of no date: always alike
    return written.getvalue()


def npy_header(content: bytes, draw: Random) -> bytes:
    """Change the header of an array."""
    (length,) = struct.unpack_from("<H", content, 8)
    header = draw.choice(BYTES)(content[10 : 10 + length], draw)[:65535]
    return content[:8] + struct.pack("<H", len(header)) + header + content[10 + length :]


def pickled(content: bytes, draw: Random) -> bytes:
    """Change a value in a pickle."""
    value = pickle.loads(content)  # made by this program
    names = sorted(value)
    layer: Any = dict(value[draw.choice(names)])
    key = draw.choice(sorted(layer))
    change: Any = odd_value(draw)
    if key == "latency" and draw.random() < 0.7:
        change = dict(layer[key])
        price = draw.choice(sorted(change))
        odd = (odd_value(draw), (odd_value(draw), 4))
        odd_key = draw.choice([part for part in odd if _has_hash(part)] or [3])
        change[odd_key] = change.pop(price) if draw.random() < 0.5 else odd_value(draw)
    layer[key] = change
    value[draw.choice(names)] = layer
    return pickle.dumps(value, draw.randrange(6))


def _has_hash(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def rows(content: bytes, draw: Random) -> bytes:
    """Change a row of a database, or its schema, by SQL."""
    with _file(content) as path:
        database = sqlite3.connect(path)
        tables = [
            n for (n,) in database.execute("SELECT name FROM sqlite_master WHERE type='table'")
        ]
        table = draw.choice(sorted(tables))
        columns = [str(row[1]) for row in database.execute(f"PRAGMA table_info({table})")]
        try:
            _change_rows(database, table, draw.choice(columns), draw)
            database.commit()
        except sqlite3.Error:  # a value that the table refuses
            database.rollback()
        database.execute("PRAGMA journal_mode=DELETE")
        database.close()
        return path.read_bytes()


def _change_rows(database: sqlite3.Connection, table: str, column: str, draw: Random) -> None:
    way = draw.random()
    statements = (
        f"DROP TABLE {table}",
        f"ALTER TABLE {table} ADD COLUMN more TEXT",
        f"DELETE FROM {table} WHERE length({column}) % 2",
        f"CREATE VIEW other AS SELECT * FROM {table}",
        f"CREATE TRIGGER other AFTER INSERT ON {table} BEGIN DELETE FROM {table}; END",
        f"UPDATE {table} SET {column} = X'ff00ff'",
        f"UPDATE {table} SET {column} = 1e999",
        f"UPDATE {table} SET {column} = '{'[' * 5000}'",
    )
    if way < 0.3:
        database.execute(draw.choice(statements))
        return
    found = database.execute(
        f"SELECT rowid, {column} FROM {table}"
        if "trials" in table
        else f"SELECT NULL, {column} FROM {table}"
    ).fetchall()
    if not found:
        return
    _, text = draw.choice(found)
    try:
        change = json.dumps(changed_value(json.loads(text), draw))
    except (ValueError, TypeError):
        change = str(odd_value(draw)).encode("utf-8", "replace").decode()
    database.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (change, text))


class _file:  # used as a function
    """A file with this content, for as long as the context lasts."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __enter__(self) -> Path:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "file"
        path.write_bytes(self._content)
        return path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


Change = Callable[[bytes, Random], bytes]
