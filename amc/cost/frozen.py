"""What no choice of channels makes smaller: which groups, why, and what they cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amc.cost.budget import DEVICE_METRICS
from amc.cost.choices import advice_for_less
from amc.cost.operators import Operator
from amc.errors import UnreachableBudgetError
from amc.graph.graph import NetworkGraph

if TYPE_CHECKING:
    from amc.cost.model import CostModel
    from amc.cost.walk import WalkCosts

_NAMED = 5


@dataclass(frozen=True)
class FrozenPart:
    """A frozen channel group, what is not followed, or what stands between frozen layers.

    Attributes:
        reason: Goes on from the name: "is an output of the network".
        cost: Of the operators whose channels are all frozen and that give this.
    """

    name: str
    reason: str
    cost: float


def frozen_parts(
    graph: NetworkGraph, operators: Sequence[Operator], costs: Sequence[float]
) -> list[FrozenPart]:
    """What is frozen and costs something, the dearest first.

    An operator that has a free group among its inputs or outputs can get smaller: it is no part.

    Args:
        costs: Of each operator, in the network that they are asked of.
    """
    free = {group.index for group in graph.free_groups}
    total: dict[tuple[str, str], float] = defaultdict(float)
    for operator, cost in zip(operators, costs, strict=True):
        groups = [group for group, _ in (*operator.outputs.terms, *operator.inputs.terms)]
        if cost and free.isdisjoint(groups):
            total[_named(graph, operator)] += cost
    parts = [FrozenPart(name, reason, cost) for (name, reason), cost in total.items()]
    return sorted(parts, key=lambda part: -part.cost)


def _named(graph: NetworkGraph, operator: Operator) -> tuple[str, str]:
    """The name and the reason of what freezes an operator."""
    for group in graph.frozen_groups:
        if operator.name in group.producers and group.reason is not None:
            return group.name, group.reason
    if operator.signature.op in graph.wholes:
        return operator.name, "is not followed, and stays as it is"
    return "what stands between layers", "has no free channels"


_WORTH_SAYING = 0.0005  # of the original's cost: less is written as 0.000


def said_of_frozen(parts: Sequence[FrozenPart], original: float) -> str:
    """A sentence for an error; nothing where nothing is frozen.

    Args:
        original: Cost of the original network, of which shares are said.
    """
    if not parts:
        return ""
    share = sum(part.cost for part in parts) / original
    if share < _WORTH_SAYING:
        return ""
    named = "; ".join(
        f"{part.name} ({part.cost / original:.3f}) {part.reason}" for part in parts[:_NAMED]
    )
    more = f"; and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return f"Frozen, with {share:.3f} of the original's cost: {named}{more}. "


def unreachable(model: CostModel, walk: WalkCosts) -> UnreachableBudgetError:
    """The error of a budget below the floor: what bounds it, and what would help.

    Args:
        walk: The cheapest strategy.
    """
    names = [priced.operator.name for priced in model.priced]
    costs = model.operator_costs(walk.kept, walk.options)
    worst = sorted(zip(costs, names, strict=True), reverse=True)[:3]
    unit, metric = model.budget.unit, model.budget.metric
    on = f" on {model.device.name}" if metric in DEVICE_METRICS and model.device else ""
    frozen = frozen_parts(model.graph, [priced.operator for priced in model.priced], costs)
    helps = _smallest(model, walk, frozen) <= model.bound
    less = advice_for_less(model.graph, model.choices) if helps else ""
    return UnreachableBudgetError(
        f"The budget of {model.bound:,.6g} {unit} is below the smallest reachable "
        f"{model.floor:,.6g} {unit}{on} ({model.floor / model.original:.3f} of the original), "
        f"with the cheapest of all that the search may choose. What bounds it: "
        f"{', '.join(f'{name} ({cost:,.3g} {unit})' for cost, name in worst)}. "
        f"{said_of_frozen(frozen, model.original)}"
        f"{_advice(_reached(model), less)}."
    )


def _advice(*helps: str) -> str:
    """What helps, as the beginning of a sentence."""
    said = " or ".join(filter(None, helps)) or "nothing can get smaller"
    return said[0].upper() + said[1:]


def _reached(model: CostModel) -> str:
    """Which budget can be reached, rounded up; empty where it is none below the original."""
    if model.budget.fraction:
        smallest = math.ceil(1000 * model.floor / model.original) / 1000
        return f"raise budget.fraction to {smallest:g}" if smallest < 1 else ""
    digits = 3 - math.floor(math.log10(model.floor)) if model.floor > 0 else 0
    return f"raise budget.absolute to {math.ceil(model.floor * 10**digits) / 10**digits:.12g}"


def _smallest(model: CostModel, walk: WalkCosts, frozen: Sequence[FrozenPart]) -> float:
    """What no ratio and no step could get below: one channel of each group, or none at all.

    A device need not price one channel: there it is what is frozen alone.
    """
    if model.budget.metric in DEVICE_METRICS:
        return math.fsum(part.cost for part in frozen)
    ones = [1 if group.is_free else group.size for group in model.graph.groups]
    return model.cost(
        [min(count, kept) for count, kept in zip(ones, walk.kept, strict=True)], walk.options
    )
