"""What a runtime is asked to time, and a device to price."""

from __future__ import annotations

from dataclasses import dataclass

from amc.graph.types import WHOLE, Signature
from amc.strategy import Bits


@dataclass(frozen=True, order=True)
class Request:
    """An operator with its channels and bits."""

    signature: Signature
    in_channels: int
    out_channels: int
    bits: Bits

    def __str__(self) -> str:
        channels = f"{self.in_channels} -> {self.out_channels} channels"
        return f"{describe(self.signature)}, {channels}, {self.bits} bits"


@dataclass(frozen=True)
class ProductShape:
    """The matrices of one of attention's products.

    Attributes:
        blocks: Heads times windows.
        queries, keys: Tokens.
        width: Channels of one head.
    """

    blocks: int
    queries: int
    keys: int
    width: int

    @classmethod
    def of(cls, request: Request) -> ProductShape:
        """Those of a request."""
        signature = request.signature
        (keys, windows), (queries, _) = signature.in_size, signature.out_size
        width = max(request.in_channels // signature.groups, 1)
        return cls(signature.groups * windows, queries, keys, width)


def describe(signature: Signature) -> str:
    """An operator in a few words, for messages."""
    if signature.is_whole:
        return f"{signature.op.removeprefix(WHOLE)} as it stands"
    if signature.is_product:
        (keys, windows), (queries, _) = signature.in_size, signature.out_size
        where = f" in each of {windows} windows" if windows > 1 else ""
        return f"{signature.op} of {signature.groups} heads, {queries} by {keys} tokens{where}"
    kernel, stride, size = (
        f"{pair[0]}x{pair[1]}" for pair in (signature.kernel, signature.stride, signature.in_size)
    )
    kind = "depthwise " if signature.is_depthwise else ""
    groups = f" groups {signature.groups}" if signature.groups > 1 else ""
    return f"{kind}{signature.op} kernel {kernel} stride {stride}{groups} on {size}"
