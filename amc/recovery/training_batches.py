"""The images of a training, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from amc.errors import ConfigError
from amc.recovery.training_settings import AUGMENTATIONS, TrainingSettings
from amc.utils.files import fingerprint
from amc.utils.group import ALONE, Group
from amc.utils.layout import laid_out

_STREAM_STRIDE = 1_000_003  # a prime that keeps the streams of (seed, epoch) apart
_RANK_STRIDE = 2_147_483_659  # those of processes


class Batches:
    """The images in a fresh order every epoch, augmented, normalised, on the device.

    Attributes:
        targets: Of all images, in their order.
        layout: How they lie in memory there.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor | None,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        settings: TrainingSettings,
        device: torch.device,
        group: Group = ALONE,
    ) -> None:
        """
        Args:
            group: Processes of which each takes a part of every batch.

        Raises:
            ConfigError: A batch cannot be shared out among them.
        """
        self._images, self._settings = images, settings
        self.targets = targets
        self.device = device
        self.layout = torch.contiguous_format
        self._group = group
        self.size = min(settings.batch_size, len(images))
        if self.size % group.size:
            raise ConfigError(
                f"Batches of {self.size} images cannot be shared out evenly among {group.size} "
                f"processes. Make batch_size a multiple of {group.size}, of no more images than "
                f"there are ({len(images)})."
            )
        self.steps = len(images) // self.size
        self._mean = torch.as_tensor(mean, dtype=torch.float32, device=device)[:, None, None]
        self._std = torch.as_tensor(std, dtype=torch.float32, device=device)[:, None, None]

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Inputs (B, C, H, W) and targets (B, ...), if there are any."""
        generator = torch.Generator().manual_seed(stream_of(self._settings.seed, epoch))
        order = torch.randperm(len(self._images), generator=generator)
        for rows in order[: self.steps * self.size].view(self.steps, self.size):
            rows = rows.to(self._images.device)
            images = self._images[rows].to(self.device)
            targets = self._targets(rows)
            for name in self._settings.augment:
                state = generator.get_state()
                images = AUGMENTATIONS[name](images, generator)
                if targets is not None and is_map(targets):  # goes where its image's pixels go
                    generator.set_state(state)
                    targets = AUGMENTATIONS[name](targets, generator)
            mine = self._group.part(len(images))
            yield self._as_inputs(images[mine]), None if targets is None else targets[mine]

    def plain(self, count: int) -> Tensor:
        """So many of the images at most, evenly spread and not augmented, as inputs."""
        rows = torch.linspace(0, len(self._images) - 1, min(count, len(self._images))).long()
        return self._as_inputs(self._images[rows.to(self._images.device)].to(self.device))

    def _as_inputs(self, images: Tensor) -> Tensor:
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        return laid_out((scaled - self._mean) / self._std, self.layout)

    def _targets(self, rows: Tensor) -> Tensor | None:
        """Of the images of a batch, whole numbers as int64: held, they take what they were given
        in.
        """
        if self.targets is None:
            return None
        targets = self.targets[rows.to(self.targets.device)].to(self.device)
        return targets if targets.is_floating_point() else targets.long()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    def fingerprint(self) -> str:
        """Changes with any pixel, target, mean or std."""
        targets = () if self.targets is None else (self.targets,)
        return fingerprint(self._images, *targets, self._mean, self._std)


def is_map(targets: Tensor) -> bool:
    """Whether targets have a place in the image, (N, ..., H, W)."""
    return targets.dim() >= 3


def stream_of(seed: int, epoch: int, rank: int = 0) -> int:
    """The seed of all that is random in an epoch, for a process of several."""
    return seed * _STREAM_STRIDE + epoch + rank * _RANK_STRIDE
