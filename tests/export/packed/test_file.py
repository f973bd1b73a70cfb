"""Damaged files: each is one clear error, whatever is in it."""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path

import pytest
import torch

from amc.errors import AmcError, ArtifactError, ConfigError, ExportError
from amc.export.packed import file, frequencies
from amc.export.packed.network import load_packed, pack
from amc.utils.documents import fault
from tests.export.packed.damage import checked, damaged, put_together, taken_apart
from tests.export.packed.nets import compressed, small

MUTATIONS = 400
WRONG = fault("It", ArtifactError)


@pytest.fixture(scope="module")
def content() -> bytes:
    return pack(*compressed(), "small").content


@pytest.fixture(scope="module")
def huffman() -> bytes:
    return pack(*compressed(), "small", coder="huffman").content


@pytest.mark.parametrize("seed", range(2))
def test_damage_is_an_error_of_amc_or_a_network(
    content: bytes, huffman: bytes, tmp_path: Path, seed: int
) -> None:
    draw, read = random.Random(seed), 0
    for number in range(MUTATIONS // 2):
        path = tmp_path / "it.amcp"
        path.write_bytes(damaged((content, huffman)[number % 2], draw))
        start = time.perf_counter()
        with contextlib.suppress(AmcError):
            load_packed(path, small())
            read += 1
        assert time.perf_counter() - start < 5
    assert read < MUTATIONS // 4  # an unlike checksum alone is enough to be refused


def test_every_byte_counts(content: bytes) -> None:
    for place in range(0, len(content), 7):
        other = bytearray(content)
        other[place] ^= 16
        with pytest.raises(ArtifactError):
            file.parsed(bytes(other), WRONG)


@pytest.mark.parametrize("length", [0, 1, 4, 8, 9, 50, -5, -1])
def test_a_file_that_is_cut_off_says_so(content: bytes, length: int) -> None:
    with pytest.raises(ArtifactError, match=r"is none|cut off|has version"):
        file.parsed(content[:length], WRONG)


def test_another_file_is_said_to_be_none() -> None:
    with pytest.raises(ArtifactError, match="does not begin with AMCP"):
        file.parsed(b"PK\3\4" + bytes(100), WRONG)


def test_a_later_version_is_said_to_be_one(content: bytes) -> None:
    later = checked(content[:4] + b"\2" + content[5:-4])
    with pytest.raises(ArtifactError, match="has version 2; this amc reads 1"):
        file.parsed(later, WRONG)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"Packed file not found: .*none\.amcp"):
        load_packed(tmp_path / "none.amcp", small())


def test_a_message_names_the_file_and_what_helps(tmp_path: Path) -> None:
    path = tmp_path / "x.amcp"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ArtifactError, match=r"x\.amcp is none.*Export it again: amc export"):
        load_packed(path, small())


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (2, [2**40], "promises more numbers"),
        (2, [2**30, 2**30, 2**30], "promises more numbers"),
        (2, [3, -1], "must have a name, a type, a shape"),
        (2, [1] * 9, "must have a name, a type, a shape"),
        (1, "f8", "must have a name, a type, a shape"),
        (0, 5, "must have a name, a type, a shape"),
        (3, 9, "has a form 9, which this amc does not know, in tensor"),
        (4, 10**6, "does not hold the tensors of its table"),
    ],
)
def test_a_table_that_promises_too_much_is_refused(
    content: bytes, place: int, value: object, said: str
) -> None:
    header, rest = taken_apart(content)
    weight = next(n for n, entry in enumerate(header["tensors"]) if entry[0] == "conv2.weight")
    header["tensors"][weight][place] = value
    start = time.perf_counter()
    with pytest.raises(ArtifactError, match=said):
        file.parsed(put_together(header, rest), WRONG)
    assert time.perf_counter() - start < 1


def test_a_header_that_unfolds_without_end_is_refused(content: bytes) -> None:
    header, rest = taken_apart(content)
    header["network"] = "a" * 2**22
    with pytest.raises(ArtifactError, match="promises a header of"):
        file.parsed(put_together(header, rest), WRONG)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("format", "amc-run", "is not of format 'amc-packed'"),
        ("kept", {"conv1": "xyz"}, "'kept' must be"),
        ("kept", {"conv1": "ffff"}, "positions below 8"),
        ("image_shape", [3, 0, 8], "not of three sides that can be"),
        ("image_shape", [3, 2**62, 8], "not of three sides that can be"),
        ("strategy", {"format": "amc-strategy", "version": 9}, "version 9"),
    ],
)
def test_a_header_is_checked_field_by_field(
    content: bytes, tmp_path: Path, field: str, value: object, said: str
) -> None:
    header, rest = taken_apart(content)
    header[field] = value
    path = tmp_path / "it.amcp"
    path.write_bytes(put_together(header, rest))
    with pytest.raises(AmcError, match=said):
        load_packed(path, small())


def test_a_tensor_twice_is_refused(content: bytes) -> None:
    header, rest = taken_apart(content)
    entry = list(header["tensors"][0])
    part = rest[: entry[4]]
    header["tensors"].insert(0, entry)
    with pytest.raises(ArtifactError, match="two tensors of one name"):
        file.parsed(put_together(header, part + rest), WRONG)


def test_a_tensor_of_complex_numbers_has_no_place() -> None:
    header = {"network": "x", "image_shape": (1, 2, 2), "strategy": {}, "kept": {}}
    with pytest.raises(ExportError, match=r"Tensor 'a' of torch\.complex64"):
        file.written(header, {"a": torch.zeros(3, dtype=torch.complex64)})


def test_an_unknown_coder_is_named() -> None:
    with pytest.raises(ConfigError, match="coder must be one of range, huffman, got 'zip'"):
        pack(*compressed(), "small", coder="zip")


def test_without_the_package_a_file_is_written_that_needs_none(
    content: bytes, huffman: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("constriction")
    assert taken_apart(huffman)[0]["coder"] == "huffman"
    monkeypatch.setattr(frequencies, "library", lambda: None)
    assert pack(*compressed(), "small").content == huffman
    path = tmp_path / "it.amcp"
    path.write_bytes(content)
    if taken_apart(content)[0]["coder"] == "range":
        with pytest.raises(ConfigError, match="constriction, which reads that, is not installed"):
            load_packed(path, small())
