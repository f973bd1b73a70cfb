"""Factors of prices from whole networks."""

from __future__ import annotations

import numpy as np
import pytest

from amc.cost.correction import KINDS, MIXED_KINDS, Correction, fit_correction, kind_of
from amc.errors import DeviceError
from amc.graph.types import Signature
from amc.strategy import FLOAT, Bits

PARTS = np.random.default_rng(0).uniform(0.5, 2, (8, 4)) * [10, 2, 0.5, 3]


def calls_of(parts):
    """Networks of one operator of each kind."""
    return [[(k, ms) for k, ms in zip(KINDS, row, strict=True) if ms] for row in parts]


def test_kinds_of_operators():
    kinds = [
        kind_of(Signature("conv2d")),
        kind_of(Signature("conv2d", groups=0)),
        kind_of(Signature("linear")),
        kind_of(Signature("add")),
    ]
    assert tuple(kinds) == KINDS


def test_factors_of_frequent_kinds_are_found():
    true = np.array([0.9, 1.2, 1.0, 0.6])
    correction = fit_correction(calls_of(PARTS), PARTS @ true)
    assert correction.networks == 8
    # Convolutions are most of the time, linear layers hardly any of it.
    np.testing.assert_allclose(correction.factors[0], 0.9, rtol=0.03)
    np.testing.assert_allclose(correction.factors[3], 0.6, rtol=0.1)
    assert correction.error < 0.02


def test_one_common_factor_is_found_exactly_and_has_no_error():
    correction = fit_correction(calls_of(PARTS), PARTS.sum(1) * 0.8)
    np.testing.assert_allclose(correction.factors, 0.8, rtol=1e-6)
    assert correction.error == pytest.approx(0, abs=1e-9)


def test_what_every_call_has_too_much_is_found_beside_the_factors():
    # Networks of 20 to 160 convolutions of 4 to 30 microseconds, of which 2 are not the network's.
    generator = np.random.default_rng(0)
    networks = [
        [("conv2d", ms) for ms in generator.uniform(4e-3, 30e-3, calls)]
        for calls in range(20, 180, 20)
    ]
    measured = [sum(ms - 2e-3 for _, ms in network) for network in networks]
    correction = fit_correction(networks, measured, noise=1e-3)
    assert correction.call_ms == pytest.approx(-2e-3, rel=0.01)
    np.testing.assert_allclose(correction.factors[0], 1.0, rtol=0.01)


def test_prices_that_keep_their_least_are_fitted_as_such():
    # Beside each convolution one that is all but free: it has no 2 microseconds to lose.
    generator = np.random.default_rng(0)
    networks = [
        [("conv2d", ms) for ms in generator.uniform(4e-3, 30e-3, calls)]
        + [("conv2d", 1e-3)] * calls
        for calls in range(20, 180, 20)
    ]
    measured = [sum(max(ms - 2e-3, 0.1 * ms) for _, ms in network) for network in networks]
    correction = fit_correction(networks, measured, noise=1e-3)
    assert correction.call_ms == pytest.approx(-2e-3, rel=0.01)
    np.testing.assert_allclose(correction.factors[0], 1.0, rtol=0.01)
    assert correction.error < 1e-3


def test_corrected_price_is_scaled_then_less_by_a_call_but_never_less_than_a_tenth():
    correction = Correction((0.9, 1.1, 1.0, 0.5), 0.01, 9, call_ms=-0.01)
    prices = correction.corrected(np.array([1.0, 0.1, 0.01]), Signature("conv2d"), FLOAT)
    np.testing.assert_allclose(prices, [0.9 - 0.01, 0.09 - 0.01, 0.1 * 0.009])


def test_kind_that_does_not_occur_takes_the_common_factor():
    parts = PARTS * [1, 0, 1, 1]
    correction = fit_correction(calls_of(parts), parts.sum(1) * 0.8)
    assert correction.factors[1] == pytest.approx(0.8, rel=1e-3)


def test_error_is_that_of_networks_that_were_left_out():
    # Two networks of one kind, 1.0 and 1.5 times their sums: each predicts the other by its own
    # factor, off by 1/3 and by 1/2 of what was measured.
    correction = fit_correction(calls_of(np.eye(4)[[0, 0]]), [1.0, 1.5])
    assert correction.error == pytest.approx((1 / 3 + 1 / 2) / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("parts", "measured"),
    [(PARTS[:1], [1.0]), (PARTS[:2], [1.0, 0.0]), (PARTS[:2], [1.0, np.nan])],
)
def test_too_few_or_impossible_measurements_are_refused(parts, measured):
    with pytest.raises(DeviceError, match="A correction needs two networks or more"):
        fit_correction(calls_of(parts), measured)


def test_factor_of_an_operator_is_that_of_its_kind():
    correction = Correction((0.9, 1.1, 1.0, 0.5), 0.01, 9)
    assert correction.factor(Signature("conv2d", groups=0)) == 1.1
    assert correction.factor(Signature("relu")) == 0.5


def test_kinds_of_operators_in_mixed_bits():
    conv, depthwise = Signature("conv2d"), Signature("conv2d", groups=0)
    int8, without = Bits(8, 8), Bits(8, 32)
    asked = [
        *(
            (conv, FLOAT),
            (depthwise, FLOAT),
            (Signature("linear"), int8),
            (Signature("add"), FLOAT),
        ),
        *((conv, int8), (depthwise, int8), (depthwise, without), (Signature("add"), int8)),
        (Signature("quantize"), FLOAT),
    ]
    assert tuple(kind_of(*pair, MIXED_KINDS) for pair in asked) == MIXED_KINDS
    correction = Correction(tuple(range(1, 10)), 0.0, 2)
    assert [correction.factor(*pair) for pair in asked] == list(range(1, 10))


def test_factors_without_mixed_bits_hold_for_integers_and_conversions():
    correction = Correction((0.9, 1.1, 1.0, 0.5), 0.01, 9)
    assert correction.factor(Signature("conv2d"), Bits(8, 8)) == 0.9
    assert correction.factor(Signature("quantize")) == 0.5


def test_noisy_networks_give_factors_near_the_common_one():
    true = np.array([0.9, 1.2, 1.0, 0.6])
    common = 1 / np.median((PARTS / (PARTS @ true)[:, None]).sum(1))
    spread = {
        noise: np.ptp(fit_correction(calls_of(PARTS), PARTS @ true, noise=noise).factors)
        for noise in (0.02, 1.0, 100.0)
    }
    assert spread[0.02] > spread[1.0] > spread[100.0]
    np.testing.assert_allclose(
        fit_correction(calls_of(PARTS), PARTS @ true, noise=100.0).factors, common, rtol=1e-3
    )


def test_network_that_was_timed_on_a_busy_machine_hardly_moves_the_factors():
    true = np.array([0.9, 1.2, 1.0, 0.6])
    measured = PARTS @ true
    quiet = fit_correction(calls_of(PARTS), measured)
    for busy in range(len(PARTS)):
        disturbed = measured * np.where(np.arange(len(PARTS)) == busy, 2.0, 1.0)
        correction = fit_correction(calls_of(PARTS), disturbed)
        # Plain least squares move this factor by 15 % and more.
        np.testing.assert_allclose(correction.factors[0], quiet.factors[0], rtol=0.1)
        others = np.delete(PARTS @ correction.factors / measured, busy)
        assert np.median(np.abs(others - 1)) < 0.05


def test_what_is_computed_inside_of_another_operator_stays_free():
    correction = Correction((2.0,) * 4, 0.0, 9, call_ms=3e-3)
    prices = np.array([1e-5, 1e-2])
    found = correction.corrected(prices, Signature("linear"), FLOAT)
    assert found.tolist() == [1e-5, 2e-2 + 3e-3]
