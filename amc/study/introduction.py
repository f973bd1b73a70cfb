"""A prepared task in words: what the user should know before a search of it begins."""

from __future__ import annotations

import logging

import torch

from amc.cost.account import account
from amc.objectives import primary_score, score_texts
from amc.problem.task import CompressionTask
from amc.study.normalisation import in_options, other_normalisation

log = logging.getLogger("amc")


def describe(task: CompressionTask) -> str:
    """The prepared task in a few lines: what is free, what is frozen and why, the budget."""
    graph, costs = task.graph, task.costs
    lines = [
        f"{type(task.network).__name__}: {len(graph.layers)} layers, "
        f"{len(graph.free_groups)} channel groups free, {len(graph.frozen_groups)} frozen"
    ]
    lines += [f"  frozen: {group.name} {group.reason}" for group in graph.frozen_groups]
    lines += [f"  not followed: {path} {reason}" for path, reason in graph.opaque.items()]
    unit, metric = task.budget.unit, task.budget.metric
    lines += [f"  {line}" for line in account(task.network, graph, metric, task.device)]
    bound = (
        f"{costs.bound:,.6g} {unit}, {costs.bound / costs.original:.3f} of the original's "
        f"{costs.original:,.6g} {unit}"
    )
    if task.budget.keep is not None:
        bound = f"what keeps the score, of the original's {costs.original:,.6g} {unit}"
    lines.append(
        f"budget: {metric} at most {bound} "
        f"(smallest reachable: {costs.floor:,.6g} {unit}, {costs.floor / costs.original:.3f} of it)"
    )
    shape = "x".join(map(str, task.data.image_shape))
    data, objective = task.data, task.objective
    lines.append(
        f"data: {data.name}, images {shape}, {data.labels_in_words}; {len(data.calibration)} to "
        f"calibrate by, {len(data.search)} to search on"
    )
    if data.search.images.dtype == torch.uint8:
        lines[-1] += f"; {in_options(data.mean, data.std)}"
    if data.is_labelled:
        texts = score_texts(objective, task.original.scores, labelled=True)
        lines.append(f"original: {texts} on {task.searched_on}")
    else:
        lost, counts = (primary_score(objective, labelled=which) for which in (True, False))
        if lost.needs_targets:
            why = data.why_unlabelled
            lines.append(f"no {lost.name} without labels ({why}): {counts.name} counts")
        elif counts.needs_targets is None:
            texts = score_texts(objective, task.original.scores, labelled=False)
            lines.append(f"original: {texts} on {task.searched_on}")
        else:
            lines.append(f"{counts.name} with the original's outputs counts, labels do not")
    lines += objective.notes
    return "\n".join(lines)


def introduce(task: CompressionTask) -> None:
    """Say what a task is, and what makes its numbers doubtful."""
    log.info("%s", describe(task))
    for note in (task.data.shortage, *task.notes):
        if note:
            log.warning("%s", note)
    named = primary_score(task.objective, labelled=True)
    if task.data.has_other_labels and named.needs_targets:
        log.warning(
            "The labels are left aside: %s. For %s give a network whose outputs are of the labels "
            "(for the last classes that have no image, the data's class_names).",
            task.data.why_unlabelled,
            named.name,
        )
    doubt = task.objective.doubt(task.original.scores)
    for said in (doubt, other_normalisation(task)):
        if said:
            log.warning("%s", said)
