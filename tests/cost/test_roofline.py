"""The roofline against prices worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from amc.cost.roofline import Energy, RooflineDevice, bit_serial_gmacs, bit_serial_pj
from amc.errors import DeviceError
from amc.graph.types import Signature
from amc.strategy import FLOAT, Bits

INT8 = Bits(8, 8)
# One giga-mac/s, one GB/s: a million macs or a million bytes take one millisecond.
DEVICE = RooflineDevice(
    name="toy",
    source="made up",
    peak_gmacs={FLOAT: 1.0, INT8: 4.0},
    bandwidth_gb_s=1.0,
    overhead_us=2.0,
    channel_step=4,
    energy=Energy({FLOAT: 5.0, INT8: 0.5}, pj_per_byte=100.0),
)
CONV = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(10, 10), out_size=(10, 10))
DEPTHWISE = dataclasses.replace(CONV, groups=0)
LINEAR = Signature("linear")
ADD = Signature("add", in_size=(10, 10), out_size=(10, 10))


def latency(signature, ins, outs, bits=FLOAT, device=DEVICE):
    return device.price("latency_ms", signature, ins, outs, bits)


def test_compute_bound_layer_takes_macs_over_peak_and_overhead():
    assert latency(CONV, 16, 8) == pytest.approx(100 * 9 * 16 * 8 / 1e6 + 0.002)
    assert latency(CONV, 16, 8, INT8) == pytest.approx(100 * 9 * 16 * 8 / 4e6 + 0.002)


def test_memory_bound_layer_takes_bytes_over_bandwidth_and_overhead():
    # Weights, biases, inputs and outputs: one mac for each weight, but four bytes.
    moved = 4 * (100 * 20) + 4 * 20 + 4 * (100 + 20)
    assert latency(LINEAR, 100, 20) == pytest.approx(moved / 1e6 + 0.002)


def test_low_bits_shrink_weights_and_activations_but_not_biases():
    device = dataclasses.replace(DEVICE, peak_gmacs={Bits(2, 4): 1e6}, energy=None)
    moved = 100 * 20 * 2 / 8 + 4 * 20 + (100 + 20) * 4 / 8
    assert latency(LINEAR, 100, 20, Bits(2, 4), device) == pytest.approx(moved / 1e6 + 0.002)


def test_channels_are_rounded_up_to_the_step():
    assert latency(CONV, 13, 5) == latency(CONV, 16, 8)
    assert latency(CONV, 13, 5) < latency(CONV, 17, 5)


def test_depthwise_layer_rounds_its_outputs_and_multiplies_no_channels():
    device = dataclasses.replace(DEVICE, bandwidth_gb_s=1e6)
    assert latency(DEPTHWISE, 6, 6, device=device) == pytest.approx(100 * 9 * 8 / 1e6 + 0.002)


def test_grouped_layer_rounds_within_each_group():
    grouped = dataclasses.replace(CONV, groups=2)
    # 2 groups of 5 -> 3 channels, each rounded to 8 -> 4.
    assert latency(grouped, 10, 6) == pytest.approx(100 * 9 * 2 * (8 * 4) / 1e6 + 0.002)


def test_batch_multiplies_macs_and_activations_but_not_weights():
    device = dataclasses.replace(DEVICE, batch=16)
    moved = 4 * (100 * 20) + 4 * 20 + 16 * 4 * (100 + 20)
    macs = 16 * 100 * 20
    assert latency(LINEAR, 100, 20, device=device) == pytest.approx(max(moved, macs) / 1e6 + 0.002)


@pytest.mark.parametrize("op", ["relu", "silu", "hardsigmoid", "batch_norm"])
def test_activation_functions_and_batch_norm_are_fused(op):
    signature = dataclasses.replace(ADD, op=op)
    for metric in DEVICE.metrics:
        assert DEVICE.price(metric, signature, 8, 8, FLOAT) == 0


def test_operators_between_layers_are_bound_by_memory():
    pool = Signature("avg_pool2d", (2, 2), (2, 2), in_size=(10, 10), out_size=(5, 5))
    assert latency(pool, 8, 8) == pytest.approx(4 * 8 * (100 + 25) / 1e6 + 0.002)
    assert latency(ADD, 8, 8) == pytest.approx(4 * 8 * (100 + 100 + 100) / 1e6 + 0.002)
    assert latency(ADD, 8, 8, INT8) == pytest.approx(8 * 300 / 1e6 + 0.002)


def test_energy_adds_arithmetic_and_movement():
    moved = 4 * (100 * 20) + 4 * 20 + 4 * (100 + 20)
    expected_pj = 100 * 20 * 5.0 + moved * 100.0
    assert DEVICE.price("energy_mj", LINEAR, 100, 20, FLOAT) == pytest.approx(expected_pj * 1e-9)


@pytest.mark.parametrize("metric", ["latency_ms", "energy_mj"])
def test_prices_are_the_grid_of_single_prices(metric):
    ins, outs = np.array([3, 8, 20]), np.array([1, 5])
    grid = DEVICE.prices(metric, CONV, ins, outs, INT8)
    single = [[DEVICE.price(metric, CONV, i, o, INT8) for o in (1, 5)] for i in (3, 8, 20)]
    np.testing.assert_array_equal(grid, single)


@pytest.mark.parametrize("signature", [DEPTHWISE, ADD])
def test_paired_channels_give_one_price_each(signature):
    counts = np.array([3, 8, 20])
    paired = DEVICE.prices("latency_ms", signature, counts, counts, FLOAT)
    assert paired.tolist() == [latency(signature, c, c) for c in (3, 8, 20)]


def test_bit_serial_time_is_the_product_of_the_widths():
    peaks = bit_serial_gmacs(64.0, [2, 4, 8])
    assert len(peaks) == 3 * 3
    assert (peaks[Bits(8, 8)], peaks[Bits(4, 8)], peaks[Bits(2, 2)]) == (1.0, 2.0, 16.0)
    assert bit_serial_pj(0.5, 0.25, [2, 4])[Bits(2, 4)] == 0.5 * 2 * 4 + 0.25


def test_unsupported_bits_and_metrics_name_the_supported_ones():
    with pytest.raises(DeviceError, match=r"'toy' does not support 4/4 bits.*32/32 8/8"):
        latency(CONV, 8, 8, Bits(4, 4))
    without = dataclasses.replace(DEVICE, energy=None)
    assert without.metrics == ("latency_ms",)
    with pytest.raises(DeviceError, match="no 'energy_mj'; it has latency_ms"):
        without.price("energy_mj", CONV, 8, 8, FLOAT)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bandwidth_gb_s": 0.0}, "bandwidth_gb_s"),
        ({"overhead_us": -1.0}, "overhead_us"),
        ({"overhead_us": math.nan}, "overhead_us"),
        ({"channel_step": 0}, "channel_step"),
        ({"peak_gmacs": {FLOAT: math.inf}}, r"peak_gmacs\[32/32\]"),
        ({"peak_gmacs": {}}, "peak_gmacs names no bits"),
        ({"energy": Energy({FLOAT: 1.0}, 1.0)}, r"energy.pj_per_mac\[8/8\]"),
        ({"energy": Energy({FLOAT: 1.0, INT8: 1.0}, 0.0)}, "energy.pj_per_byte"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(change, said):
    with pytest.raises(DeviceError, match=said):
        dataclasses.replace(DEVICE, **change)


def test_fingerprint_changes_with_a_number():
    assert dataclasses.replace(DEVICE, overhead_us=3.0).fingerprint() != DEVICE.fingerprint()
    assert dataclasses.replace(DEVICE).fingerprint() == DEVICE.fingerprint()
