from __future__ import annotations

import errno
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from amc.errors import ArtifactError, NetworkError, StorageError
from amc.utils import files
from amc.utils.files import (
    fingerprint,
    locked,
    read_tensors,
    read_tensors_and_metadata,
    read_text,
    storage_error,
    write_atomically,
    write_tensors,
    write_text,
)


def test_text_is_written_into_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "grün\n")
    assert path.read_bytes() == "grün\n".encode()
    assert read_text(path, "Text") == "grün\n"


def test_failed_write_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "No space left on the disk while writing .*run.json. Free some"),
        (errno.EACCES, "No permission to write .*run.json. Choose another folder"),
        (errno.EROFS, "No permission to write .*run.json"),
        (errno.EIO, "Could not write .*run.json: .*Input/output error"),
    ],
)
def test_a_failing_disk_is_said_in_one_line(
    code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, "Input/output error")

    monkeypatch.setattr(tempfile, "mkstemp", fail)
    with pytest.raises(StorageError, match=said) as raised:
        write_text(tmp_path / "run.json", "x")
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 1


def test_full_disk_is_recognised_in_the_words_of_safetensors() -> None:
    said = storage_error(Path("w.safetensors"), RuntimeError("No space left on device (os error)"))
    assert "No space left on the disk" in str(said)


def test_folder_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Could not write"):
        write_text(tmp_path / "file" / "run.json", "x")


def test_missing_and_binary_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Strategy not found: .*none\.json"):
        read_text(tmp_path / "none.json", "Strategy")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="Strategy cannot be read"):
        read_text(tmp_path / "binary", "Strategy")


def test_tensors_come_back_bit_by_bit(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.tensor(2)}  # a is not contiguous
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = read_tensors(tmp_path / "t.safetensors", "Weights")
    assert {name: tuple(t.shape) for name, t in found.items()} == {"a": (4, 3), "b": ()}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_what_is_no_safetensors_file_is_refused_with_the_callers_error(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors")
    with pytest.raises(NetworkError, match="Checkpoint is not a readable safetensors file"):
        read_tensors(tmp_path / "bad.safetensors", "Checkpoint", NetworkError)
    with pytest.raises(NetworkError, match="Checkpoint not found"):
        read_tensors(tmp_path / "none.safetensors", "Checkpoint", NetworkError)


def test_file_beyond_its_bound_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("0123456789")
    assert read_text(tmp_path / "long", "Text", most=10) == "0123456789"
    with pytest.raises(ArtifactError, match=r"cannot be read: .*long is larger than 9 bytes"):
        read_text(tmp_path / "long", "Text", most=9)


def test_line_ends_of_every_system_are_newlines(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"a\r\nb\rc\n")
    assert read_text(tmp_path / "lines", "Text") == "a\nb\nc\n"


def test_name_that_no_file_can_have_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Text cannot be read"):
        read_text(tmp_path / "a\0b", "Text")


def test_tensors_of_every_type_and_of_no_numbers_come_back(tmp_path: Path) -> None:
    names = ("float64", "float16", "bfloat16", "int8", "uint8", "int64", "bool", "float8_e5m2")
    tensors = {name: torch.ones(2, 3).to(getattr(torch, name)) for name in (*names, "complex64")}
    tensors["nothing"] = torch.zeros(0, 3)
    write_tensors(tmp_path / "t.safetensors", tensors, {"note": "grün"})
    found, metadata = read_tensors_and_metadata(tmp_path / "t.safetensors", "Weights")
    assert metadata == {"note": "grün"}
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name].cfloat(), tensor.cfloat())


def test_fingerprint_depends_on_every_part_and_on_where_parts_end() -> None:
    zeros = torch.zeros(4)
    prints = {
        fingerprint("ab", "c"),
        fingerprint("a", "bc"),
        fingerprint("abc"),
        fingerprint(zeros),
        fingerprint(zeros.reshape(2, 2)),
        fingerprint(zeros.double()),
        fingerprint(zeros, zeros),
    }
    assert len(prints) == 7
    assert fingerprint(b"ab", "c") == fingerprint("ab", "c")
    assert all(len(text) == 16 for text in prints)


# -- locks -----------------------------------------------------------------------------------------

_ADDS = """
import sys
from pathlib import Path
from amc.utils.files import locked, write_text

path = Path(sys.argv[1])
for _ in range(50):
    with locked(path):
        write_text(path, str(int(path.read_text()) + 1))
"""


def test_processes_that_change_a_file_under_its_lock_lose_no_change(tmp_path: Path) -> None:
    path = tmp_path / "count"
    path.write_text("0")
    adding = [subprocess.Popen([sys.executable, "-c", _ADDS, str(path)]) for _ in range(2)]
    assert [process.wait() for process in adding] == [0, 0]
    assert path.read_text() == "100"
    assert [file.name for file in tmp_path.iterdir()] == ["count"]


def test_lock_is_let_go_after_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path / "new" / "file"):
            raise KeyError
    assert not list((tmp_path / "new").iterdir())


def test_file_of_a_system_without_locks_is_changed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoLocks:
        LOCK_EX, LOCK_NB = 2, 4

        def flock(self, handle: int, operation: int) -> None:
            raise OSError(errno.ENOTSUP, "Operation not supported")

    for module in (None, NoLocks()):
        monkeypatch.setattr(files, "_fcntl", module)
        with locked(tmp_path / "file"):
            (tmp_path / "file").write_text("changed")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_lock_in_a_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Could not write"), locked(tmp_path / "file" / "t.csv"):
        pass
