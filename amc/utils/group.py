"""Processes that do one piece of work together, as PyTorch's ``torchrun`` starts them.

Every process runs the same program to the same results; what differs is the part of the work that
each takes. Over CUDA they speak NCCL, else gloo.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from amc.errors import ConfigError

log = logging.getLogger("amc")


@dataclass(frozen=True)
class Group:
    """The processes, as one of them sees them.

    Attributes:
        rank: Of this one, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and says how it goes."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes: of several GPUs of a machine, each has one."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        if self.size == 1:
            return torch.device("cuda")
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))

    def part(self, count: int) -> slice:
        """The share of this process in so many things, a multiple of `size`."""
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the mean over the processes of these tensors, in place."""
        if self.size == 1 or not tensors:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            together = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
            distributed.all_reduce(together)  # one message instead of hundreds
            parts = torch.split(together / self.size, [tensor.numel() for tensor in alike])
            with torch.no_grad():
                for tensor, part in zip(alike, parts, strict=True):
                    tensor.copy_(part.view(tensor.shape))

    def any(self, said: bool) -> bool:
        """Whether one of them says so."""
        if self.size == 1:
            return said
        found = torch.tensor([float(said)], device=self.device)
        distributed.all_reduce(found)
        return bool(found.item())

    def of_first(self, value: Callable[[], float]) -> float:
        """A number that the first of them works out, and the others wait for."""
        if self.size == 1:
            return value()
        found = torch.tensor(
            [value() if self.is_first else 0.0], dtype=torch.float64, device=self.device
        )
        distributed.broadcast(found, 0)
        return float(found.item())

    def wait(self) -> None:
        """Return when all have come here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Group()


@contextmanager
def joined() -> Iterator[Group]:
    """The group that this process is in, while the context lasts; alone, if none was started.

    Raises:
        ConfigError: The processes do not find each other.
    """
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        yield ALONE
        return
    if distributed.is_initialized():
        yield Group(distributed.get_rank(), distributed.get_world_size())
        return
    try:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"The processes that torchrun started do not find each other: {error}"
        ) from error
    group = Group(distributed.get_rank(), distributed.get_world_size())
    if group.device.type == "cuda":
        torch.cuda.set_device(group.device)
    level = log.level
    if not group.is_first:
        log.setLevel(logging.WARNING)  # the first says what all do
    try:
        yield group
    finally:
        log.setLevel(level)
        distributed.destroy_process_group()
