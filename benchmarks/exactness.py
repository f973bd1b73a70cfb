"""Removed equals ignored: half of the channels of every free group, on eleven networks.

And without all residual blocks that can go, the network is the one to which they add nothing.

    python -m benchmarks.exactness

Batch normalisation statistics are randomised, so that a channel that is wrongly kept or lost shows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from amc.compress.removal import keep_mask
from amc.compress.verify import block_error, graph_of, removal_error
from amc.networks import build_network
from benchmarks.provenance import print_table, provenance, write_csv

SEED = 0
NETWORKS = {
    "resnet20": 32,
    "resnet18": 224,
    "densenet121": 224,
    "squeezenet1_1": 224,
    "mobilenet_v2": 224,
    "mobilenet_v3_small": 224,
    "shufflenet_v2_x1_0": 224,
    "mnasnet1_0": 224,
    "vgg11_bn": 224,
    "efficientnet_b0": 224,
    "mobilenet_v1": 224,
}  # name -> image size, pixels


def measure(name: str, size: int) -> dict[str, object]:
    """Trace a network, remove half of every group, compare."""
    shape = (3, size, size)
    network = build_network(name, num_classes=10, image_shape=shape, seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.2, generator=generator)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
            norm.weight.data.uniform_(0.5, 1.5, generator=generator)
            norm.bias.data.normal_(0, 0.2, generator=generator)
    graph = graph_of(network, shape)
    random = np.random.default_rng(SEED)
    kept = {
        group.index: np.sort(random.permutation(group.size)[: max(1, group.size // 2)])
        for group in graph.free_groups
    }
    images = torch.randn(2, *shape, generator=generator)
    return {
        "network": name,
        "image": size,
        "layers": len(graph.layers),
        "free": len(graph.free_groups),
        "frozen": len(graph.frozen_groups),
        "largest difference": f"{removal_error(graph, keep_mask(graph, kept), images):.0e}",
        "blocks": len(graph.plan.blocks),
        "without them": f"{block_error(graph, images):.0e}" if graph.plan.blocks else "",
    }


def main() -> None:
    """Measure all networks, print the table, write the CSV."""
    rows = [measure(name, size) for name, size in NETWORKS.items()]
    print_table(rows, list(rows[0]))
    print(write_csv("exactness", [row | provenance(SEED) for row in rows]))


if __name__ == "__main__":
    main()
