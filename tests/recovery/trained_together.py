"""What each of the processes of tests/recovery/test_training_group.py does.

    torchrun --nproc-per-node 2 -m tests.recovery.trained_together <folder>

It writes what each training ended with to <folder>/<training>/<rank>.safetensors; the state of the
training is there too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from amc.recovery.training import EpochRecord, TrainingSettings, train
from amc.utils.group import Group, joined

SETTINGS = TrainingSettings(
    epochs=2, learning_rate=0.1, batch_size=8, augment=("flip",), average=0.5, seed=3
)


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    parts = {
        "plain": [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)],
        "normalised": [
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(4 * 36, 2),
        ],
    }
    return nn.Sequential(*parts[name])


def trained(name: str, folder: Path, group: Group, until: int = SETTINGS.epochs) -> nn.Module:
    """The network after training; as Ctrl-C leaves it after epoch ``until``, if not all is done."""

    def stop(epoch: EpochRecord) -> None:
        if epoch.epoch == until < SETTINGS.epochs:
            raise KeyboardInterrupt

    net = network(name)
    drawn = torch.Generator().manual_seed(1)
    images = torch.rand(20, 1, 8, 8, generator=drawn)
    labels = torch.randint(2, (20,), generator=drawn)
    found = train(
        net,
        images,
        labels,
        mean=[0.5],
        std=[0.5],
        settings=SETTINGS,
        evaluate=lambda network: float((network(images).argmax(1) == labels).float().mean()),
        checkpoint_folder=folder,
        on_epoch=stop,
        progress=False,
        group=group,
    )
    return found.network


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined() as group:
        trained("normalised", folder / "resumed", group, until=1)
        for place, name in (
            ("plain", "plain"),
            ("normalised", "normalised"),
            ("resumed", "normalised"),
        ):
            state = trained(name, folder / place, group).state_dict()
            save_file(dict(state), folder / place / f"{group.rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
