"""The same integers by packed files' coders, nncodec, zstd and gzip.

    pip install nncodec zstandard
    python -m benchmarks.packed --network resnet20 --checkpoint file.safetensors --root cifar10

The weights of every layer on their grids of 8, 6, 4, 3 and 2 bits, of 4 bits with three quarters of
them zeros by magnitude, and as indices of 16 centroids (k-means). Of nncodec, MPEG's reference
coder, it is DeepCABAC's bits alone: its headers are not counted, tables of packed files are. For
zstd and gzip an integer is a byte, or as many bits as it has, whatever gives less. What is missing
is left out.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from amc.compress.quantization import weight_scale
from amc.compress.verify import graph_of
from amc.export.packed import integers
from amc.export.packed.bits import IntArray, Reader, packed
from amc.layers import layer_at
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject

COLUMNS = ["weights", "coder", "bytes", "bits_per_weight", "of_nncodec", "encode_s", "decode_s"]
Coder = tuple[Callable[[IntArray], bytes], Callable[[bytes, Sequence[int]], IntArray]]


def on_grid(weight: Tensor, bits: int, zeros: float = 0.0) -> IntArray:
    """A weight's integers; a fraction of the smallest are 0 first."""
    if zeros:
        flat = weight.flatten().clone()
        flat[flat.abs().argsort()[: round(zeros * len(flat))]] = 0
        weight = flat.view_as(weight)
    steps = weight_scale(weight, bits).view(-1, *[1] * (weight.dim() - 1))
    levels = max(2 ** (bits - 1) - 1, 1)
    return (weight / steps).round().clamp(-levels, levels).long().numpy()


def indices(weight: Tensor, centroids: int) -> IntArray:
    """Indices of k-means' centroids, ascending, counted from that which is nearest to 0."""
    flat = weight.flatten().double()
    found = torch.quantile(flat, torch.linspace(0, 1, centroids, dtype=torch.float64))
    for _ in range(20):
        chosen = torch.bucketize(flat, (found[1:] + found[:-1]) / 2)
        sums = torch.zeros_like(found).index_add_(0, chosen, flat)
        counts = torch.bincount(chosen, minlength=centroids)
        found = torch.where(counts > 0, sums / counts.clamp_min(1), found).sort().values
    chosen = torch.bucketize(flat, (found[1:] + found[:-1]) / 2)
    return (chosen - int(found.abs().argmin())).view_as(weight).numpy()


def ours(coder: str) -> Coder:
    def decode(content: bytes, shape: Sequence[int]) -> IntArray:
        return integers.decoded(Reader(content), shape)

    return lambda values: integers.encoded(values, coder=coder).content, decode


def nncodec() -> Coder:
    """DeepCABAC as the reference software calls it, without dependent quantization."""
    from nncodec.extensions import deepCABAC  # type: ignore[import-untyped,import-not-found,unused-ignore]  # fmt: skip
    from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF  # type: ignore[import-untyped,import-not-found,unused-ignore]  # fmt: skip

    unary = 11

    def encode(values: IntArray) -> bytes:
        coder = deepCABAC.Encoder()
        coder.initCtxModels(unary, 1)
        skipped = np.array([not row.any() for row in values], np.int32)
        given = np.ascontiguousarray(values, np.int32)
        coder.encodeLayer(given, 0, 0, 1, 0, 1, skipped, *HDSP_OPTS_OFF(), 0, 0)
        return bytes(coder.finish())

    def decode(content: bytes, shape: Sequence[int]) -> IntArray:
        coder = deepCABAC.Decoder()
        coder.setStream(np.frombuffer(content, np.uint8))
        coder.initCtxModels(unary)
        found = np.zeros(shape, np.int32)
        coder.decodeLayer(found, 0, 0, 1, 0, *HDSP_OPTS_OFF(), 0, 0)
        return found.reshape(-1).astype(np.int64)

    return encode, decode


def general(compress: Callable[[bytes], bytes], expand: Callable[[bytes], bytes]) -> Coder:
    """A coder of bytes: of an integer each, or of as few bits as there are."""

    def encode(values: IntArray) -> bytes:
        low = int(values.min())
        width = max(int(values.max() - low).bit_length(), 1)
        forms = (
            b"\0" + compress(values.astype(np.int16 if width > 8 else np.int8).tobytes()),
            bytes([width, low & 255, low >> 8 & 255])
            + compress(packed((values - low).reshape(-1), width)),
        )
        return min(forms, key=len)

    def decode(content: bytes, shape: Sequence[int]) -> IntArray:
        if content[0] == 0:
            return np.frombuffer(expand(content[1:]), np.int8).astype(np.int64)
        low = int.from_bytes(content[1:3], "little", signed=True)
        count, width = int(np.prod(shape)), content[0]
        bits = np.unpackbits(np.frombuffer(expand(content[3:]), np.uint8), count=count * width)
        return bits.reshape(count, width) @ (1 << np.arange(width - 1, -1, -1)) + low

    return encode, decode


def coders() -> dict[str, Coder]:
    """Those that are installed."""
    found = {"packed": ours("range"), "packed, Huffman": ours("huffman")}
    if find_spec("nncodec"):
        found["nncodec"] = nncodec()
    if find_spec("zstandard"):
        import zstandard

        found["zstd 22"] = general(
            zstandard.ZstdCompressor(22).compress, zstandard.ZstdDecompressor().decompress
        )
    found["gzip 9"] = general(lambda content: zlib.compress(content, 9), zlib.decompress)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    options = parser.parse_args()
    network, data = subject(options)
    graph = graph_of(network, data.image_shape)
    weights = [layer_at(graph.plan.module, layer.name).weight.detach() for layer in graph.layers]
    made: dict[str, list[IntArray]] = {
        **{f"{bits} bits": [on_grid(weight, bits) for weight in weights] for bits in (8, 6, 4, 3)},
        "2 bits": [on_grid(weight, 2) for weight in weights],
        "4 bits, 75 % zeros": [on_grid(weight, 4, 0.75) for weight in weights],
        "4 bits, 95 % zeros": [on_grid(weight, 4, 0.95) for weight in weights],
        "16 centroids": [indices(weight, 16) for weight in weights],
    }
    rows: list[dict[str, object]] = []
    for name, layers in made.items():
        count, sizes = sum(values.size for values in layers), dict[str, int]()
        begun = len(rows)
        for coder, (encode, decode) in coders().items():
            start = time.perf_counter()
            contents = [encode(values) for values in layers]
            middle = time.perf_counter()
            back = [decode(c, v.shape) for c, v in zip(contents, layers, strict=True)]
            end = time.perf_counter()
            for found, values in zip(back, layers, strict=True):
                assert (found == values.reshape(-1)).all(), (coder, name)
            sizes[coder] = sum(map(len, contents))
            rows.append(
                {
                    "network": options.network,
                    "weights": name,
                    "coder": coder,
                    "bytes": sizes[coder],
                    "bits_per_weight": f"{8 * sizes[coder] / count:.3f}",
                    "encode_s": f"{middle - start:.2f}",
                    "decode_s": f"{end - middle:.2f}",
                }
            )
        for row in rows[begun:]:
            size, rival = sizes[str(row["coder"])], sizes.get("nncodec")
            row["of_nncodec"] = f"{size / rival:.3f}" if rival else ""
    print_table(rows, COLUMNS)
    stem = f"packed-{options.network}"
    print(write_csv(stem, [row | provenance(0) for row in rows]))


if __name__ == "__main__":
    main()
