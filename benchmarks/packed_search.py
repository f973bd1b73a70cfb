"""Bits that a search chooses for each layer, beside the same bits in all, in files of one size.

    python -m benchmarks.packed_search --network resnet56 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10 --times 12 --weight-bits 2 3 4 5 6

Files are packed ones (docs/packed.md), counted whole; "times" is the original's parameters in 32
bits over the file. The search is held to so many times, or with ``--as-small-as BITS`` to the size
of the file in which every layer has these bits. Tested is the network that is read back from the
file. Inputs of layers stay float, and nothing is trained.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import amc
from agents.searcher import Trial, build_searcher
from amc.compress.network import CompressedNetwork
from amc.cost.budget import Budget
from amc.export import pack
from amc.problem.problem import Problem
from amc.problem.space import SearchSpace
from amc.problem.store import open_store
from amc.problem.task import CompressionTask
from amc.strategy import FLOAT_BITS, Bits, Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.make import environment

BYTES = 4  # of a float
LOOSE = 0.9  # of the original's file: the bound that all prices are found under
COLUMNS = ["bits", "file_bytes", "times", "test %", "points lost"]
Row = dict[str, object]


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser, "resnet56")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--times", type=float, default=12.0, help="smaller than in 32 bits")
    size.add_argument("--as-small-as", type=int, help="bits of every layer")
    parser.add_argument("--uniform", type=int, nargs="*", default=[], help="bits of every layer")
    parser.add_argument("--weight-bits", type=int, nargs="+", default=[2, 3, 4, 5, 6, 8])
    parser.add_argument("--decisions", nargs="*", default=["bits"])
    parser.add_argument("--agent", default="ddpg")
    parser.add_argument("--evaluations", type=int, default=60, help="0: uniform bits alone")
    parser.add_argument("--search-images", type=int, default=1000)
    parser.add_argument("--final-candidates", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Bench:
    """One network, and what its files are worth."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._network, self._data = subject(options)
        self._floats = BYTES * sum(p.numel() for p in self._network.parameters())
        space = SearchSpace(
            weight_bits=tuple(options.weight_bits), decisions=tuple(options.decisions)
        )
        loose = Budget("packed_bytes", fraction=LOOSE)
        problem = Problem(
            self._network,
            self._data,
            None,
            loose,
            space=space,
            search_images=options.search_images,
        )
        self._task = CompressionTask(problem, open_store(True))
        self._test = self._task.evaluator(self._data.test)
        self.rows: list[Row] = []

    @property
    def bound(self) -> int:
        """Bytes that the file may take."""
        return int(self._floats / self._options.times)

    def uniform(self, width: int) -> int:
        """Every layer in the same bits; gives the file's bytes."""
        bits = {layer.name: Bits(width, FLOAT_BITS) for layer in self._task.graph.layers}
        network = self._task.finish(Strategy({}, bits))
        return self._add(f"{width} in every layer", network)

    def searched(self, bound: int) -> None:
        """Bits that a search chooses, in a file of at most so many bytes."""
        options, task = self._options, self._task
        env = environment(task, costs=task.costs.tightened(bound))

        def report(trial: Trial) -> bool:
            print(f"{trial.index}: {trial.reward:.4f}", flush=True)
            return True

        searcher = build_searcher(options.agent)
        found = searcher.search(env, options.evaluations, options.seed, report)
        finalists = [task.finish(trial.strategy) for trial in found.top(options.final_candidates)]
        fits = [one for one in finalists if (task.file_bytes(one) or 0) <= bound]
        judge = task.evaluator(self._data.search)
        best = max(fits or finalists, key=lambda one: judge(one.module).agreement)
        name = f"{options.agent}, {options.evaluations} evaluations"
        self._add(name if fits else f"{name}, above the bound of {bound}", best)
        print({layer: bits.weight for layer, bits in best.strategy.bits.items()})

    def _add(self, name: str, network: CompressedNetwork) -> int:
        """Write a file, read it back and test it; gives its bytes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.amcp"
            pack(network, self._task.graph, self._options.network).write(path)
            size, read = path.stat().st_size, amc.load_packed(path, self._network)
        before, after = self._test.original, self._test(read)
        lost = before.scores["accuracy"] - after.scores["accuracy"]
        row: Row = {
            "network": self._options.network,
            "bits": name,
            "file_bytes": size,
            "times": f"{self._floats / size:.2f}",
            "test %": f"{100 * after.scores['accuracy']:.2f}",
            "points lost": f"{100 * lost:.2f}",
        }
        self.rows.append(row | provenance(self._options.seed))
        print(row, flush=True)
        return size


def main() -> None:
    """Measure, print the table, write the CSV."""
    options = arguments()
    bench = Bench(options)
    bound = bench.bound
    for width in options.uniform:
        bench.uniform(width)
    if options.as_small_as is not None:
        bound = bench.uniform(options.as_small_as)
    if options.evaluations:
        bench.searched(bound)
    print_table(bench.rows, COLUMNS)
    print(write_csv(f"packed_search-{options.network}", bench.rows))


if __name__ == "__main__":
    main()
