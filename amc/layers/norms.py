"""Modules with factors for each channel (normalisations, PReLU), and numbers over channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from amc.layers.copies import clone_module

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d

# Class -> the attribute that holds how many channels it has.
FACTORS: dict[type[nn.Module], str] = {
    nn.BatchNorm1d: "num_features",
    nn.BatchNorm2d: "num_features",
    nn.InstanceNorm1d: "num_features",
    nn.InstanceNorm2d: "num_features",
    nn.PReLU: "num_parameters",
    nn.GroupNorm: "num_channels",
    nn.LayerNorm: "normalized_shape",
    nn.RMSNorm: "normalized_shape",
}
_OVER_LAST = (nn.LayerNorm, nn.RMSNorm)
_OVER_CHANNELS = (*_OVER_LAST, nn.GroupNorm)


def is_batch_norm(module: nn.Module | None) -> TypeGuard[BatchNorm]:
    """Whether a module normalises its channels as over a batch."""
    return isinstance(module, BatchNorm)


def lacks_statistics(module: nn.Module) -> bool:
    """Whether a module normalises by the images that it is given, having no statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def has_one_factor(module: nn.Module) -> bool:
    """Whether all channels have one factor."""
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def channel_dim_of(module: nn.Module) -> int | None:
    """The dimension whose channels a module has factors for; None where it is not one alone."""
    if not isinstance(module, _OVER_LAST):
        return 1
    return -1 if len(module.normalized_shape) == 1 else None


def norm_groups(module: nn.Module) -> int:
    """Groups of channels that are normalised together and must lose equally many."""
    return module.num_groups if isinstance(module, nn.GroupNorm) else 1


class OverKept(nn.Module):
    """A normalisation whose statistics are those of some of its channels alone.

    So a channel that is ignored is defined: it counts in no mean and in no variance. What the
    others give is what they give once it is removed; its own outputs are 0.
    """

    def __init__(self, norm: nn.Module, kept: Tensor) -> None:
        """
        Args:
            norm: Over channels (`ignoring_norm`).
            kept: Positions of the channels that count.
        """
        super().__init__()
        self._norm, self._dim = norm, channel_dim_of(norm)
        self._groups, self._kept = norm_groups(norm), kept

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's shape."""
        assert self._dim is not None
        last = x.movedim(self._dim, -1)  # (n, ..., channels)
        counts = torch.zeros(last.shape[-1], dtype=torch.bool)
        counts[self._kept] = True
        rows = last.reshape(*last.shape[:-1], self._groups, -1)  # (n, ..., groups, channels of one)
        inside = counts.view(self._groups, -1).expand(rows.shape)
        # All that one mean is over: the last dimension, and of groups every position too.
        dims = [-1] if isinstance(self._norm, _OVER_LAST) else [*range(1, rows.dim() - 2), -1]
        number = inside.sum(dims, keepdim=True).clamp(min=1)
        if not isinstance(self._norm, nn.RMSNorm):
            rows = rows - (rows * inside).sum(dims, keepdim=True) / number
        energy = (rows.square() * inside).sum(dims, keepdim=True) / number
        eps: float | None = self._norm.eps  # type: ignore[assignment]
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        given: Tensor = (rows * (energy + eps).rsqrt() * inside).flatten(-2)
        for name, factor in self._norm.named_parameters():
            given = given + factor if name == "bias" else given * factor
        return (given * counts).movedim(-1, self._dim)


def _amax(x: Tensor, dims: Sequence[int], keeps: bool) -> Tensor:
    return x.amax(tuple(dims), keeps)


def _amin(x: Tensor, dims: Sequence[int], keeps: bool) -> Tensor:
    return x.amin(tuple(dims), keeps)


def _norm(x: Tensor, dims: Sequence[int], keeps: bool) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(x, 2, tuple(dims), keeps)
    return found


# Numbers over channels, by the operator's name; the largest and the smallest with their places.
STATISTICS: dict[str, Callable[[Tensor, Sequence[int], bool], Any]] = {
    "max": lambda x, dims, keeps: x.max(dims[0], keeps),
    "min": lambda x, dims, keeps: x.min(dims[0], keeps),
    "mean": lambda x, dims, keeps: x.mean(tuple(dims), keeps),
    "sum": lambda x, dims, keeps: x.sum(tuple(dims), keeps),
    "amax": _amax,
    "amin": _amin,
    "norm": _norm,
}


class ChannelStatistic(nn.Module):
    """A number over all channels, at each position or over these too.

    Channels that are ignored do not count in it, as they do not once they are removed.

    Attributes:
        channels: How many channels its input has.
    """

    def __init__(
        self, name: str, dim: int, dims: Sequence[int], keeps: bool, channels: int
    ) -> None:
        """
        Args:
            name: Of `STATISTICS`.
            dim: The dimension that holds the channels.
            dims: All that it is over.
            keeps: Whether these stay, as ones.
        """
        super().__init__()
        self.name, self.dim, self.dims, self.keeps = name, dim, tuple(dims), keeps
        self.channels = channels

    def forward(self, x: Tensor) -> Any:
        return STATISTICS[self.name](x, self.dims, self.keeps)


class StatisticOfKept(nn.Module):
    """A number over some of the channels alone."""

    def __init__(self, statistic: ChannelStatistic, kept: Tensor) -> None:
        super().__init__()
        self._statistic, self._kept = statistic, kept

    def forward(self, x: Tensor) -> Any:
        """Of all channels, of which only the kept count."""
        return self._statistic(x.index_select(self._statistic.dim, self._kept))


class Contracted(nn.Module):
    """What a product of two computed tensors sums over: it is passed on as it is.

    Here it can be said that a channel adds nothing to the product, as none does once removed.

    Attributes:
        channels: How many channels its input has.
    """

    def __init__(self, dim: int, channels: int) -> None:
        """
        Args:
            dim: The dimension that holds the channels.
        """
        super().__init__()
        self.dim, self.channels = dim, channels

    def forward(self, x: Tensor) -> Tensor:
        return x


class ContractedOverKept(nn.Module):
    """All channels but some are 0."""

    def __init__(self, contracted: Contracted, kept: Tensor) -> None:
        super().__init__()
        self._dim, self._kept = contracted.dim, kept

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's shape."""
        counts = torch.zeros(x.shape[self._dim], dtype=x.dtype)
        counts[self._kept] = 1
        last: Tensor = x.movedim(self._dim, -1) * counts
        return last.movedim(-1, self._dim)


def ignoring_norm(module: nn.Module, kept: Tensor) -> nn.Module | None:
    """What a module is where only some of its channels count; None: each counts for itself."""
    if isinstance(module, ChannelStatistic):
        return StatisticOfKept(module, kept)
    if isinstance(module, Contracted):
        return ContractedOverKept(module, kept)
    return OverKept(module, kept) if isinstance(module, _OVER_CHANNELS) else None


def sliced_factors(module: nn.Module, kept: Tensor) -> nn.Module:
    """The module for some of its channels; the original stays as it is."""
    tensors: dict[str, Tensor | None] = {
        name: old[kept].clone() if old.dim() == 1 else old.clone()
        for name, old in (*module.named_parameters(), *module.named_buffers())
    }
    sliced = clone_module(module, tensors)
    if isinstance(module, (ChannelStatistic, Contracted)):
        sliced.__dict__["channels"] = len(kept)
        return sliced
    size = next(name for kind, name in FACTORS.items() if isinstance(module, kind))
    sliced.__dict__[size] = (len(kept),) if isinstance(module, _OVER_LAST) else len(kept)
    if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
        sliced.__dict__["num_groups"] = len(kept)
    return sliced


def factor_of(norm: BatchNorm) -> Tensor:
    """What a batch normalisation multiplies its channels by, in evaluation."""
    assert norm.running_var is not None
    factor = torch.rsqrt(norm.running_var + norm.eps)
    return factor * norm.weight if norm.affine else factor


def normalised(norm: BatchNorm, given: Tensor, channels: Tensor) -> Tensor:
    """Some channels of what a batch normalisation makes of its input, (rows, channels)."""
    assert norm.running_mean is not None
    factor = factor_of(norm)
    shift = -norm.running_mean * factor
    if norm.affine:
        shift = shift + norm.bias
    return given * factor[channels] + shift[channels]
