import numpy as np
import pytest

from amc.strategy import FLOAT, Bits
from envs.action import coordinates, from_ratio, to_ratio


def test_action_spans_the_ratios_from_the_lowest_to_all():
    assert to_ratio(-1.0, 0.2) == pytest.approx(0.2)
    assert to_ratio(0.0, 0.2) == pytest.approx(0.6)
    assert to_ratio(1.0, 0.2) == 1.0


@pytest.mark.parametrize("action", [-1.0, -0.3, 0.0, 0.8, 1.0])
def test_ratio_of_an_action_leads_back_to_it(action):
    assert float(from_ratio(to_ratio(action, 0.25), 0.25)) == pytest.approx(action)


def test_nothing_to_choose_is_the_largest_action():
    assert to_ratio(-1.0, 1.0) == 1.0
    assert float(from_ratio(1.0, 1.0)) == 1.0


def test_widths_lie_at_equal_steps():
    pairs = tuple(Bits(w, 8) for w in (2, 4, 8, 32))
    found = coordinates(np.array(pairs))
    np.testing.assert_allclose(found[:, 0], [-1, -1 / 3, 1 / 3, 1])
    np.testing.assert_array_equal(found[:, 1], 0)


def test_pairs_keep_their_order_and_need_not_fill_the_plane():
    pairs = (FLOAT, Bits(8, 8), Bits(4, 8))
    assert coordinates(np.array(pairs)).tolist() == [[1, 1], [0, -1], [-1, -1]]
