"""Does the reward inside a search rank strategies as the finished networks rank?

    python -m benchmarks.fidelity --network resnet20 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10

Random strategies under one budget: rank correlation of what a search sees (one-shot repair, a
thousand images) with the sequentially repaired and the briefly fine-tuned network on the whole
search split.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from agents.episode import choose_at_random, run_episode
from amc.cost.budget import Budget
from amc.problem.problem import Problem
from amc.problem.task import CompressionTask
from amc.recovery.training import TrainingSettings, train
from amc.utils.progress import progress_bar
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject
from envs.make import environment


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--metric", default="macs")
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--strategies", type=int, default=40)
    parser.add_argument("--tuning-images", type=int, default=5000, help="0: no fine-tuning")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def tuned_accuracy(task: CompressionTask, module: nn.Module, images: int) -> float:
    """Accuracy on the search split after one pass over some training images, in place."""
    split = task.data.train
    chosen = split.take(torch.linspace(0, len(split) - 1, min(images, len(split))).long())
    judge = task.evaluator(task.data.search)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    train(
        module,
        chosen.images,
        chosen.labels,
        mean=task.data.mean,
        std=task.data.std,
        settings=TrainingSettings(epochs=1, distillation_weight=0.9),
        teacher=task.network,
        description="fine-tuning",
    )
    return judge(module).scores["accuracy"]


def main() -> None:
    """Evaluate random strategies in every way, print correlations, write the CSV."""
    options = arguments()
    network, data = subject(options)
    budget = Budget.of({"metric": options.metric, "fraction": options.fraction})
    task = CompressionTask(Problem(network, data, None, budget))
    env = environment(task, "accuracy", "plain")
    choose = choose_at_random(np.random.default_rng(options.seed))
    judge = task.evaluator(data.search)
    rows: list[dict[str, object]] = []
    with progress_bar("strategies", options.strategies) as bar:
        for index in range(options.strategies):
            trial = run_episode(env, choose, index + 1).trial
            module = task.finish(trial.strategy).module
            repaired = judge(module)
            row: dict[str, object] = {
                "strategy": index,
                "estimated error": task.errors.total(
                    *(part.tolist() for part in task.costs.encode(trial.strategy))
                ),
                "reward accuracy": trial.evaluation.accuracy,
                "reward agreement": trial.evaluation.agreement,
                "repaired accuracy": repaired.accuracy,
                "repaired agreement": repaired.agreement,
            }
            if options.tuning_images:
                row["tuned accuracy"] = tuned_accuracy(task, module, options.tuning_images)
            rows.append(row | provenance(options.seed))
            bar.advance()
    print(write_csv(f"fidelity-{options.network}-{options.metric}-{options.fraction}", rows))
    print_table(correlations(rows), ["in the search", "repaired accuracy", "tuned accuracy"])


def correlations(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Spearman's rank correlation of each thing a search sees with each thing that counts."""
    columns = {
        name: np.array([row[name] for row in rows], np.float64)
        for name in rows[0]
        if isinstance(rows[0][name], float)
    }
    columns["estimated error"] = -columns["estimated error"]
    table: list[dict[str, object]] = []
    for seen in ("estimated error", "reward accuracy", "reward agreement"):
        row: dict[str, object] = {"in the search": seen}
        for finished in ("repaired accuracy", "tuned accuracy"):
            if finished in columns:
                value = spearmanr(columns[seen], columns[finished]).statistic
                row[finished] = f"{value:.3f}"
        table.append(row)
    return table


if __name__ == "__main__":
    main()
