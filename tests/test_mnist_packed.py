"""The benchmark that packs MNIST's LeNets, on scikit-learn's digits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import amc
from amc.data import DataSet
from benchmarks import mnist_packed


@pytest.fixture
def digits() -> DataSet:
    found = load_digits()
    images = torch.from_numpy(found.images * 15).to(torch.uint8).unsqueeze(1)
    return DataSet.from_tensors(
        images, torch.from_numpy(found.target), mean=(0.3,), std=(0.35,), search=300
    )


def run_of(
    data: DataSet, folder: Path, monkeypatch: pytest.MonkeyPatch, *given: str
) -> mnist_packed.Run:
    options = ["--root", "none", "--reference-epochs", "4", "--epochs", "6", *given]
    monkeypatch.setattr(sys, "argv", ["mnist_packed", *options])
    return mnist_packed.Run("lenet_300_100", data, folder, mnist_packed.arguments())


def test_packed_network_is_read_back_as_small_and_as_good_as_its_row_says(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mnist_packed, "HALVINGS", 4)
    run = run_of(digits, tmp_path, monkeypatch, "--bytes", "6000")
    row = run.row("by_hand")
    path = tmp_path / "by_hand-6000" / "model.amcp"
    assert row["bytes"] == path.stat().st_size < 1.2 * 6000
    numbers = 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    assert row["times smaller"] == f"{4 * numbers / path.stat().st_size:.1f}"
    back = amc.load_packed(path, run.reference)
    wrong = 0
    for image, label in zip(digits.test.images, digits.test.labels, strict=True):
        scores = back((image[None] / 255 - 0.3) / 0.35)
        wrong += int(scores.argmax()) != int(label)
    assert row["error %"] == f"{100 * wrong / len(digits.test):.2f}"
    assert wrong < 0.5 * len(digits.test)  # of ten classes, after seconds
    weights = [layer.weight for layer in back.modules() if isinstance(layer, nn.Linear)]
    zeros = [float((weight == 0).double().mean()) for weight in weights]
    decided = [float(share) for share in str(row["zeros"]).split()]
    assert zeros == pytest.approx(decided, abs=0.01)
    assert [len(weight.unique()) for weight in weights] == [8, 8, 8]


def test_reference_is_trained_once(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_of(digits, tmp_path, monkeypatch).reference
    monkeypatch.delattr(mnist_packed, "train")
    again = run_of(digits, tmp_path, monkeypatch).reference
    assert all(map(torch.equal, first.state_dict().values(), again.state_dict().values()))
    assert mnist_packed.published("lenet_5")[1]["times smaller"] == "162"


def test_shares_to_a_power_thin_small_shares_more() -> None:
    found = mnist_packed._thinned({"one": 0.5, "other": 0.1}, 2.0)
    assert dict(found.others["sparsity"]) == {"one": (0.75,), "other": (0.99,)}
    assert dict(found.others["codebook"]) == {"one": (3.0,), "other": (3.0,)}
