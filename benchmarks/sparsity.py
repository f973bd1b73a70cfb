"""What zeros cost: by magnitude and by error, the same share in every layer or chosen.

    python -m benchmarks.sparsity --network resnet20 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10

No gradient step anywhere. "Chosen" has as many bytes (`size_bytes`) as that share in every layer:
allocated by the integer program, and with ``--evaluations`` by a search as well.
"""

from __future__ import annotations

import argparse
import time

from torch import nn

import amc
from amc.compress.sparsity import FRACTIONS, Sparsity
from amc.cost.budget import Budget
from amc.decisions import build_decision
from amc.layers import layer_at
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.strategy import Strategy
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.knapsack import knapsack_strategy

Row = dict[str, object]
BY = {"magnitude": False, "error": True}


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--by", nargs="+", choices=BY, default=list(BY), help="zeros go by")
    parser.add_argument("--fractions", type=float, nargs="*", default=[0.5, 0.75, 0.9])
    parser.add_argument("--inner", type=float, nargs="*", default=[0.75])
    parser.add_argument("--chosen", type=float, nargs="*", default=[0.75, 0.9])
    parser.add_argument("--evaluations", type=int, default=0, help="of a search of what is chosen")
    parser.add_argument("--search-images", type=int, default=1000, help="of each evaluation")
    parser.add_argument("--final-candidates", type=int, default=5, help="repaired at length")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


class Bench:
    """One network, and what its sparse forms are worth."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._network, self._data = subject(options)
        self._task = self._problem(Sparsity(), 0.99)
        self._search = self._task.evaluator(self._data.search)
        self._test = self._task.evaluator(self._data.test)
        self._original = self._test(self._task.reference).scores["accuracy"]
        self.rows: list[Row] = []
        self._add("dense", "", 0.0, self._task.reference, 0.0)

    def _problem(self, decision: Sparsity, fraction: float) -> CompressionTask:
        budget = Budget.of({"metric": "size_bytes", "fraction": fraction})
        problem = Problem(self._network, self._data, None, budget, space=_space(decision))
        return CompressionTask(problem)

    def uniform(self, decision: Sparsity, fraction: float, *, inner: bool = False) -> None:
        """The same fraction in every layer; or in all but the first and the last."""
        build_decision(decision)
        layers = [layer.name for layer in self._task.graph.layers]
        layers = layers[1:-1] if inner else layers
        strategy = Strategy({}, {}, {decision.name: dict.fromkeys(layers, (fraction,))})
        where = "inner layers" if inner else "every layer"
        self._finish(decision.name, where, fraction, strategy)

    def chosen(self, fraction: float) -> None:
        """As many bytes as that fraction in every layer, allocated."""
        layers = [layer.name for layer in self._task.graph.layers]
        strategy = Strategy({}, {}, {"sparsity": dict.fromkeys(layers, (fraction,))})
        of_original = self._task.strategy_costs(strategy)["size_bytes"] / self._task.costs.original
        offered = Sparsity(tuple(sorted({*FRACTIONS, 0.4, 0.65, 0.75, 0.85, 0.95})))
        task = self._problem(offered, of_original)
        self._finish("sparsity", "program", fraction, knapsack_strategy(task.costs, task.errors))
        if self._options.evaluations:
            found = amc.search(
                self._network,
                self._data,
                None,
                task.budget,
                space=_space(offered),
                evaluations=self._options.evaluations,
                search_images=self._options.search_images,
                final_candidates=self._options.final_candidates,
                seed=self._options.seed,
            )
            self._add("sparsity", "search", fraction, found.network, 0.0)

    def _finish(self, name: str, where: str, fraction: float, strategy: Strategy) -> None:
        start = time.perf_counter()
        found = self._task.finish(strategy)
        self._add(name, where, fraction, found.module, time.perf_counter() - start)

    def _add(
        self, name: str, where: str, fraction: float, network: nn.Module, seconds: float
    ) -> None:
        accuracy = self._test(network).scores["accuracy"]
        row: Row = {
            "decision": name,
            "where": where,
            "fraction": fraction,
            "data seed": self._options.data_seed,
            "zeros %": f"{100 * self._zeros(network):.1f}",
            "search %": f"{100 * self._search(network).scores['accuracy']:.2f}",
            "test %": f"{100 * accuracy:.2f}",
            "test drop": f"{100 * (self._original - accuracy):.2f}",
            "repair s": f"{seconds:.1f}",
        }
        self.rows.append(row | provenance(self._options.seed))
        print(row, flush=True)

    def _zeros(self, network: nn.Module) -> float:
        weights = [layer_at(network, layer.name).weight for layer in self._task.graph.layers]
        return sum(float((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def _space(decision: Sparsity) -> amc.SearchSpace:
    return amc.SearchSpace(min_preserve_ratio=1.0, weight_bits=(32,), decisions=(decision,))


def main() -> None:
    """Measure, print the table, write the CSV."""
    options = arguments()
    bench = Bench(options)
    for by_error in (BY[name] for name in options.by):
        if options.fractions:
            bench.uniform(Sparsity(pattern=(2, 4), by_error=by_error), 0.5)
        for fraction in options.fractions:
            bench.uniform(Sparsity(by_error=by_error), fraction)
    for fraction in options.inner:
        bench.uniform(Sparsity(), fraction, inner=True)
    for fraction in options.chosen:
        bench.chosen(fraction)
    shown = [key for key in bench.rows[0] if key not in provenance(0)]
    print_table(bench.rows, shown)
    print(write_csv(f"sparsity-{options.network}", bench.rows))


if __name__ == "__main__":
    main()
