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
from amc.compress.network import CompressedNetwork
from amc.cost.budget import Budget
from amc.export import pack
from amc.problem.problem import Problem
from amc.problem.space import SearchSpace
from amc.problem.task import CompressionTask
from amc.strategy import FLOAT_BITS, Bits, Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject

BYTES = 4  # of a float
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
        self._original = 0.0
        self.rows: list[Row] = []

    @property
    def bound(self) -> int:
        """Bytes that the file may take."""
        return int(self._floats / self._options.times)

    def uniform(self, widths: list[int]) -> int:
        """Every layer in the same bits; gives the last file's bytes."""
        budget = Budget.of({"metric": "size_bytes", "fraction": 0.99})
        task = CompressionTask(Problem(self._network, self._data, None, budget))
        size = 0
        for width in widths:
            bits = {layer.name: Bits(width, FLOAT_BITS) for layer in task.graph.layers}
            size = self._add(task, f"{width} in every layer", task.finish(Strategy({}, bits)))
        return size

    def searched(self, bound: int) -> None:
        """Bits that a search chooses, in a file of at most so many bytes."""
        options = self._options
        found = amc.search(
            self._network,
            self._data,
            None,
            {"metric": "packed_bytes", "absolute": bound},
            agent=options.agent,
            evaluations=options.evaluations,
            final_candidates=options.final_candidates,
            search_images=options.search_images,
            seed=options.seed,
            space=SearchSpace(
                weight_bits=tuple(options.weight_bits), decisions=tuple(options.decisions)
            ),
        )
        print(found)
        for note in found.notes:
            print(note)
        original, uniform, _ = found.comparison
        self._original = original.test["accuracy"]
        assert uniform.packed_bytes is not None
        self._note("uniform, as the search ends", uniform.packed_bytes, uniform.test["accuracy"])
        self._add(found.task, f"{options.evaluations} evaluations", found.compressed)
        print({layer: bits.weight for layer, bits in found.strategy.bits.items()})

    def _add(self, task: CompressionTask, name: str, network: CompressedNetwork) -> int:
        """Write a file, read it back and test it; gives its bytes."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.amcp"
            pack(network, task.graph, self._options.network).write(path)
            size, read = path.stat().st_size, amc.load_packed(path, self._network)
        test = task.evaluator(self._data.test)
        self._original = self._original or test.original.scores["accuracy"]
        self._note(name, size, test(read.module).scores["accuracy"])
        return size

    def _note(self, name: str, size: int, accuracy: float) -> None:
        row: Row = {
            "network": self._options.network,
            "bits": name,
            "file_bytes": size,
            "times": f"{self._floats / size:.2f}",
            "test %": f"{100 * accuracy:.2f}",
            "points lost": f"{100 * (self._original - accuracy):.2f}",
        }
        self.rows.append(row | provenance(self._options.seed))
        print(row, flush=True)


def main() -> None:
    """Measure, print the table, write the CSV."""
    options = arguments()
    bench, matched = Bench(options), options.as_small_as
    widths = [*options.uniform, *([] if matched is None else [matched])]
    size = bench.uniform(widths) if widths else 0
    if options.evaluations:
        bench.searched(bench.bound if matched is None else size)
    print_table(bench.rows, COLUMNS)
    print(write_csv(f"packed_search-{options.network}", bench.rows))


if __name__ == "__main__":
    main()
