"""One network's strategies on several devices, in one picture.

    python -m benchmarks.devices picture.png outputs/search/<run> outputs/search/<run> ...

The runs must be of the same network; nothing is trained or evaluated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amc.cli.recipe import space_of
from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel
from amc.cost.profile import LocalSpec
from amc.cost.shipped import as_device
from amc.networks import build_network
from amc.report.plots import LayerRow, plot_strategies_side_by_side
from amc.study.artifact import RunRecord, read_strategy
from amc.study.recorder import layer_rows


def rows_of(folder: Path, image_shape: tuple[int, int, int], classes: int) -> list[LayerRow]:
    """Every layer of a run's strategy, before and after."""
    record = RunRecord.read(folder)
    strategy = read_strategy(folder)
    network = build_network(
        str(record.network["name"]), num_classes=classes, image_shape=image_shape
    )
    graph = graph_of(network, image_shape)
    device = as_device(dict(record.device))
    if isinstance(device, LocalSpec) or device is None:
        raise SystemExit("give runs on devices that need no measuring (roofline or table)")
    budget = Budget.of(dict(record.budget))
    choices = space_of(record.settings["env"]).choices(graph, budget.metric, device)
    costs = CostModel(graph, choices, budget, device)
    return layer_rows(costs, strategy)


def main() -> None:
    """Read the runs, draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("picture", type=Path, help="file to write")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of searches of one network")
    options = parser.parse_args()
    panels = []
    for folder in options.runs:
        record = RunRecord.read(folder)
        title = f"{record.device['name']}: {Budget.of(dict(record.budget))}"
        panels.append((title, rows_of(folder, (3, 32, 32), 10)))
    plot_strategies_side_by_side(panels, options.picture)
    print(options.picture)


if __name__ == "__main__":
    main()
