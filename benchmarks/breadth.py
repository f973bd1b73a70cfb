"""What amc makes of networks as people write them: followed, counted, removed, exported.

    python -m benchmarks.breadth
    python -m benchmarks.breadth --networks timm/resnet18 torchvision/resnet18

Networks of timm, torchvision, ultralytics and facenet_pytorch (`benchmarks.zoo`), each in a process
of its own. What fails is a row with what was said; a package that is not installed likewise.

- `macs ratio`: multiply-adds by amc over half of what PyTorch's flop counter counts.
- `both free`: every multiply-add is between an input channel and an output channel of its operator:
  the share of those of which amc may remove both. `one free`: of which it may remove one or both.
  `of what can`: `both free`, of the multiply-adds of which neither is at an end of the network: an
  input's channels that reach a layer, and a layer's that reach an output, with no other between.
- `streams free`: channel groups that several layers write to, as residual sums tie them: those that
  are free, of all.
- `removed = ignored`: the largest difference of three random strategies between the network without
  channels and the one that ignores them, relative to the largest output.
- `ONNX`: the largest difference of a compressed network's file from PyTorch, likewise.
- `not followed`: modules that amc counts as they stand, and the reason for which the most channels
  that are not at its outputs are frozen.
- `half`: of the multiply-adds, by PyTorch's counter, what goes with half of every free group.
- `torch-pruning`: the same by torch_pruning, where its dependency graph can be built, half of each
  group pruned by magnitude (its `MagnitudePruner`, told to leave the layers that give the outputs),
  and the network still runs and gives outputs of the same shape; otherwise what failed, and how.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from amc.compress.removal import KeepMask, keep_mask, remove_channels
from amc.compress.verify import graph_of, removal_error
from amc.cost.account import count_macs
from amc.cost.prices import operator_prices
from amc.export import check_parity, export_onnx
from amc.graph.operators import tensors_in
from amc.graph.plan import NetworkGraph
from amc.graph.types import ChannelCount, LayerInfo, OperatorInfo
from amc.strategy import IDENTITY
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.zoo import NETWORKS, SEED, build

STRATEGIES = 3
COLUMNS = (
    *("network", "image", "layers", "macs ratio", "both free", "of what can", "one free"),
    "streams free",
    *("seconds", "removed = ignored", "ONNX", "half", "torch-pruning", "not followed", "error"),
)
HALF = 0.5


@dataclass(frozen=True)
class Shares:
    """Multiply-adds by amc, and what of them have free sides.

    Attributes:
        both, one: The shares with both, with at least one side free.
        can: The share with no side at an end of the network.
    """

    macs: float
    both: float
    one: float
    can: float


def free_shares(graph: NetworkGraph) -> Shares:
    """What amc may make smaller of a network's multiply-adds."""
    operators: tuple[LayerInfo | OperatorInfo, ...] = (*graph.layers, *graph.operators)
    prices = operator_prices(graph, IDENTITY, "macs", None)
    first, last = at_ends(graph)
    total = both = one = can = 0.0
    for operator, macs in zip(operators, prices, strict=False):
        inputs, outputs = _free(graph, operator.inputs), _free(graph, operator.outputs)
        may_in = inputs if operator.name in first else 1.0
        may_out = outputs if operator.name in last else 1.0
        total += macs
        if operator.signature.is_depthwise:  # a channel in is the channel out
            both, one, can = both + macs * outputs, one + macs * outputs, can + macs * may_out
        else:
            both += macs * inputs * outputs
            one += macs * (1 - (1 - inputs) * (1 - outputs))
            can += macs * may_in * may_out
    return Shares(total, both / total, one / total, can / total)


def at_ends(graph: NetworkGraph) -> tuple[frozenset[str], frozenset[str]]:
    """The layers that the network's input reaches, and those that reach an output, directly."""
    nodes, layers = list(graph.plan.module.graph.nodes), graph.plan.layers.keys()
    first = _until_layers([n for n in nodes if n.op == "placeholder"], layers, lambda n: n.users)
    outputs = [node for node in nodes if node.op == "output"]
    last = _until_layers(outputs, layers, lambda node: node.all_input_nodes)
    return first, last


def _until_layers(
    begin: list[fx.Node],
    layers: Collection[str],
    step: Callable[[fx.Node], Iterable[fx.Node]],
) -> frozenset[str]:
    """Paths of the layers that steps reach without going through another."""
    found, seen, left = set[str](), set[fx.Node](), list(begin)
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_module" and str(node.target) in layers:
            found.add(str(node.target))
        else:
            left += step(node)
    return frozenset(found)


def _free(graph: NetworkGraph, count: ChannelCount) -> float:
    """The share of a tensor's channels that are in free groups."""
    return 1 - count.fixed / max(count.count(graph.sizes()), 1)


def streams(graph: NetworkGraph) -> str:
    """Groups that several layers produce: how many are free, of how many."""
    found = [group for group in graph.groups if len(group.producers) > 1]
    return f"{sum(group.is_free for group in found)}/{len(found)}" if found else ""


def not_followed(graph: NetworkGraph) -> str:
    """What amc gave up on, in a line."""
    frozen: Counter[str] = Counter()
    _, last = at_ends(graph)
    for group in graph.frozen_groups:
        if not last.issuperset(group.producers):
            frozen[str(group.reason)] += group.size
    parts = [f"{path} {why}" for path, why in list(graph.opaque.items())[:1]]
    if len(graph.opaque) > 1:
        parts.append(f"{len(graph.opaque) - 1} more modules")
    parts += [f"{count} channels: {reason}" for reason, count in frozen.most_common(1)]
    return "; ".join(parts)


def strategies(graph: NetworkGraph) -> Iterator[KeepMask]:
    """Masks that keep a random share of every free group, half of it on average."""
    random = np.random.default_rng(SEED)
    for _ in range(STRATEGIES):
        kept = {}
        for group in graph.free_groups:
            count = max(1, round(group.size * random.uniform(0.2, 0.8)))
            kept[group.index] = np.sort(random.permutation(group.size)[:count])
        yield keep_mask(graph, kept)


def half(graph: NetworkGraph) -> nn.Module:
    """The network with every second channel of each free group, in their order."""
    kept = {group.index: np.arange(0, group.size, 2) for group in graph.free_groups}
    return remove_channels(graph.plan, keep_mask(graph, kept))


def exported(graph: NetworkGraph, keep: KeepMask, images: Tensor) -> str:
    """The largest difference of a compressed network's ONNX file, or why there is none."""
    compressed = remove_channels(graph.plan, keep)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        try:
            export_onnx(compressed, graph.image_shape, path)
            parity = check_parity(path, compressed, images, None)
        except Exception as error:  # the row tells it
            return _first_line(error)
    return f"{parity.max_difference / parity.max_score:.0e}"


def measure(name: str) -> dict[str, object]:
    """A row of the table."""
    network, shape = build(name)
    row: dict[str, object] = {"network": name, "image": shape[1]}
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(SEED))
    expected = count_macs(network, shape)[""]
    start = time.perf_counter()
    graph = graph_of(network, shape)
    row["layers"], row["seconds"] = len(graph.layers), f"{time.perf_counter() - start:.1f}"
    free = free_shares(graph)
    row |= {
        "macs": int(free.macs),
        "PyTorch's": expected,
        "macs ratio": f"{free.macs / expected:.4f}",
        "both free": f"{100 * free.both:.1f} %",
        "of what can": f"{100 * free.both / free.can:.1f} %",
        "one free": f"{100 * free.one:.1f} %",
        "streams free": streams(graph),
        "not followed": not_followed(graph),
    }
    masks = list(strategies(graph))
    worst = max(removal_error(graph, keep, images) for keep in masks)
    row["removed = ignored"] = f"{worst:.0e}"
    row["half"] = _gone(count_macs(half(graph), shape)[""], int(free.macs))
    row["ONNX"] = exported(graph, masks[0], images)
    return row


def rival(name: str) -> dict[str, object]:
    """The part of a row that torch_pruning has."""
    pruning: Any = importlib.import_module("torch_pruning")
    network, shape = build(name)
    images = torch.randn(1, *shape, generator=torch.Generator().manual_seed(SEED))
    shapes, expected = _shapes(network, images), count_macs(network, shape)[""]
    said, step = "", "building its graph"
    try:
        pruner = pruning.pruner.MagnitudePruner(
            network,
            images,
            importance=pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=HALF,
            ignored_layers=_last_layers(network, images),
        )
        step = "pruning"
        pruner.step()
        step = "the pruned network"
        given = _shapes(network, images)
        if given != shapes:
            said = f"outputs of {given}, not {shapes}"
        left = count_macs(network, shape)[""]
    except Exception as error:  # the row tells it
        said = _first_line(error)
    found = f"fails ({step}): {said}" if said else _gone(left, expected)
    return {"torch-pruning": found}


def _shapes(network: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    with torch.no_grad():
        return [tuple(tensor.shape) for tensor in tensors_in(network(images))]


def _last_layers(network: nn.Module, images: Tensor) -> list[nn.Module]:
    """The layers behind which, on a way to an output, there is no other."""
    made: dict[Any, nn.Module] = {}
    layers = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    hooks = [m.register_forward_hook(lambda m, _, y: made.update({y.grad_fn: m})) for m in layers]
    left = [tensor.grad_fn for tensor in tensors_in(network(images.requires_grad_()))]
    for hook in hooks:
        hook.remove()
    found, seen = list[nn.Module](), set[Any]()
    while left:
        step = left.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if step in made:
            found.append(made[step])
        else:
            left += [before for before, _ in step.next_functions]
    return found


def _gone(left: int, of: int) -> str:
    return f"-{100 * (1 - left / of):.1f} %"


def _first_line(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0] if said else ''}"


def row_of(name: str, part: Callable[[str], dict[str, object]] = measure) -> dict[str, object]:
    """A part of a row, or one that says why it failed."""
    try:
        return part(name)
    except ImportError as error:
        return {"network": name, "error": f"not installed: {error}"}
    except Exception as error:
        traceback.print_exc()
        return {"network": name, "error": _first_line(error)}


def row_by_both(
    name: str, seconds: float, known: Mapping[str, object] | None = None
) -> dict[str, object]:
    """A row of the table, each part from a process of its own.

    Args:
        known: What torch_pruning was found to do with some networks: it is not asked again.
    """
    row = in_a_process(["--row", name], name, seconds)
    if known is not None and name in known:
        return row | {"torch-pruning": known[name]}
    other = in_a_process(["--rival", name], name, seconds)
    return row | {"torch-pruning": other.get("torch-pruning", other.get("error"))}


def known_cells(path: Path) -> dict[str, object]:
    """What an earlier CSV says of torch_pruning, by network."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("torch-pruning")]
    return {row["network"]: row["torch-pruning"] for row in rows}


def in_a_process(options: Sequence[str], name: str, seconds: float) -> dict[str, object]:
    """`row_of` in a process of its own, which may crash or take too long."""
    command = [sys.executable, "-m", "benchmarks.breadth", *options]
    try:
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return {"network": name, "error": f"took more than {seconds:.0f} s"}
    try:
        row: dict[str, object] = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"network": name, "error": f"ended with code {ended.returncode}"}
    return row


def main() -> None:
    """Measure all networks, print the table, write the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--seconds", type=float, default=900, help="for each network")
    parser.add_argument(
        "--known", type=Path, help="an earlier CSV: torch-pruning's cells of it stay"
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--rival", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row or given.rival:
        found = row_of(given.row) if given.row else row_of(given.rival, rival)
        print(json.dumps(found))
        return
    known = known_cells(given.known) if given.known else None
    rows = []
    for name in given.networks:
        rows.append(row_by_both(name, given.seconds, known))
        print(rows[-1], flush=True)
    print_table(rows, COLUMNS)
    print(write_csv("breadth", [row | provenance(SEED) for row in rows]))


if __name__ == "__main__":
    main()
