"""Costs by formula against products worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from amc.cost.formulas import bops, is_paired, macs, params, size_bytes
from amc.graph.types import Signature
from amc.strategy import Bits

CONV = Signature("conv2d", (3, 3), (2, 2), (1, 1), in_size=(8, 8), out_size=(4, 5))
DEPTHWISE = Signature("conv2d", (3, 3), padding=(1, 1), groups=0, in_size=(7, 7), out_size=(7, 7))
GROUPED = Signature("conv2d", (1, 1), groups=2, in_size=(2, 2), out_size=(2, 2))
LINEAR = Signature("linear")
RELU = Signature("relu", in_size=(8, 8), out_size=(8, 8))


@pytest.mark.parametrize(
    ("signature", "ins", "outs", "expected_macs", "expected_params"),
    [
        (CONV, 3, 16, (4 * 5) * (3 * 3) * 3 * 16, 3 * 3 * 3 * 16 + 16),
        (GROUPED, 6, 4, (2 * 2) * (6 // 2) * 4, (6 // 2) * 4 + 4),
        (LINEAR, 100, 10, 100 * 10, 100 * 10 + 10),
        (RELU, 16, 16, 0, 0),
    ],
)
def test_macs_and_params_are_products_of_the_sizes(
    signature, ins, outs, expected_macs, expected_params
):
    assert macs(signature, ins, outs) == expected_macs
    assert params(signature, ins, outs, has_bias=True) == expected_params


def test_depthwise_macs_ignore_cross_channel_products():
    assert macs(DEPTHWISE, 12, 12) == (7 * 7) * (3 * 3) * 12
    assert params(DEPTHWISE, 12, 12, has_bias=False) == 3 * 3 * 12


def test_bops_multiply_macs_by_both_widths():
    assert bops(LINEAR, 100, 10, Bits(4, 8)) == 100 * 10 * 4 * 8


def test_float_layer_stores_four_bytes_for_each_weight_and_bias():
    assert size_bytes(LINEAR, 100, 10) == 4 * (100 * 10 + 10)


def test_quantized_layer_packs_weights_and_adds_a_scale_for_each_output():
    # 5 * 3 weights of 3 bits are 45 bits: 6 bytes; 3 outputs have a bias and a scale.
    assert size_bytes(LINEAR, 5, 3, Bits(3, 8)) == 6 + 3 * 4 + 3 * 4


def test_quantized_activations_alone_need_no_weight_scale():
    assert size_bytes(LINEAR, 5, 3, Bits(32, 8), has_bias=False) == 4 * 5 * 3


def test_operators_between_layers_store_nothing():
    assert size_bytes(RELU, 16, 16, Bits(8, 8)) == 0


@pytest.mark.parametrize("signature", [CONV, GROUPED, LINEAR])
def test_arrays_broadcast_to_a_grid_of_the_scalar_costs(signature):
    ins, outs = np.array([2, 4, 6]), np.array([2, 8])
    grids = (
        macs(signature, ins[:, None], outs[None, :]),
        params(signature, ins[:, None], outs[None, :], True),
        size_bytes(signature, ins[:, None], outs[None, :], Bits(4, 4)),
    )
    for i, c_in in enumerate([2, 4, 6]):
        for j, c_out in enumerate([2, 8]):
            scalars = (
                macs(signature, c_in, c_out),
                params(signature, c_in, c_out, True),
                size_bytes(signature, c_in, c_out, Bits(4, 4)),
            )
            assert tuple(grid[i, j] for grid in grids) == scalars


def test_large_layers_do_not_overflow():
    wide = Signature("conv2d", (3, 3), in_size=(56, 56), out_size=(56, 56))
    counts = np.array([4096], np.int64)
    assert bops(wide, counts, counts, Bits(32, 32))[0] == 56 * 56 * 9 * 4096 * 4096 * 32 * 32


def test_channels_are_paired_in_depthwise_layers_and_operators():
    assert [is_paired(s) for s in (CONV, GROUPED, LINEAR, DEPTHWISE, RELU)] == [
        False,
        False,
        False,
        True,
        True,
    ]
