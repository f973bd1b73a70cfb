"""The coders: what they write, by hand, and that they read it back."""

from __future__ import annotations

import numpy as np
import pytest

from amc.errors import ConfigError
from amc.export.packed import frequencies, huffman, integers
from amc.export.packed.alphabet import HALF, Alphabet
from amc.export.packed.bits import (
    Damaged,
    IntArray,
    Reader,
    Writer,
    packed,
    rice_packed,
    rice_unpacked,
    unpacked,
)
from amc.export.packed.contexts import Grid
from amc.export.packed.frequencies import MOST_LEVEL, levels_size, read_levels, write_levels

coders = pytest.mark.parametrize(
    "coder",
    [
        pytest.param(
            "range",
            marks=pytest.mark.skipif(
                frequencies.library() is None, reason="the package constriction is not installed"
            ),
        ),
        "huffman",
    ],
)
rng = np.random.default_rng(0)


def back(content: bytes, shape: tuple[int, ...]) -> IntArray:
    reader = Reader(content)
    found = integers.decoded(reader, shape)
    reader.end()
    return found


def test_whole_numbers_take_seven_bits_a_byte() -> None:
    writer = Writer()
    for number in (0, 127, 128, 300):
        writer.whole(number)
    writer.signed(-2)
    assert writer.done() == bytes([0, 127, 128, 1, 172, 2, 3])
    reader = Reader(writer.done())
    assert [reader.whole() for _ in range(4)] == [0, 127, 128, 300]
    assert reader.signed() == -2
    reader.end()


def test_numbers_of_three_bits_are_packed_from_the_highest() -> None:
    content = packed(np.array([1, 2, 3]), 3)
    assert content == bytes([0b00101001, 0b10000000])
    assert unpacked(content, 3, 3).tolist() == [1, 2, 3]


def test_rice_codes_are_a_quotient_in_unary_and_a_rest() -> None:
    content = rice_packed([0, 5, 2], 1)  # 0 0, 110 1, 10 0
    assert content == bytes([0b00110110, 0])
    assert rice_unpacked(content, 3, 1) == [0, 5, 2]


def test_huffman_codes_are_the_shortest_that_there_are() -> None:
    counts = np.array([4, 2, 1, 1])
    assert huffman.code_lengths(counts).tolist() == [1, 2, 3, 3]
    content = huffman.encoded(np.array([0, 1, 2, 3]), np.array([1, 2, 3, 3]))
    assert content == bytes([0b01011011, 0b10000000])  # 0, 10, 110, 111
    assert huffman.decoded(content, 4, np.array([1, 2, 3, 3])).tolist() == [0, 1, 2, 3]


def test_huffman_codes_of_rare_symbols_have_at_most_15_bits() -> None:
    counts = np.array([2**power for power in range(30)])
    lengths = huffman.code_lengths(counts)
    assert lengths.max() <= 15
    assert (0.5**lengths).sum() <= 1
    symbols = rng.integers(30, size=500)
    assert (huffman.decoded(huffman.encoded(symbols, lengths), 500, lengths) == symbols).all()


@pytest.mark.parametrize("lengths", [[1, 1, 1], [0, 0, 0], [16, 1, 1]])
def test_lengths_that_no_code_has_are_refused(lengths: list[int]) -> None:
    with pytest.raises(Damaged, match="no Huffman code has"):
        huffman.decoded(b"\0\0", 4, np.array(lengths))


def test_buckets_are_two_for_each_power_of_two() -> None:
    values = np.array([0, -3, 4, 5, 6, -11, 100])
    alphabet = Alphabet.buckets(values)
    symbols = alphabet.symbols(values)
    middle = alphabet.size // 2
    # 4 and 5, 6 and 7, 8 to 11, 12 to 15, 16 to 23, 24 to 31, ..., 96 to 127
    assert (symbols - middle).tolist() == [0, -3, 4, 4, 5, -6, 13]
    assert alphabet.widths[symbols].tolist() == [0, 0, 1, 1, 1, 2, 5]
    raw = Reader(alphabet.raw_bits(values, symbols))
    assert alphabet.values(symbols, raw).tolist() == values.tolist()


def test_bits_of_halves_are_a_byte_that_is_coded_and_one_that_is_not() -> None:
    values = np.array([0, 0x3C01, 0xBC00])
    symbols = HALF.symbols(values)
    assert symbols.tolist() == [0, 1 + 0x3C, 1 + 0xBC]
    assert HALF.raw_bits(values, symbols) == bytes([1, 0])


@pytest.mark.parametrize(
    "shape", [(1,), (7,), (5, 1), (5, 6), (20, 9), (4, 3, 3, 3), (6, 1, 5), (2, 2, 1, 1)]
)
def test_every_place_is_read_once(shape: tuple[int, ...]) -> None:
    grid = Grid(shape)
    seen = np.zeros(grid.shape, np.int64)
    for first, last, place, columns in grid.slices():
        seen[first:last, :columns, place] += 1
    values = np.arange(np.prod(shape))
    assert (grid.gathered(seen) == 1).all()
    assert seen.sum() == len(values)
    assert (grid.gathered(grid.spread(values)) == values).all()


def test_a_kernel_of_many_places_is_read_as_a_matrix() -> None:
    assert len(list(Grid((1, 1, 5000)).slices())) <= 4


@coders
@pytest.mark.parametrize("spread", [1, 3, 40, 255])
@pytest.mark.parametrize("shape", [(1,), (3,), (9, 5), (300, 70), (8, 5, 3, 3), (40, 20, 3, 3)])
def test_integers_are_read_back(coder: str, shape: tuple[int, ...], spread: int) -> None:
    values = np.rint(rng.normal(size=shape) * spread / 4).clip(-spread, spread).astype(np.int64)
    coded = integers.encoded(values, coder=coder)
    assert (back(coded.content, shape) == values.reshape(-1)).all()
    size, tables = integers.size_of(values, coder=coder)
    assert abs(size - len(coded.content)) <= 8
    assert abs(tables - coded.tables) <= 8


@coders
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.1, 0.4])
def test_tensors_of_zeros_are_read_back(coder: str, kept: float) -> None:
    values = rng.integers(-7, 8, size=(50, 60)) * (rng.random((50, 60)) < kept)
    coded = integers.encoded(values, coder=coder)
    assert (back(coded.content, (50, 60)) == values.reshape(-1)).all()


@coders
def test_bits_of_halves_are_read_back(coder: str) -> None:
    values = rng.normal(size=(16, 8, 3, 3)).astype(np.float16).view(np.uint16).astype(np.int64)
    coded = integers.encoded(values, halves=True, coder=coder)
    assert (back(coded.content, values.shape) == values.reshape(-1)).all()


def test_what_has_one_value_takes_a_few_bytes() -> None:
    assert len(integers.encoded(np.full((100, 100), -3)).content) <= 5


def test_huffman_codes_are_within_a_few_bytes_of_their_lengths() -> None:
    values = np.repeat([0, 1, 2, 3], [400, 200, 100, 100]).reshape(20, 40)
    coded = integers.encoded(values, coder="huffman")
    bits = 400 * 1 + 200 * 2 + 200 * 3  # the entropy, as all shares are powers of two
    assert bits // 8 <= len(coded.content) - coded.tables <= bits // 8 + 3


def test_a_range_code_is_at_most_a_hundredth_above_the_entropy() -> None:
    pytest.importorskip("constriction")
    shares = np.array([0.7, 0.2, 0.06, 0.04])
    values = rng.choice(4, size=(100, 400), p=shares)
    entropy = -(shares * np.log2(shares)).sum() * values.size / 8
    assert len(integers.encoded(values).content) < 1.01 * entropy


def test_contexts_save_where_rows_and_neighbours_are_alike() -> None:
    """Half of the columns are zeros: one table for all would need a bit for each to say so."""
    pytest.importorskip("constriction")
    values = rng.integers(-7, 8, size=(128, 64)) * (np.arange(64) % 8 < 4)
    entropy_of_the_rest = 128 * 32 * np.log2(15) / 8
    assert len(integers.encoded(values).content) < 1.1 * entropy_of_the_rest


@pytest.mark.parametrize(
    ("needs", "shape", "written"),
    [
        (
            "numpy",
            (40, 8),
            "020107440007f706bdc00000000da4d24934924d24934924d249340203e0dc80179682ed"
            "fc9682edfc9682edfc9682edfc9682edfc9682e0",
        ),
        (
            "constriction",
            (4, 12, 3, 3),
            "0300090b013815247500920100c00ab60916450820f9000003e3f927a000e07c0f3b6808"
            "828ec0033b9e399a8ba89938800c6b08c45488309d007088363029e7e8768bd390bd2051"
            "3a647d8a292ab0489cba06e45bd482d8a5cff0443b4acf387c8869f83abe884a7964e52d"
            "1718f28898dfeb6101b5c7806cb56d2937feb0a40ed078479f9c2194af1d",
        ),
    ],
)
def test_what_was_once_written_is_read_for_ever(
    needs: str, shape: tuple[int, ...], written: str
) -> None:
    """A change that fails here is another version of the format."""
    pytest.importorskip(needs)
    n = np.arange(np.prod(shape))
    sparse, even = np.where(n % 8 < 2, n * 29 % 7 - 3, 0), (n * 37 % 11 - 5) * (n // 9 % 12 < 6)
    expected = sparse if len(shape) == 2 else even
    assert (back(bytes.fromhex(written), shape) == expected).all()


def test_a_range_code_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("constriction")
    values = rng.choice(4, size=(100, 40), p=[0.7, 0.2, 0.06, 0.04])
    content = integers.encoded(values).content
    monkeypatch.setattr(frequencies, "library", lambda: None)
    with pytest.raises(ConfigError, match=r"pip install 'amc-compress\[packed\]'"):
        back(content, (100, 40))
    assert integers.encoded(values).content[0] == integers.GAPS


def test_tables_with_steep_steps_are_read_back() -> None:
    """One symbol that is nearly all, beside many that never occur: codes stay short enough."""
    levels = np.zeros((2, 256), np.int64)
    levels[1, 128:] = MOST_LEVEL
    writer = Writer()
    write_levels(writer, levels)
    content = writer.done()
    assert len(content) == levels_size(levels)
    found = read_levels(Reader(content), 2, 256)
    np.testing.assert_array_equal(found, levels)
