"""What no choice of channels makes smaller: which groups, why, and what they cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from amc.cost.operators import Operator
from amc.graph.graph import NetworkGraph

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


def said_of_frozen(parts: Sequence[FrozenPart], original: float) -> str:
    """A sentence for an error; nothing where nothing is frozen.

    Args:
        original: Cost of the original network, of which shares are said.
    """
    if not parts:
        return ""
    share = sum(part.cost for part in parts) / original
    named = "; ".join(
        f"{part.name} ({part.cost / original:.3f}) {part.reason}" for part in parts[:_NAMED]
    )
    more = f"; and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return f"Frozen, with {share:.3f} of the original's cost: {named}{more}. "
