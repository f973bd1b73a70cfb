"""Tensors out of a file that ``torch.save`` wrote, without PyTorch's unpickler.

Such a file is a zip archive: ``data.pkl``, a pickle in which a tensor is a call of
``_rebuild_tensor_v2`` on a storage that is kept elsewhere, and the storages, one member each.
Before PyTorch 1.6 it was pickles one after the other, then the storages. `amc.utils.pickles` runs
the pickle; what it calls here makes descriptions of tensors, and a tensor is made of those alone
that are asked for, once its numbers are known to be in the file.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from amc.errors import NetworkError
from amc.utils.documents import shown
from amc.utils.pickles import Known, RefusedError, dictionary_of, run_pickle

MOST_PICKLE_BYTES = 64 * 2**20
_MOST_DIRECTORY_BYTES = 32 * 2**20  # of the archive's list of members
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MOST_DIMENSIONS = 64

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class Storage:
    """Numbers in a file: the storage's key, their type and how many there are."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, checked to lie within its storage; sizes in numbers."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class OtherTensor:
    """A tensor that is no plain array of numbers."""

    kind: str


class TorchFile(Protocol):
    """What a file holds, tensors as `StoredTensor` or `OtherTensor`."""

    @property
    def content(self) -> Any: ...

    def read(self, storage: Storage) -> bytearray:
        """The bytes of a storage."""


def read_torch_file(path: Path, file: BinaryIO) -> TorchFile:
    """The content of a .pt file.

    Raises:
        NetworkError: It holds more than tensors and plain values, or is no such file.
    """
    try:
        return _Archive(file) if zipfile.is_zipfile(file) else _Legacy(file)
    except RefusedError as cause:
        raise NetworkError(
            f"Checkpoint {path} holds more than tensors ({str(cause)[:120]}) and was "
            "not loaded, because loading it could run code. Save network.state_dict() instead."
        ) from None
    except Exception as cause:  # of many kinds, whatever a broken file does to its reader
        raise damaged(path, cause) from cause


def load_tensors(
    path: Path, file: TorchFile, records: dict[str, StoredTensor]
) -> dict[str, Tensor]:
    """The tensors of these records, by their names.

    Raises:
        NetworkError: The file does not hold their numbers.
    """
    storages: dict[Storage, Tensor] = {}
    try:
        return {name: _tensor(file, record, storages) for name, record in records.items()}
    except Exception as cause:  # as above
        raise damaged(path, cause) from cause


def damaged(path: Path, cause: Exception) -> NetworkError:
    """The error of a file that is not what torch.save writes, or no more."""
    return NetworkError(
        f"Checkpoint {path} is damaged, or no file of torch.save: {cause}. Save the network's "
        "state_dict() again, or use another file."
    )


def _tensor(file: TorchFile, record: StoredTensor, storages: dict[Storage, Tensor]) -> Tensor:
    if record.storage not in storages:
        content = file.read(record.storage)
        wanted = record.storage.count * record.storage.dtype.itemsize
        if len(content) != wanted:
            raise ValueError(f"a storage has {len(content)} bytes, of {wanted}")
        storages[record.storage] = (
            torch.frombuffer(content, dtype=torch.uint8)
            if content
            else torch.empty(0, dtype=torch.uint8)
        )
    numbers = storages[record.storage].view(record.dtype)
    return numbers.as_strided(record.shape, record.stride, record.offset)


# -- what a pickle of torch.save may name --------------------------------------------------


def _dense(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    if type(storage) is not Storage:
        raise ValueError("a tensor without a storage")
    return _checked(storage, storage.dtype, offset, size, stride)


def _dense_of_type(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    """Of a type newer than typed storages: the storage is bytes."""
    if type(storage) is not Storage or not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor without a storage or a type")
    return _checked(storage, dtype, offset, size, stride)


def _checked(
    storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any
) -> StoredTensor:
    for numbers in ([offset], size, stride):
        if type(numbers) not in (tuple, list) or len(numbers) > _MOST_DIMENSIONS:
            raise ValueError("a tensor's shape is no list of whole numbers")
        if not all(type(n) is int and 0 <= n < 2**62 for n in numbers):
            raise ValueError("a tensor's shape is not in whole numbers from 0")
    if len(size) != len(stride):
        raise ValueError("a tensor has not as many strides as dimensions")
    held = storage.count * storage.dtype.itemsize // dtype.itemsize
    spans = [(n - 1) * step for n, step in zip(size, stride, strict=True)]
    wanted = offset + sum(spans) + 1 if all(size) else offset
    elements = _product(size)
    # Numbers may be shared (a stride of 0), but not so that few of them become many.
    if wanted > held or elements > max(held, 2**20):
        raise ValueError(f"a tensor of shape {tuple(size)} does not lie within its {held} numbers")
    return StoredTensor(storage, dtype, offset, tuple(size), tuple(stride))


def _product(sizes: Sequence[int]) -> int:
    found = 1
    for size in sizes:
        found = min(found * size, 2**62)
    return found


def _other(kind: str) -> Known:
    return Known(lambda *_: OtherTensor(kind))


def _bytes_of(text: Any = "", coding: Any = "latin1") -> bytes:
    if type(text) is not str or coding not in ("latin1", "latin-1"):
        raise ValueError("bytes of what is no text")
    return text.encode("latin1")


def _bytearray_of(content: Any = b"", *coding: Any) -> bytes:
    if type(content) not in (bytes, str):  # a number asks for so many zeros
        raise RefusedError(f"a bytearray of a {type(content).__name__}")
    return content if type(content) is bytes else _bytes_of(content, *coding)


def _same(value: Any, *_: Any) -> Any:
    return value


def _of_class(make: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes of its own, which are left out, or of another class."""
    if type(make) is not Known or type(arguments) is not tuple:
        raise ValueError("a tensor without its parts")
    made = make.call(*arguments)
    plain = kind is Tensor or isinstance(made, OtherTensor)
    return made if plain else OtherTensor("a tensor of another class")


_NAMES: dict[str, Any] = {
    "torch.Tensor": Tensor,
    "torch.nn.parameter.Parameter": Tensor,
    "torch._tensor._rebuild_from_type_v2": Known(_of_class),
    "collections.OrderedDict": Known(dictionary_of),
    "collections.Counter": Known(dictionary_of),
    "_codecs.encode": Known(_bytes_of),
    "torch.Size": Known(_same),
    "torch.device": Known(lambda *parts: shown(parts)),
    "torch.serialization._get_layout": Known(_same),
    "torch._utils._rebuild_tensor": Known(_dense),
    "torch._utils._rebuild_tensor_v2": Known(_dense),
    "torch._utils._rebuild_tensor_v3": Known(_dense_of_type),
    "torch._utils._rebuild_parameter": Known(_same),
    "torch._utils._rebuild_parameter_with_state": Known(_same),
    "torch._utils._rebuild_meta_tensor_no_storage": _other("a meta tensor, which has no numbers"),
    "torch._utils._rebuild_sparse_tensor": _other("a sparse tensor"),
    "torch._utils._rebuild_qtensor": _other("a quantized tensor"),
    "torch._utils._rebuild_nested_tensor": _other("a nested tensor"),
    "torch._utils._rebuild_wrapper_subclass": _other("a tensor of a class of its own"),
}
for _module in ("builtins", "__builtin__"):  # of Python 3, and as protocol 2 calls it
    _NAMES[f"{_module}.set"] = _NAMES[f"{_module}.frozenset"] = Known(lambda items=(): tuple(items))
    _NAMES[f"{_module}.complex"] = Known(lambda real=0.0, imaginary=0.0: (real, imaginary))
    _NAMES[f"{_module}.bytearray"] = Known(_bytearray_of)


def _named(name: str) -> Any:
    if name.startswith("torch.nested."):  # of ragged rows, with a class and a cache of its own
        raise RefusedError("a nested tensor")
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.storage") and last in _STORAGES:
        return _STORAGES[last]
    found = getattr(torch, last, None) if module == "torch" and last.isidentifier() else None
    return found if isinstance(found, (torch.dtype, torch.qscheme)) else _NAMES.get(name)


def _storage(identifier: Any) -> Storage:
    """('storage', type, key, where it was, count, a part of another one that it is or None)."""
    kind, dtype, key, _, count, *part = identifier
    if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
        raise ValueError("an object that is kept elsewhere is no storage")
    if type(count) is not int or not 0 <= count < 2**62 or (part and part != [None]):
        raise ValueError("a storage's size is no whole number, or it is part of another one")
    return Storage(key, dtype, count)


# -- the two forms of such a file ----------------------------------------------------------


class _Archive:
    """A zip archive."""

    def __init__(self, file: BinaryIO) -> None:
        if _directory_bytes(file) > _MOST_DIRECTORY_BYTES:
            raise ValueError("its list of members is too long")
        self._archive = zipfile.ZipFile(file)
        names = [name for name in self._archive.namelist() if name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError("the archive does not hold one data.pkl")
        self._folder = names[0].removesuffix("data.pkl")
        self._left = file.seek(0, 2)  # members that share their bytes would be more than these
        if f"{self._folder}constants.pkl" in self._archive.namelist():
            raise RefusedError("a TorchScript program")
        if f"{self._folder}byteorder" in self._archive.namelist():
            order = bytes(self._member("byteorder", 100))
            if order != b"little":
                raise ValueError(f"its byte order is {shown(order)}, not little")
        program = bytes(self._member("data.pkl", MOST_PICKLE_BYTES))
        self.content, _ = run_pickle(program, _named, _storage)

    def read(self, storage: Storage) -> bytearray:
        return self._member(f"data/{storage.key}", storage.count * storage.dtype.itemsize)

    def _member(self, name: str, most: int) -> bytearray:
        member = self._archive.getinfo(self._folder + name)
        self._left -= member.file_size
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > most or self._left < 0:
            raise ValueError(f"{name} in the archive is compressed, or larger than it may be")
        return bytearray(self._archive.read(member))


def _directory_bytes(file: BinaryIO) -> int:
    """The size of an archive's list of members, as the end of the file says it."""
    file.seek(max(0, file.seek(0, 2) - 2**17))
    end = file.read()
    at, large = end.rfind(b"PK\x05\x06"), end.rfind(b"PK\x06\x06")
    sizes: list[int] = [*struct.unpack_from("<I", end, at + 12)]
    if large >= 0:
        sizes += struct.unpack_from("<Q", end, large + 40)
    return max(size for size in sizes if size != 2**32 - 1 or large < 0)


class _Legacy:
    """Pickles one after the other: magic number, version, machine, content, keys; then storages."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.seek(0)
        content = file.read(MOST_PICKLE_BYTES)
        magic, at = run_pickle(content, _named)
        if magic != _LEGACY_MAGIC:
            raise ValueError("it does not begin with torch.save's magic number")
        version, at = run_pickle(content, _named, start=at)
        if version != _LEGACY_PROTOCOL:
            raise ValueError(f"its version is {shown(version)}, of {_LEGACY_PROTOCOL}")
        machine, at = run_pickle(content, _named, start=at)
        if type(machine) is not dict or machine.get("little_endian") is not True:
            raise ValueError("its byte order is not little")
        known: dict[str, Storage] = {}

        def storage(identifier: Any) -> Storage:
            found = _storage(identifier)
            return known.setdefault(found.key, found)

        self.content, at = run_pickle(content, _named, storage, start=at)
        keys, at = run_pickle(content, _named, start=at)
        self._places = self._found(keys, known, at)

    def _found(self, keys: Any, known: dict[str, Storage], at: int) -> dict[str, int]:
        """Where the bytes of each storage begin: each is its count, then its numbers."""
        places, size = {}, self._file.seek(0, 2)
        if type(keys) is not list or len(keys) > len(known):
            raise ValueError("it does not list its storages")
        for key in keys:
            self._file.seek(at)
            (count,) = struct.unpack("<q", self._file.read(8))
            if type(key) is not str or key not in known or known[key].count != count:
                raise ValueError("its storages are not those of its tensors")
            places[key] = at + 8
            at += 8 + count * known[key].dtype.itemsize
        if at > size:
            raise EOFError("it ends too early")
        return places

    def read(self, storage: Storage) -> bytearray:
        self._file.seek(self._places[storage.key])
        return bytearray(self._file.read(storage.count * storage.dtype.itemsize))
