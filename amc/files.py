"""Reading and writing files so that a crash loses nothing and a failure is said plainly."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
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

# Not on every system: where it is missing, what several processes write is not locked.
_fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None


def cache_folder() -> Path:
    """Where tables and trained base networks are kept: $AMC_CACHE, else the user's cache."""
    explicit = os.environ.get("AMC_CACHE")
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "amc"


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
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process is inside this for the same file; for reading, then writing it.

    The lock is a file beside it that is gone afterwards. A process that is killed leaves no lock.
    Not to be entered again from within.

    Raises:
        StorageError: The folder cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    if _fcntl is None:
        yield
        return
    try:
        handle = _acquire(lock)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # before it is let go: who waits for it sees that it is gone
        os.close(handle)


def _acquire(lock: Path) -> int:
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _fcntl.flock(handle, _fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            return handle
        except BaseException:
            os.close(handle)
            raise
        if _is_at(handle, lock):
            return handle
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def read_text(path: Path, what: str, error: type[AmcError] = ArtifactError) -> str:
    """Read a text file; ``what`` names it in the error that a missing or binary file raises."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{what} not found: {path}.") from None
    except (OSError, UnicodeDecodeError) as cause:
        raise error(f"{what} cannot be read: {path}: {cause}.") from cause


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
    if not path.is_file():
        raise error(f"{what} not found: {path}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as cause:
        raise error(f"{what} is not a readable safetensors file: {path}: {cause}.") from cause


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
