"""Which prices are measured, and what the others are between them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from amc.cost.device import Measurement
from amc.cost.grid import CHECKS, FULL, LEAST, Error, Grid, _nodes
from amc.graph.types import Signature
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits

CONV = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(4, 4), out_size=(4, 4))
DEPTHWISE = replace(CONV, groups=0)
INT8 = Bits(8, 8)
EIGHTS = range(8, 321, 8)  # 40 counts
CONVS = [Request(CONV, i, o, FLOAT) for i in EIGHTS for o in EIGHTS]


def stairs(request: Request) -> float:
    """A time that is linear in the inputs, and in the outputs, of each kind of counts."""
    ins, outs = request.in_channels, request.out_channels
    padded = 8 if outs % 16 else 0
    return (2.0 if ins % 16 else 1.0) * (3 + ins) * (5 + outs + padded)


def measured(requests, price=stairs) -> dict[Request, Measurement]:
    return {request: Measurement(price(request), 0.0, 7) for request in requests}


@pytest.mark.parametrize(
    ("counts", "nodes"),
    [
        ([8], [8]),
        ([8, 16], [8, 16]),
        (range(16, 161, 16), [16, 32, 48, 80, 160]),
        (range(8, 121, 16), [8, 24, 40, 72, 120]),  # nothing between 12 and 24
        ([7, 100], [7, 100]),
        ([40, 41, 42, 80], [40, 80]),
    ],
)
def test_from_one_measured_count_to_the_next_it_is_at_most_twice(counts, nodes):
    assert _nodes(np.array(counts, np.int64)).tolist() == nodes


def test_what_is_linear_between_counts_of_one_kind_is_found_from_a_ninth_of_its_prices():
    grid = Grid(CONVS)
    rows = grid.rows(measured(grid.measured))
    assert list(rows) == CONVS
    for request, row in rows.items():
        assert row.latency_ms == pytest.approx(stairs(request), rel=1e-12)
    # On each axis: 16, 32, 48, 80, 160, 320; and 8, 24, 40, 56, 88, 168, 312.
    assert len(grid.measured) - len(grid.checks) == (6 + 7) ** 2
    assert not grid.is_full


def test_price_between_four_measured_ones_is_their_weighted_mean():
    grid = Grid(CONVS)
    corners = {(160, 160): 2.0, (160, 320): 4.0, (320, 160): 6.0, (320, 320): 16.0}

    def price(request):
        return corners.get((request.in_channels, request.out_channels), 1.0)

    taken = {r: Measurement(price(r), price(r) / 4, 7) for r in grid.measured}
    rows = grid.rows(taken)
    between = Request(CONV, 160 + 48, 160 + 128, FLOAT)  # 0.3 and 0.8 of the way
    assert between not in taken
    upper, lower = 0.2 * 2 + 0.8 * 4, 0.2 * 6 + 0.8 * 16
    expected = 0.7 * upper + 0.3 * lower
    assert rows[between].latency_ms == pytest.approx(expected)
    assert rows[between].spread_ms == pytest.approx(expected / 4)
    assert (rows[between].samples, rows[between].median_ms) == (0, None)


def test_outputs_that_follow_inputs_have_two_neighbours_of_their_own_multiple():
    plain = [Request(DEPTHWISE, c, c, FLOAT) for c in range(1, 1201)]
    twice = [Request(DEPTHWISE, c, 2 * c, FLOAT) for c in range(1, 1201)]
    grid = Grid([*plain, *twice])
    assert len(grid.measured) < 250
    assert all(r.out_channels in (r.in_channels, 2 * r.in_channels) for r in grid.measured)

    def price(request):
        return 1.0 + math.gcd(request.in_channels, 16) * request.out_channels

    rows = grid.rows(measured(grid.measured, price))
    for request in (*plain, *twice):
        assert rows[request].latency_ms == pytest.approx(price(request))


def test_operators_and_bits_have_nodes_of_their_own():
    few = [Request(CONV, c, 8, INT8) for c in (8, 24, 40)]
    grid = Grid([*CONVS, *few])
    assert {r.in_channels for r in grid.measured if r.bits == INT8} == {8, 24, 40}


def test_few_prices_are_all_measured_and_so_are_all_of_a_full_grid():
    for grid in (Grid(CONVS[:LEAST]), Grid(CONVS, kind=FULL)):
        assert grid.is_full
        assert grid.measured == grid.requests
        assert grid.checks == []
        rows = measured(grid.requests)
        assert grid.rows(rows) == rows
    assert not Grid(CONVS[: LEAST + 1]).is_full


def test_what_is_asked_for_exactly_is_measured():
    exact = [Request(CONV, 208, 288, FLOAT), Request(CONV, 320, 320, FLOAT)]
    without, grid = Grid(CONVS), Grid(CONVS, exact)
    assert exact[0] not in without.measured
    assert set(grid.measured) == {*without.measured, *exact}
    price = measured(grid.measured, lambda r: 7.0 if r == exact[0] else stairs(r))
    assert grid.rows(price)[exact[0]] == price[exact[0]]


def test_other_rows_of_a_table_change_no_price():
    grid = Grid(CONVS)
    rows = measured(grid.measured)
    others = measured((r for r in CONVS if r not in rows), lambda request: 1e-3)
    assert grid.rows(rows | others) == grid.rows(rows)


def test_error_is_that_at_prices_in_between_which_were_measured_too():
    grid = Grid(CONVS)
    assert len(grid.checks) == len(set(grid.checks)) == CHECKS
    nodes = set(grid.measured) - set(grid.checks)
    assert all(check in CONVS and check not in nodes for check in grid.checks)
    counts = [{getattr(r, name) for r in grid.checks} for name in ("in_channels", "out_channels")]
    assert min(map(len, counts)) > 25  # of 40: spread over the axes
    off = [0.5 if place < 10 else 0.25 for place in range(CHECKS)]  # of what is measured
    rows = measured(nodes)
    for check, share in zip(grid.checks, off, strict=True):
        rows[check] = Measurement(stairs(check) / (1 - share), 0.0, 7)
    error = grid.error(rows)
    assert error == Error(pytest.approx(0.25), pytest.approx(0.5), CHECKS)
    assert str(error) == (
        "off by 25.0% in the median, 50.0% in the 95th percentile, at 100 prices that were "
        "measured beside"
    )
