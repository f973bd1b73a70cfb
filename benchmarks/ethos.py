"""What a table of Vela's estimates predicts, against Vela's estimate of whole networks.

    python -m benchmarks.ethos --networks mobilenet_v1:224 mobilenet_v1:96 --devices ethos_u55

For each device and network the table is estimated anew; then random strategies' networks, all
layers in 8 bits, are written as one TensorFlow Lite file each and estimated whole. Networks whose
operators follow each other only (no residual additions). Prints the errors, and writes a CSV.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time

import numpy as np
import torch
from scipy.stats import spearmanr

from amc.compress.verify import graph_of
from amc.cost.choices import LEVELS, choices_for
from amc.cost.device import TableDevice
from amc.cost.ethos.models import chain_of
from amc.cost.ethos.runtime import Vela
from amc.cost.ethos.worker import estimate
from amc.cost.prices import operator_prices
from amc.cost.profile import LocalSpec
from amc.cost.remote import described_in
from amc.cost.shipped import as_device
from amc.graph.graph import NetworkGraph
from amc.problem.local import device_for_network, random_strategy
from amc.runtimes.request import Request
from amc.strategy import Bits, Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import build

INT8 = Bits(8, 8)


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v1:224", "mobilenet_v1:96"])
    parser.add_argument("--devices", nargs="+", default=["ethos_u55", "ethos_u65", "ethos_u85"])
    parser.add_argument("--strategies", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Estimate, print and write."""
    options = arguments()
    rows = [
        measure(device, network, options)
        for device in options.devices
        for network in options.networks
    ]
    print_table(rows, [key for key in rows[0] if key not in provenance(0)])
    print(write_csv("ethos", rows))


def measure(device_name: str, given: str, options: argparse.Namespace) -> dict[str, object]:
    """A row for a network on a device."""
    name, _, text = given.partition(":")
    size = int(text or 224)
    shape = (3, size, size)
    torch.manual_seed(options.seed)
    graph = graph_of(build(name, shape), shape)
    spec = as_device(device_name)
    assert isinstance(spec, LocalSpec)
    assert isinstance(spec.runs_on, Vela)
    choices = choices_for(graph, (INT8,), channel_step=spec.channel_step, levels=LEVELS)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AMC_CACHE"] = folder
        table = device_for_network(spec, graph, choices, shape)
    seconds = time.perf_counter() - start
    assert isinstance(table, TableDevice)
    generator = np.random.default_rng(options.seed)
    strategies = [Strategy({}, {layer.name: INT8 for layer in graph.layers})]
    strategies += [
        random_strategy(graph, choices.kept, (INT8,), 1.0, generator)
        for _ in range(options.strategies)
    ]
    predicted = np.array([sum(operator_prices(graph, s, "latency_ms", table)) for s in strategies])
    whole = np.array([whole_ms(graph, strategy, spec.runs_on) for strategy in strategies])
    off = np.abs(predicted / whole - 1)
    return {
        "device": device_name,
        "network": name,
        "image": size,
        "estimated": sum(row.samples > 0 for row in table.rows.values()),
        "seconds": round(seconds, 1),
        "original ms": f"{predicted[0]:.3f} / {whole[0]:.3f}",
        "median": f"{np.median(off):.1%}",
        "90th": f"{np.percentile(off, 90):.1%}",
        "largest": f"{off.max():.1%}",
        "rank": f"{spearmanr(predicted, whole).statistic:.3f}",
    } | provenance(options.seed)


def whole_ms(graph: NetworkGraph, strategy: Strategy, vela: Vela) -> float:
    """Vela's estimate of a whole network whose operators follow each other."""
    kept = graph.kept_counts(strategy)
    asked = [
        Request(layer.signature, layer.inputs.count(kept), layer.outputs.count(kept), INT8)
        for layer in graph.layers
    ]
    (pool,) = (one for one in graph.operators if one.signature.op == "adaptive_avg_pool2d")
    count = pool.inputs.count(kept)
    place = next(i for i, request in enumerate(asked) if request.signature.op == "linear")
    asked.insert(place, Request(pool.signature, count, count, INT8))
    told = [described_in(n, one, batch=1, threads=1) for n, one in enumerate(asked)]
    content = chain_of(json.loads(json.dumps(told)))
    cycles, clock, _ = estimate(content, vela.options, lambda row: True)
    return float(cycles / clock * 1e3)


if __name__ == "__main__":
    main()
