from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from amc.errors import NetworkError
from amc.objectives.outputs import (
    each,
    finite_images,
    joined,
    left_out,
    named_tensors,
    outputs_of,
    same_shapes,
    shapes_of,
)

X = torch.arange(6.0).reshape(2, 3)
WHOLE = torch.zeros(2, dtype=torch.long)


@dataclass
class Found:
    logits: Tensor
    hidden: Tensor | None = None


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (X, [""]),
        ((X, X), ["0", "1"]),
        ([X, [X]], ["0", "1.0"]),
        ({"out": X, "aux": None}, ["out"]),
        (OrderedDict(boxes=[X, X], scores=X), ["boxes.0", "boxes.1", "scores"]),
        (Found(X), ["logits"]),
        (Pair(X, X), ["first", "second"]),
        ({"scores": X, "top": WHOLE, "loss": torch.tensor(1.0)}, ["scores"]),
        ({"a.b": X, "a": {"b": X}}, ["a.b", "a.b_"]),
        ((), []),
    ],
)
def test_tensors_of_floating_point_are_named_by_where_they_are(
    returned: Any, names: list[str]
) -> None:
    assert list(named_tensors(returned)) == names


def test_a_single_tensor_is_given_as_it_is_and_several_by_name() -> None:
    assert outputs_of(X, 2) is X
    assert outputs_of({"out": X, "none": None}, 2) is X
    assert list(outputs_of((X, X), 2)) == ["0", "1"]


def test_what_is_not_compared_is_named() -> None:
    returned = {"scores": X, "top": WHOLE, "loss": torch.tensor(1.0), "none": None}
    assert left_out(returned) == ["top (int64 of shape (2,))", "loss (float32 of shape ())"]


def test_outputs_without_an_entry_for_each_image_are_refused_with_those_that_have() -> None:
    with pytest.raises(NetworkError, match=r"'anchors' has .*\(9, 4\) for 2 .*outputs=\[out\]"):
        outputs_of({"out": X, "anchors": torch.ones(9, 4)}, 2)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "returned NoneType"),
        ({}, "returned empty dict"),
        ({"top": WHOLE}, "returned dict with the keys 'top'"),
        ((WHOLE, WHOLE), "returned tuple of 2"),
        (WHOLE, r"returned a tensor of shape \(2,\) and type torch.int64"),
    ],
)
def test_a_network_without_a_tensor_of_numbers_is_refused(returned: Any, said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        outputs_of(returned, 2)


def test_batches_are_joined_and_changed_output_by_output() -> None:
    batches = [{"a": X, "b": X[:, :1]}, {"a": X + 6, "b": X[:, 1:2]}]
    whole = joined(batches)
    assert whole["a"].flatten().tolist() == list(range(12))
    assert each(whole, lambda tensor: tensor[::2])["b"].tolist() == [[0.0], [1.0]]
    assert torch.equal(joined([X, X]), torch.cat([X, X]))
    assert same_shapes(batches[0], batches[1])
    assert not same_shapes(whole, batches[0])
    assert not same_shapes(X, batches[0])
    assert shapes_of(whole) == "2 tensors (a (4, 3), b (4, 1))"


def test_an_image_is_finite_where_all_its_outputs_are() -> None:
    bad = X.clone()
    bad[1, 2] = torch.nan
    assert finite_images({"a": X, "b": bad}).tolist() == [True, False]
