import json
import pickle

import pytest

from amc.errors import StrategyError
from amc.strategy import BIT_WIDTHS, FLOAT, IDENTITY, Bits, Option, Strategy

STRATEGY = Strategy({"stem": 0.5, "block.conv": 1.0}, {"stem": Bits(4, 8), "fc": Bits(8)})


def test_written_strategy_is_read_back_equal():
    assert Strategy.from_json(STRATEGY.to_json()) == STRATEGY
    assert Strategy.from_json(IDENTITY.to_json()) == IDENTITY


def test_equal_strategies_are_written_in_equal_bytes():
    turned = Strategy({"block.conv": 1.0, "stem": 0.5}, {"fc": Bits(8), "stem": Bits(4, 8)})
    assert turned == STRATEGY
    assert turned.to_json() == STRATEGY.to_json()
    assert Strategy.from_json(STRATEGY.to_json()).to_json() == STRATEGY.to_json()


def test_equal_strategies_have_equal_hashes_whatever_their_order():
    turned = Strategy({"block.conv": 1.0, "stem": 0.5}, {"fc": Bits(8), "stem": Bits(4, 8)})
    assert len({turned, STRATEGY}) == 1


def test_ratios_are_written_without_loss():
    ratio = 1 / 3
    assert Strategy.from_json(Strategy({"a": ratio}, {}).to_json()).preserve_ratio["a"] == ratio


def test_strategy_cannot_be_changed():
    ratios = {"a": 0.5}
    strategy = Strategy(ratios, {})
    ratios["a"] = 0.1
    assert strategy.preserve_ratio["a"] == 0.5
    with pytest.raises(TypeError):
        strategy.preserve_ratio["a"] = 0.1  # type: ignore[index]


def test_strategy_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(STRATEGY)) == STRATEGY


def test_bits_are_float_unless_said_otherwise():
    assert Bits() == FLOAT == (32, 32)
    assert FLOAT.is_float
    assert not Bits(8).is_float
    assert not Bits(32, 8).is_float
    assert str(Bits(4, 8)) == "4/8"


@pytest.mark.parametrize("ratio", [-0.1, 1.0001, float("nan"), float("inf"), True, "0.5", None])
def test_ratio_outside_its_range_is_an_error_that_names_the_group(ratio):
    with pytest.raises(StrategyError, match=r"channel group 'stem' must be in \[0, 1\], got"):
        Strategy({"stem": ratio}, {})


@pytest.mark.parametrize("bits", [Bits(9, 8), Bits(8, 0), Bits(16), Bits(8.0, 8), Bits(True, 8)])
def test_bits_that_do_not_exist_are_an_error_that_lists_those_that_do(bits):
    with pytest.raises(StrategyError, match=r"layer 'fc'.*\(1, 2, 3, 4, 5, 6, 7, 8, 32\)"):
        Strategy({}, {"fc": bits})


@pytest.mark.parametrize("bits", BIT_WIDTHS)
def test_every_bit_width_is_accepted(bits):
    assert Strategy({}, {"fc": Bits(bits, bits)}).bits["fc"] == (bits, bits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not of format 'amc-strategy'"),
        ({"version": 3}, "has version 3; this amc reads 1 to 2"),
        ({"version": None}, "has version None"),
        ({"preserve_ratio": [1]}, "must hold two objects"),
        ({"bits": None}, "must hold two objects"),
        ({"bits": {"fc": 8}}, r"bits of layer 'fc' must be \[weight, activation\], got 8"),
        ({"bits": {"fc": [8]}}, r"bits of layer 'fc' must be"),
        ({"bits": {"fc": [8, 8, 8]}}, r"bits of layer 'fc' must be"),
        ({"bits": {"fc": ["8", 8]}}, "Bits of layer 'fc'"),
        ({"bits": {"fc": [[8], 8]}}, "Bits of layer 'fc'"),
        ({"preserve_ratio": {"stem": "half"}}, "channel group 'stem'"),
        ({"preserve_ratio": {"stem": float("nan")}}, "channel group 'stem'"),
    ],
)
def test_document_that_is_no_strategy_is_an_error(change, message):
    document = json.loads(STRATEGY.to_json()) | change
    with pytest.raises(StrategyError, match=message):
        Strategy.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '"strategy"'])
def test_text_that_is_no_strategy_is_an_error_that_names_its_source(text):
    with pytest.raises(StrategyError, match=r"^best\.json is not"):
        Strategy.from_json(text, source="best.json")


# -- decisions beside channels and bits ------------------------------------------------------------

# As it was written before there were others.
WRITTEN = """{
  "format": "amc-strategy",
  "version": 1,
  "preserve_ratio": {
    "b": 0,
    "conv1": 0.5
  },
  "bits": {
    "conv1": [
      8,
      8
    ],
    "fc": [
      4,
      32
    ]
  }
}
"""
SPARSE = Strategy({"a": 0.5}, {"fc": Bits(8, 8)}, {"sparsity": {"fc": (0.5,), "conv": (0.9,)}})


def test_earlier_file_is_read_and_written_byte_for_byte():
    strategy = Strategy({"conv1": 0.5, "b": 0}, {"conv1": Bits(8, 8), "fc": Bits(4, 32)})
    assert Strategy.from_json(WRITTEN) == strategy
    assert strategy.to_json() == WRITTEN


def test_values_of_other_decisions_are_written_under_a_version_of_their_own():
    document = json.loads(SPARSE.to_json())
    assert (document["version"], document["others"]) == (
        2,
        {"sparsity": {"conv": [0.9], "fc": [0.5]}},
    )
    assert Strategy.from_json(SPARSE.to_json()) == SPARSE != Strategy({"a": 0.5}, SPARSE.bits)
    assert pickle.loads(pickle.dumps(SPARSE)) == SPARSE
    assert len({SPARSE, Strategy.from_json(SPARSE.to_json())}) == 1


def test_option_of_a_layer_is_all_that_is_decided_for_it():
    others = (("sparsity", (0.5,)),)
    assert SPARSE.option("fc") == Option(Bits(8, 8), others)
    assert SPARSE.option("conv") == Option(FLOAT, (("sparsity", (0.9,)),))
    assert SPARSE.option("stem", Bits(8, 8)) == Option(Bits(8, 8))


def test_bits_are_applied_after_the_other_decisions():
    assert [name for name, _, _ in SPARSE.values()] == ["sparsity", "sparsity", "precision"]


@pytest.mark.parametrize(
    "others", [[], {"sparsity": 0.5}, {"sparsity": {"fc": 0.5}}, {"sparsity": {"fc": []}},
               {"sparsity": {"fc": ["0.5"]}}, {"sparsity": {"fc": [float("nan")]}}]
)  # fmt: skip
def test_other_decisions_that_are_no_numbers_are_an_error(others):
    document = json.loads(STRATEGY.to_json()) | {"version": 2, "others": others}
    with pytest.raises(StrategyError, match="'others' must hold an object for each decision"):
        Strategy.from_json(json.dumps(document))


def test_bits_have_one_place():
    with pytest.raises(StrategyError, match="by 'bits', not by 'others'"):
        Strategy({}, {}, {"precision": {"fc": (8, 8)}})
