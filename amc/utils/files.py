"""Reading and writing files so that a crash loses nothing and a failure is said plainly."""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from amc.errors import AmcError, ArtifactError, StorageError
from amc.utils.documents import (
    MOST_CHARACTERS,
    OBJECT,
    Fault,
    Kind,
    check_fields,
    check_format,
    fault,
    is_whole,
    parse_json,
    shown,
)

# Not on every system: where it is missing, what several processes write is not locked.
_fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
_LOOK_EVERY_S = 0.02  # whether a lock is free
log = logging.getLogger("amc")


def write_atomically(
    path: Path, write: Callable[[Path], None], move: Callable[[Path, Path], object] = Path.replace
) -> None:
    """Call ``write`` on a temporary neighbour of ``path``, then move it into place.

    A reader sees the old file or the new one, never half of one; a failure leaves the old.

    Raises:
        StorageError: The folder cannot be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)
        move(temporary, path)
    except (OSError, SafetensorError) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise storage_error(path, error) from error
    except BaseException:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise


def storage_error(path: Path, error: Exception) -> StorageError:
    """The one clear message for a file that could not be written."""
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.ENOSPC or "No space left" in str(error):
        return StorageError(
            f"No space left on the disk while writing {path}. Free some, run again."
        )
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"No permission to write {path}. Choose another folder or fix its mode."
        )
    return StorageError(f"Could not write {path}: {error}.")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    write_atomically(path, lambda temporary: _write(temporary, text))


def write_once(path: Path, text: str) -> None:
    """Write a text file unless it is there: of several processes, the first one's stays."""
    write_atomically(path, lambda temporary: _write(temporary, text), _link)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        temporary.replace(path)
        return
    temporary.unlink()


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@contextmanager
def locked(path: Path, waits: str = "", *, patience_s: float = math.inf) -> Iterator[None]:
    """Waits until no other process is inside this for the same file; for reading, then writing it.

    The lock is a file beside it that is gone afterwards. A process that is killed leaves no lock.
    Not to be entered again from within.

    Args:
        waits: What is said if it has to wait.
        patience_s: How long it waits.

    Raises:
        StorageError: The folder cannot be written.
        TimeoutError: It has waited so long.
    """
    lock = path.with_name(f".{path.name}.lock")
    if _fcntl is None:
        yield
        return
    try:
        handle = _acquire(lock, waits, patience_s)
    except TimeoutError:
        raise
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is let go: who waits for it sees that it is gone
        os.close(handle)


def _acquire(lock: Path, waits: str, patience_s: float) -> int:
    lock.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience_s
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _is_free(handle):
                if waits:
                    log.info("waiting: %s", waits)
                    waits = ""  # what waits first may meet another one in the end
                _wait_for(handle, until)
        except BaseException:
            os.close(handle)
            raise
        if _is_at(handle, lock):
            return handle
        os.close(handle)


def _wait_for(handle: int, until: float) -> None:
    if math.isinf(until):
        _fcntl.flock(handle, _fcntl.LOCK_EX)
        return
    while not _is_free(handle):
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(_LOOK_EVERY_S)


def _is_free(handle: int) -> bool:
    """Whether the lock of an open file is this process's now."""
    try:
        _fcntl.flock(handle, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def read_bytes(
    path: Path,
    what: str,
    error: type[AmcError] = ArtifactError,
    *,
    most: int = MOST_CHARACTERS,
) -> bytes:
    """The content of a file of at most so many bytes.

    Args:
        what: Names it in the error.

    Raises:
        AmcError: Of the kind given: it is missing, cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError:
        raise error(f"{what} not found: {path}.") from None
    except (OSError, ValueError) as cause:  # ValueError: no file has such a name
        raise error(f"{what} cannot be read: {path}: {cause}.") from cause
    if len(content) > most:
        raise error(f"{what} cannot be read: {path} is larger than {most} bytes.")
    return content


def read_text(
    path: Path,
    what: str,
    error: type[AmcError] = ArtifactError,
    *,
    most: int = MOST_CHARACTERS,
) -> str:
    """The content of a text file (UTF-8, whose line ends become newlines); see `read_bytes`."""
    try:
        text = read_bytes(path, what, error, most=most).decode()
    except UnicodeDecodeError as cause:
        raise error(f"{what} cannot be read: {path}: {cause}.") from cause
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_document(
    path: Path,
    what: str,
    format_name: str,
    version: int,
    fields: Mapping[str, Kind],
    error: type[AmcError] = ArtifactError,
    advice: str = "",
) -> dict[str, Any]:
    """A JSON file of amc's: of this format and version, with all these fields.

    Args:
        what: Names it in the error that a missing or binary file raises.
        advice: What to do about a file that is damaged.

    Raises:
        AmcError: Of the kind given: it is missing, or not such a file.
    """
    wrong = fault(str(path), error, advice)
    document = check_format(
        parse_json(read_text(path, what, error), wrong), format_name, version, wrong
    )
    check_fields(document, fields, wrong)
    return document


# -- tensors -------------------------------------------------------------------------------


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(ready, temporary, dict(metadata or {})))


def read_tensors(
    path: Path, what: str, error: type[AmcError] = ArtifactError
) -> dict[str, torch.Tensor]:
    """Read a safetensors file (numbers only: loading it cannot run code)."""
    return read_tensors_and_metadata(path, what, error)[0]


def read_tensors_and_metadata(
    path: Path, what: str, error: type[AmcError] = ArtifactError
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file, and the texts in its header.

    The header is checked before anything that it promises is believed: that its tensors are of
    known types, as large as their shapes say, and one after the other the rest of the file.

    Raises:
        AmcError: Of the kind given: it is missing, or is no such file.
    """
    wrong = fault(f"{what} is not a readable safetensors file: {path}", error)
    if not path.is_file():
        raise error(f"{what} not found: {path}.")
    try:
        metadata = _checked_header(path, wrong)
        return load_file(path), metadata
    except AmcError:
        raise
    except Exception as cause:  # of many kinds, whatever a library of another version makes of it
        raise wrong(f"is damaged: {cause}") from cause


# Bytes of a number of each type.
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_METADATA = "__metadata__"


def _checked_header(path: Path, wrong: Fault) -> dict[str, str]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if length > min(size - 8, MOST_CHARACTERS):
            raise wrong(f"is cut off, or has no header: it has {size} bytes")
        header = parse_json(file.read(length).decode(), wrong)
    if not OBJECT[0](header):
        raise wrong("has no header of tensors by name")
    metadata = header.pop(_METADATA, {})
    if not (OBJECT[0](metadata) and all(isinstance(text, str) for text in metadata.values())):
        raise wrong("must have texts alone beside its tensors")
    spans = sorted(_span(name, entry, wrong) for name, entry in header.items())
    ends = [0, *(end for _, end in spans)]
    if [start for start, _ in spans] != ends[:-1] or ends[-1] != size - 8 - length:
        raise wrong("does not hold its tensors one after the other, and nothing else")
    return dict(metadata)


def _span(name: str, entry: Any, wrong: Fault) -> tuple[int, int]:
    """Where a tensor's numbers begin and end."""
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    for numbers in (shape, offsets):
        if not (isinstance(numbers, list) and len(numbers) <= 64 and all(map(is_whole, numbers))):
            raise wrong(f"does not say the shape and place of {shown(name)} in whole numbers")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise wrong(f"has {shown(name)} of type {shown(dtype)}, of: {', '.join(_ITEM_BYTES)}")
    wanted = math.prod(shape) * _ITEM_BYTES[dtype]
    if len(offsets) != 2 or offsets[1] - offsets[0] != wanted:
        raise wrong(f"has not as many bytes for {shown(name)} as a tensor of {shape} takes")
    if math.prod(max(1, side) for side in shape) >= 2**62:
        raise wrong(f"has {shown(name)} of a shape that no tensor can have, {shape}")
    return offsets[0], offsets[1]


def fingerprint(*parts: str | bytes | torch.Tensor) -> str:
    """Sixteen hex digits that change whenever any of the parts changes."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        elif isinstance(part, str):
            part = part.encode()
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()[:16]
