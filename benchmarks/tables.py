"""How many prices a device's table needs, how long they take, and how good they are.

    python -m benchmarks.tables --networks mobilenet_v2:224 shufflenet_v2_x1_0:96 --full

For each network the table is measured anew, in float and 8 bits, where some prices are means of
others, and with ``--full`` where all are measured. Then prices that are means are measured after
all; and random strategies' networks are built, exported and run in ONNX Runtime, in turn. Weights
are random: time does not depend on them. (``efficientnet_lite0`` needs two packages:
`benchmarks.real_network`.) Prints the errors, median, 90th and 95th percentile, in brackets the
median with its sign, and writes a CSV.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr

from amc.compress.verify import graph_of
from amc.cost.choices import LEVELS, Choices, choices_for, reference_bits, requests_for
from amc.cost.device import TableDevice
from amc.cost.grid import COARSE, FULL
from amc.cost.measuring import measure_table
from amc.cost.prices import converts_of, fuses_of, operator_prices
from amc.cost.profile import DEFAULT_STEP, LocalSpec, settled
from amc.graph.graph import NetworkGraph
from amc.problem.local import built, device_for_network, random_strategy, time_networks
from amc.runtimes import OF_FILES
from amc.runtimes.request import Request
from amc.strategy import Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import build

Shape = tuple[int, int, int]
FloatArray = npt.NDArray[np.float64]
DEFAULTS = ["mobilenet_v2:224", "efficientnet_lite0:224", "shufflenet_v2_x1_0:96"]


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=DEFAULTS, help="name:image size")
    parser.add_argument("--full", action="store_true", help="measure all prices too")
    parser.add_argument("--held-out", type=int, default=300, help="means that are measured after")
    parser.add_argument("--strategies", type=int, default=30)
    parser.add_argument("--channel-step", type=int, help="default: found by a probe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@dataclass(frozen=True)
class Subject:
    """A network, and what may be chosen in it."""

    name: str
    shape: Shape
    graph: NetworkGraph
    choices: Choices


def main() -> None:
    """Measure, print and write."""
    options = arguments()
    rows: list[dict[str, object]] = []
    for given in options.networks:
        name, _, size = given.partition(":")
        rows += measure(name, int(size or 32), options)
    print_table(rows, [key for key in rows[0] if key not in provenance(0)])
    print(write_csv("tables", rows))


@dataclass(frozen=True)
class Table:
    """A table that was measured, and what its means are off by."""

    grid: str
    device: TableDevice
    seconds: float
    cpu_s: float
    off: FloatArray


def measure(name: str, size: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each table of a network."""
    shape = (3, size, size)
    torch.manual_seed(options.seed)
    graph = graph_of(build(name, shape), shape)
    step = options.channel_step
    given = LocalSpec(
        "benchmark", OF_FILES, 1, options.threads, step or DEFAULT_STEP, probes=not step
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AMC_CACHE"] = folder
        spec = settled(given)
    assert isinstance(spec, LocalSpec)
    choices = choices_for(
        graph, OF_FILES.supported_bits, channel_step=spec.channel_step, levels=LEVELS
    )
    subject = Subject(name, shape, graph, choices)
    tables = list(_tables(subject, spec, options))
    strategies, measured_ms = _whole_networks(subject, options)
    return [
        _row(subject, table, strategies, measured_ms)
        | {"step": spec.channel_step}
        | provenance(options.seed)
        for table in tables
    ]


def _tables(subject: Subject, spec: LocalSpec, options: argparse.Namespace) -> Iterator[Table]:
    """The coarse table; the full one; and the coarse one that the full one's rows give."""
    with tempfile.TemporaryDirectory() as coarse, tempfile.TemporaryDirectory() as full:
        wanted = [(COARSE, COARSE, coarse)]
        if options.full:
            wanted += [(FULL, FULL, full), ("coarse, of the full one's rows", COARSE, full)]
        for label, grid, folder in wanted:
            os.environ["AMC_CACHE"] = folder
            start, cpu = time.perf_counter(), time.process_time()
            here = replace(spec, grid=grid)
            device = device_for_network(here, subject.graph, subject.choices, subject.shape)
            seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
            assert isinstance(device, TableDevice)
            off = _held_out(subject, device, spec, Path(folder), options.held_out)
            yield Table(label, device, seconds, cpu_s, off)


def _row(
    subject: Subject, table: Table, strategies: Sequence[Strategy], measured_ms: FloatArray
) -> dict[str, object]:
    predicted = np.array(
        [
            sum(operator_prices(subject.graph, strategy, "latency_ms", table.device))
            for strategy in strategies
        ]
    )
    share = predicted / measured_ms
    return {
        "network": subject.name,
        "image": subject.shape[1],
        "grid": table.grid,
        "asked for": len(_requests(subject, table.device)),
        "measured": sum(row.samples > 0 for row in table.device.rows.values()),
        "seconds": round(table.seconds, 1),
        "CPU s": round(table.cpu_s, 1),
        **_errors("means", table.off),
        **_errors("networks", share - 1),
        **_errors("networks without bias", share / np.median(share) - 1),
        "rank": f"{spearmanr(predicted, measured_ms).statistic:.3f}",
    }


def _requests(subject: Subject, device: TableDevice) -> list[Request]:
    reference = reference_bits(device.supported_bits)
    return requests_for(
        subject.graph, subject.choices, reference, fuses_of(device), converts_of(device)
    )


def _held_out(
    subject: Subject, device: TableDevice, spec: LocalSpec, folder: Path, count: int
) -> FloatArray:
    """Relative errors of prices that are means, against what is measured now."""
    means = [r for r in _requests(subject, device) if r in device.rows]
    means = [request for request in means if not device.rows[request].samples]
    if not means:
        return np.zeros(0)
    chosen = np.random.default_rng(1).choice(len(means), min(count, len(means)), replace=False)
    wanted = [means[place] for place in sorted(chosen)]
    with spec.sampling(subject.graph.wholes) as sample:
        table = measure_table(wanted, spec.header(), folder / "held_out.csv", sample)
    return np.array([device.rows[r].latency_ms / table.rows[r].latency_ms - 1 for r in wanted])


def _whole_networks(
    subject: Subject, options: argparse.Namespace
) -> tuple[list[Strategy], FloatArray]:
    """Random strategies, and the milliseconds of their networks."""
    generator, graph = np.random.default_rng(options.seed), subject.graph
    strategies = [
        random_strategy(
            graph, subject.choices.kept, OF_FILES.supported_bits, generator.random(), generator
        )
        for _ in range(options.strategies)
    ]
    timings = time_networks(
        OF_FILES,
        (built(graph, strategy) for strategy in strategies),
        subject.shape,
        threads=options.threads,
        images=torch.rand(8, *subject.shape),
    )
    return strategies, np.array([timing.latency_ms for timing in timings])


def _errors(name: str, off: FloatArray) -> dict[str, object]:
    """Median, 90th and 95th percentile of errors, and the median with its sign."""
    if not len(off):
        return {name: ""}
    median, high, higher = np.percentile(np.abs(off), [50, 90, 95]).tolist()
    return {name: f"{median:.1%} {high:.1%} {higher:.1%} ({np.median(off):+.1%})"}


if __name__ == "__main__":
    main()
