"""Accuracy against measured milliseconds: searched under a latency budget and under MACs.

    python -m benchmarks.frontier --network resnet56 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10

One search for every budget, on ONNX Runtime on this machine; at the end all networks are exported
and run in turn beside the original. Prints a row for every network and what the latency budget
gained, writes a CSV and the picture of both curves. Without --root: ResNet-20 on the digits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from amc.api import search
from amc.data import DataSet
from amc.problem.local import calibration_images, time_networks
from amc.problem.space import SearchSpace
from amc.runtimes import OF_FILES
from amc.strategy import FLOAT
from amc.utils.measure import Timing
from benchmarks.provenance import RESULTS, print_table, provenance, write_csv
from benchmarks.subject import add_options, subject

DEVICE = "onnxruntime_cpu"  # what budgets are on, and what is measured at the end


@dataclass(frozen=True)
class Point:
    """One network: what it was searched under, how good and how fast it is.

    Attributes:
        budget: "original", or the metric of its budget.
        fraction: Of the original's cost that the search was allowed.
        accuracy: On the test split.
        integer_layers: Layers with 8-bit weights and activations.
    """

    budget: str
    fraction: float
    network: nn.Module
    accuracy: float
    macs: int
    integer_layers: int


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--latency", type=float, nargs="*", default=[0.4, 0.5, 0.6, 0.7, 0.8])
    parser.add_argument("--macs", type=float, nargs="*", default=[0.2, 0.3, 0.4, 0.5, 0.65])
    parser.add_argument("--bits", choices=("float", "mixed"), default="float")
    parser.add_argument("--blocks", action="store_true", help="residual blocks may go")
    parser.add_argument("--agent", default="ddpg")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=3, help="repaired and ranked again")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.device != DEVICE:
        parser.error(
            f"--device must be {DEVICE}, got {options.device}: at the end all networks are timed "
            "in ONNX Runtime on this machine, which says nothing of a budget on another device"
        )
    return options


def searched(
    network: nn.Module, data: DataSet, metric: str, fraction: float, options: argparse.Namespace
) -> tuple[Point, Point]:
    """The original, and the best network that a search finds within a budget."""
    widths = (32,) if options.bits == "float" else None
    result = search(
        network,
        data,
        options.device,
        {"metric": metric, "fraction": fraction},
        agent=options.agent,
        evaluations=options.evaluations,
        seed=options.seed,
        space=SearchSpace(weight_bits=widths, activation_bits=widths, drop_blocks=options.blocks),
        final_candidates=options.candidates,
    )
    integers = sum(bits != FLOAT for bits in result.strategy.bits.values())
    first, best = result.comparison[0], result.comparison[-1]
    return (
        Point("original", 1.0, network, first.test["accuracy"], first.macs or 0, 0),
        Point(metric, fraction, result.network, best.test["accuracy"], best.macs or 0, integers),
    )


def rows_of(points: Sequence[Point], timings: Sequence[Timing]) -> list[dict[str, object]]:
    """One row for each network, beside the original: the first of them."""
    first, whole = points[0], timings[0].latency_ms
    return [
        {
            "budget": point.budget,
            "fraction": point.fraction,
            "test accuracy %": round(100 * point.accuracy, 2),
            "drop": round(100 * (first.accuracy - point.accuracy), 2),
            "macs": f"{point.macs / first.macs:.2f}x",
            "measured ms": round(timing.latency_ms, 4),
            "spread ms": round(timing.spread_ms, 4),
            "measured": f"{timing.latency_ms / whole:.3f}x",
            "faster": f"{whole / timing.latency_ms:.2f}x",
            "integer layers": point.integer_layers,
        }
        for point, timing in zip(points, timings, strict=True)
    ]


def gains(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """What a latency budget gives beside a MACs budget, both curves read between their points.

    Only where the MACs curve reaches: nothing is guessed beyond its ends.
    """
    curves = {
        metric: np.array(
            sorted(
                (float(str(row["measured ms"])), float(str(row["test accuracy %"])))
                for row in rows
                if row["budget"] == metric
            )
        )
        for metric in ("macs", "latency_ms")
    }
    if min(map(len, curves.values())) == 0:
        return []
    times, accuracies = curves["macs"].T
    reached = np.maximum.accumulate(accuracies)  # a slower network that is worse is no choice
    found: list[dict[str, object]] = []
    for time_ms, accuracy in curves["latency_ms"].tolist():
        row: dict[str, object] = {"measured ms": time_ms, "test accuracy %": accuracy}
        if times[0] <= time_ms <= times[-1]:
            row["points better at equal time"] = round(
                accuracy - float(np.interp(time_ms, times, reached)), 2
            )
        if reached[0] <= accuracy <= reached[-1]:
            # From the best down: where the curve is level, its fastest network counts.
            equal = float(np.interp(-accuracy, -reached[::-1], times[::-1]))
            row["faster at equal accuracy"] = f"{equal / time_ms:.2f}x"
        found.append(row)
    return found


def draw(rows: Sequence[dict[str, object]], title: str, path: Path) -> None:
    """Test accuracy against measured milliseconds, a curve for each kind of budget."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for metric, label, style in (
        ("latency_ms", "searched under a latency budget", "o-"),
        ("macs", "searched under a MACs budget", "s--"),
        ("original", "original", "k*"),
    ):
        points = sorted(
            (float(str(row["measured ms"])), float(str(row["test accuracy %"])))
            for row in rows
            if row["budget"] == metric
        )
        axes.plot([t for t, _ in points], [a for _, a in points], style, label=label)
    axes.set(title=title, xlabel="measured, ms", ylabel="test accuracy, %")
    axes.grid(color="#e0e0e0", linewidth=0.6)
    axes.legend(loc="lower right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Search under every budget, measure, print, write the CSV and the picture."""
    options = arguments()
    network, data = subject(options)
    budgets = [("latency_ms", f) for f in options.latency] + [("macs", f) for f in options.macs]
    found = [searched(network, data, metric, f, options) for metric, f in budgets]
    points = [found[0][0], *(best for _, best in found)]
    timings = time_networks(
        OF_FILES,
        [point.network for point in points],
        data.image_shape,
        images=calibration_images(data),
    )
    rows = rows_of(points, timings)
    print_table(rows, list(rows[0]))
    compared = gains(rows)
    if compared:
        print_table(compared, list(dict.fromkeys(key for row in compared for key in row)))
    name = f"frontier-{options.network}-{options.bits}{'-blocks' if options.blocks else ''}"
    print(write_csv(name, [row | provenance(options.seed) for row in rows]))
    draw(rows, f"{options.network} on {options.device}", RESULTS / f"{name}.png")
    print(RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
