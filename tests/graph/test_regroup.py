"""Chains of rearrangements: what they do, read off where elements came from, and anew when cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amc.graph.regroup import Digit, RegroupUnits, carrier_of, regrouping_of
from amc.graph.sets import DisjointSets

# Two images of 3 tokens, 12 channels: of queries, keys and values, two heads, two channels each.
SOURCE = (2, 3, 12)


def places(function, shape=SOURCE):
    return function(torch.arange(torch.Size(shape).numel()).view(shape))


def keys(x):
    return x.reshape(len(x), 3, 3, 2, 2).permute(2, 0, 3, 1, 4)[1]  # (n, heads, tokens, width)


def test_keys_of_an_attention_are_a_choice_a_view_and_a_permutation():
    how = regrouping_of(places(keys), SOURCE, 0)
    assert how is not None
    assert how.starts == (0, 0, 4)  # after the four channels of the queries
    batch, heads, tokens, width = Digit(0, 2, 1), Digit(2, 2, 2), Digit(1, 3, 1), Digit(2, 2, 1)
    assert how.digits == ((batch,), (heads,), (tokens,), (width,))
    assert how.batch == batch
    assert how.moves


def test_heads_that_are_joined_are_two_digits_of_one_dimension():
    shape = (2, 4, 3, 5)
    how = regrouping_of(places(lambda x: x.transpose(1, 2).reshape(2, 3, 20), shape), shape, 0)
    assert how is not None
    assert how.digits == ((Digit(0, 2, 1),), (Digit(2, 3, 1),), (Digit(1, 4, 1), Digit(3, 5, 1)))


def test_windows_beside_the_images_are_found_whichever_dimension_holds_them():
    shape = (2, 4, 4, 6)

    def windows(x):
        x = x.view(len(x), 2, 2, 2, 2, 6).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, 4, 6)

    how = regrouping_of(places(windows, shape), shape, 0)
    assert how is not None
    assert how.digits[0] == (Digit(0, 2, 1), Digit(1, 2, 2), Digit(2, 2, 2))
    assert how.batch == Digit(0, 2, 1)
    images_second = (4, 2, 6)
    how = regrouping_of(places(lambda x: x.transpose(0, 1), images_second), images_second, 1)
    assert how is not None
    assert how.batch == Digit(1, 2, 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flip(2),
        lambda x: x.roll(1, 1),
        lambda x: x.repeat(1, 1, 2),
        lambda x: x[:, :, [0, 1, 5]],
        lambda x: x[:1],
        lambda x: x.as_strided((2, 2, 12), (36, 18, 1)),
    ],
)
def test_what_is_no_choice_of_blocks_is_not_taken_for_one(function):
    assert regrouping_of(places(function), SOURCE, 0) is None


def test_no_element_is_no_regrouping():
    assert regrouping_of(torch.empty(0, 3), SOURCE, 0) is None
    assert regrouping_of(torch.arange(2), (2,), 0) is None


def test_what_is_kept_shrinks_the_block_and_nothing_else():
    how = regrouping_of(places(keys), SOURCE, 0)
    assert how is not None
    width = how.digits[3][0]
    # Both heads' first channels are unit 0, their second ones unit 1; likewise of keys and values.
    units = np.array([0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5])
    regroup = RegroupUnits(how, width, units)
    x = torch.randn(5, 3, 12)
    assert torch.equal(regroup.module([True] * 6)(x), keys(x))
    keep = [True, True, False, True, False, False]  # no values, the second channel of the keys
    left = x[:, :, [0, 1, 2, 3, 5, 7]]
    expected = torch.stack([x[:, :, 5], x[:, :, 7]], 1)[..., None]
    assert torch.equal(regroup.module(keep)(left), expected)


def test_ids_along_two_digits_are_united_along_the_outer_one():
    sets = DisjointSets()
    ids = torch.from_numpy(sets.fresh(12)).expand(1, 3, 12)
    how = regrouping_of(places(keys), SOURCE, 0)
    assert how is not None
    carrier, along = carrier_of(how, ids, sets)
    assert carrier == Digit(2, 2, 1)
    assert along.tolist() == list(range(12))
    of = sets.of_ids()
    assert of[4] == of[6] != of[5] == of[7]  # the keys' heads
    assert len({of[i] for i in (0, 1, 2, 3)}) == 4  # the queries are left alone
    assert carrier_of(how, ids * 0, sets)[0] is None
