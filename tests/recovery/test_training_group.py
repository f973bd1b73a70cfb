"""One training by several processes, which PyTorch's torchrun starts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed

from amc.errors import ArtifactError, ConfigError
from amc.recovery.training_batches import Batches
from amc.utils.group import ALONE, Group, joined
from tests.recovery import trained_together as together

pytestmark = [
    pytest.mark.skipif(not distributed.is_available(), reason="PyTorch without its distributed"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="torchrun is for Unix"),
]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they ended with."""
    folder = tmp_path_factory.mktemp("together")
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", together.__name__, str(folder)),
        ],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return folder


def weights(folder: Path) -> list[dict[str, Tensor]]:
    return [load_file(folder / f"{rank}.safetensors") for rank in (0, 1)]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_take_the_steps_that_one_takes(ended: Path, tmp_path: Path) -> None:
    """Without BN and dropout, the mean of two halves' gradients is the gradient of the batch."""
    first, second = weights(ended / "plain")
    assert same(first, second)
    start = dict(together.network("plain").state_dict())
    assert not same(first, start)
    alone = dict(together.trained("plain", tmp_path, ALONE).state_dict())
    torch.testing.assert_close(first, alone, rtol=1e-4, atol=1e-5)


def test_processes_end_alike_and_go_on_where_they_were(ended: Path) -> None:
    whole, resumed = weights(ended / "normalised"), weights(ended / "resumed")
    assert same(*whole)  # BN statistics, which each takes of its part, too
    assert same(whole[0], resumed[0])
    assert same(*resumed)


def test_training_of_several_processes_is_not_gone_on_with_by_one(ended: Path) -> None:
    with pytest.raises(ArtifactError, match="processes was 2, now 1"):
        together.trained("normalised", ended / "normalised", ALONE)


def test_batch_that_cannot_be_shared_out_is_refused() -> None:
    images = torch.rand(20, 1, 8, 8)
    settings = replace(together.SETTINGS, batch_size=8)
    with pytest.raises(ConfigError, match=r"Batches of 8 images .* 3 processes.*multiple of 3"):
        Batches(images, None, [0.5], [0.5], settings, torch.device("cpu"), Group(0, 3))


def test_parts_of_the_processes_are_the_whole_batch() -> None:
    images = torch.arange(64.0).view(16, 1, 2, 2)
    settings = replace(together.SETTINGS, augment=())

    def batch(group: Group) -> Tensor:
        batches = Batches(images, None, [0.0], [1.0], settings, torch.device("cpu"), group)
        return next(batches.of_epoch(1))[0]

    assert torch.equal(torch.cat([batch(Group(rank, 2)) for rank in (0, 1)]), batch(ALONE))


def test_process_that_nothing_else_was_started_with_is_alone() -> None:
    with joined() as group:
        assert (group.rank, group.size, group.is_first) == (0, 1, True)
        assert group.any(True)
        assert not group.any(False)
        assert group.of_first(lambda: 2.5) == 2.5
        held = torch.ones(3)
        group.average([held])
        assert held.tolist() == [1, 1, 1]
        group.wait()
