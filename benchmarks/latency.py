"""Milliseconds predicted by a device's table beside milliseconds measured on it.

    python -m benchmarks.latency --networks resnet56:32 mobilenet_v1:32 mobilenet_v2:96 --batch 1
    python -m benchmarks.latency --device openvino_cpu --networks resnet20:32 resnet56:32

Random strategies on each network: the table is measured, every strategy's network is really built,
exported and run in the device's runtime, all of them in turn. Weights are random: time does not
depend on them. Prints the errors, writes a CSV and a scatter picture.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from amc.compress.verify import graph_of
from amc.cost.choices import LEVELS, choices_for
from amc.cost.device import Device
from amc.cost.grid import COARSE, GRIDS
from amc.cost.prices import operator_prices
from amc.cost.profile import DEFAULT_STEP, LocalSpec, settled
from amc.cost.shipped import as_device
from amc.networks import build_network
from amc.problem.local import built, device_for_network, random_strategy, time_networks
from amc.runtimes import DEFAULT_DEVICE
from amc.strategy import FLOAT, Bits, Strategy
from amc.utils.measure import Timing
from benchmarks.provenance import RESULTS, print_table, provenance, write_csv


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=["resnet56:32"], help="name:image size")
    parser.add_argument("--device", default=DEFAULT_DEVICE, help="one that is this machine")
    parser.add_argument("--strategies", type=int, default=30)
    parser.add_argument("--bits", choices=("float", "mixed"), default="mixed")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channel-step", type=int, help="default: found by a probe")
    parser.add_argument("--grid", choices=GRIDS, default=COARSE)
    parser.add_argument("--again", action="store_true", help="time all networks a second time")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(given)


def local_spec(options: argparse.Namespace) -> LocalSpec:
    """The device that the options name, with their batch, threads, step and grid."""
    device = as_device(options.device)
    if not isinstance(device, LocalSpec):
        raise SystemExit(f"--device {options.device} is not measured on this machine")
    step = options.channel_step
    return replace(
        device,
        batch=options.batch,
        threads=options.threads,
        channel_step=step or DEFAULT_STEP,
        probes=step is None,
        grid=options.grid,
    )


def measure(
    name: str, size: int, given: LocalSpec, pairs: Sequence[Bits], options: argparse.Namespace
) -> list[dict[str, object]]:
    """One row for the original and every random strategy of a network."""
    shape = 3, size, size
    generator = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    network = build_network(name, num_classes=10, image_shape=shape).eval()
    graph = graph_of(network, shape)
    spec = settled(given)
    assert isinstance(spec, LocalSpec)
    choices = choices_for(graph, pairs, channel_step=spec.channel_step, levels=LEVELS)
    start = time.perf_counter()
    device: Device = device_for_network(spec, graph, choices, shape)
    table_s = time.perf_counter() - start
    strategies = [
        Strategy({}, {}),
        *(
            random_strategy(graph, choices.kept, pairs, generator.random(), generator)
            for _ in range(options.strategies)
        ),
    ]
    images = torch.rand(8, *shape) if len(pairs) > 1 else None

    def timed() -> list[Timing]:
        return time_networks(
            spec.runs_on,
            (built(graph, strategy) for strategy in strategies),
            shape,
            batch=options.batch,
            threads=options.threads,
            images=images,
        )

    timings = timed()
    again = [{"again_ms": timing.latency_ms} for timing in timed()] if options.again else []
    return [
        {
            "device": given.name,
            "network": name,
            "image size": size,
            "batch": options.batch,
            "channel step": spec.channel_step,
            "strategy": index,
            "predicted_ms": sum(operator_prices(graph, strategy, "latency_ms", device)),
            "measured_ms": timing.latency_ms,
            "spread_ms": timing.spread_ms,
            "integer layers": sum(bits != FLOAT for bits in strategy.bits.values()),
            "table_s": round(table_s, 1),
            **(again[index] if again else {}),
            **provenance(options.seed),
        }
        for index, (strategy, timing) in enumerate(zip(strategies, timings, strict=True))
    ]


def summary(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """Errors relative to what was measured; the random strategies only.

    Where all was measured twice, how the second measurement ranks them beside the first: more than
    that no prediction can be asked for.
    """
    columns = [[row[key] for row in rows[1:]] for key in ("predicted_ms", "measured_ms")]
    predicted, measured = np.array(columns, np.float64)
    error = np.abs(predicted / measured - 1)
    relative = np.abs(predicted / measured / np.median(predicted / measured) - 1)
    again = np.array([row.get("again_ms", math.nan) for row in rows[1:]], np.float64)
    twice = {"rank of both measurements": f"{spearmanr(again, measured).statistic:.3f}"}
    return {
        "device": rows[0]["device"],
        "network": rows[0]["network"],
        "batch": rows[0]["batch"],
        "step": rows[0]["channel step"],
        "table s": rows[0]["table_s"],
        "median error": f"{np.median(error):.1%}",
        "90th percentile": f"{np.percentile(error, 90):.1%}",
        "bias": f"{np.median(predicted / measured) - 1:+.1%}",
        "median without bias": f"{np.median(relative):.1%}",
        "90th without bias": f"{np.percentile(relative, 90):.1%}",
        "rank correlation": f"{spearmanr(predicted, measured).statistic:.3f}",
        **({} if np.isnan(again).any() else twice),
    }


def file_name(options: argparse.Namespace) -> str:
    """What the results are kept as: runs of other devices, bits, batches or networks stay."""
    device = options.device.rpartition(":")[2]
    parts = [] if options.device == DEFAULT_DEVICE else [device]
    parts += [options.bits, f"b{options.batch}"]
    parts += [re.sub(r"[^\w.]+", "_", given.partition(":")[0]) for given in options.networks]
    return "-".join(["latency", *parts])


def draw(groups: Sequence[Sequence[dict[str, object]]], path: Path) -> None:
    """Predicted against measured, one panel for each network."""
    figure = Figure(figsize=(4.2 * len(groups), 4), layout="constrained")
    for axes, rows in zip(np.atleast_1d(figure.subplots(1, len(groups))), groups, strict=True):
        measured = [float(str(row["measured_ms"])) for row in rows]
        predicted = [float(str(row["predicted_ms"])) for row in rows]
        axes.scatter(measured, predicted, s=14, label="random strategies")
        axes.scatter(measured[:1], predicted[:1], s=30, marker="s", label="original")
        highest = max([*measured, *predicted]) * 1.05
        axes.plot([0, highest], [0, highest], color="0.6", linewidth=1)
        axes.set(
            title=f"{rows[0]['network']}, batch {rows[0]['batch']}",
            xlabel="measured, ms",
            ylabel="predicted, ms",
            xlim=(0, highest),
            ylim=(0, highest),
        )
        axes.legend(loc="upper left", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print the errors, write the CSV and the picture."""
    options = arguments()
    device = local_spec(options)
    pairs = device.supported_bits if options.bits == "mixed" else (FLOAT,)
    groups = []
    for given in options.networks:
        name, _, size = given.partition(":")
        groups.append(measure(name, int(size or 32), device, pairs, options))
    rows = [summary(group) for group in groups]
    print_table(rows, list(rows[0]))
    name = file_name(options)
    print(write_csv(name, [row for group in groups for row in group]))
    draw(groups, RESULTS / f"{name}.png")
    print(RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
