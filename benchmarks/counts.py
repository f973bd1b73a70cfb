"""Counted means counted: amc's multiply-adds and parameters beside PyTorch's own count.

    python -m benchmarks.counts

For every network of the table in docs/networks.md and all of torchvision's classification models
(the two largest with --all), with random weights: multiply-adds beside half of what
`torch.utils.flop_counter` counts, parameters beside ``parameters()``. Batch normalisation is
counted as it runs, folded into the layer before it, so its parameters are fewer: `folded` is
``parameters()`` of the network with it folded by PyTorch. Parameters that the forward never reads
(auxiliary classifiers) are named, not counted.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torchvision
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torchvision.models import list_models

from amc.compress.verify import graph_of
from amc.cost.account import count_macs
from amc.cost.prices import operator_prices
from amc.graph.plan import NetworkGraph
from amc.networks import build_network
from amc.strategy import IDENTITY
from benchmarks.provenance import print_table, provenance, write_csv

SEED = 0
CLASSES = 1000  # of torchvision's networks
_OF_TABLE = (
    *("resnet18", "densenet121", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small"),
    *("shufflenet_v2_x1_0", "mnasnet1_0", "vgg11_bn", "efficientnet_b0"),
)
_SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_h_14": 70}
_LARGE = ("vit_h_14", "regnet_y_128gf")  # 2.5 GB of weights, and copies of them: --all
NETWORKS = {
    **dict.fromkeys(("resnet20", "resnet56", "mobilenet_v1", "lenet_5", "lenet_300_100"), 32),
    **dict.fromkeys(_OF_TABLE, 224),
    **{
        name: _SIZES.get(name, 64)
        for name in list_models(torchvision.models)
        if name not in _OF_TABLE
    },
}  # name -> image size, pixels: ratios do not depend on it


def folded_parameters(network: nn.Module, graph: NetworkGraph) -> int:
    """``parameters()`` with the normalisations folded that the graph says are."""
    network = copy.deepcopy(network)
    for norm_path, layer_path in graph.plan.folds.items():
        layer: Any = network.get_submodule(layer_path)
        norm: Any = network.get_submodule(norm_path)
        fuse: Any = fuse_conv_bn_weights if isinstance(layer, nn.Conv2d) else fuse_linear_bn_weights
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)
        network.set_submodule(norm_path, nn.Identity())
    return sum(parameter.numel() for parameter in network.parameters())


def measure(name: str, size: int) -> dict[str, object]:
    """Count a network both ways."""
    channels = 1 if name.startswith("lenet") else 3
    shape = (channels, size, size)
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit") else {}
    classes = CLASSES if size > 32 else 10
    network = build_network(name, num_classes=classes, image_shape=shape, seed=SEED, **options)
    network.eval()
    graph = graph_of(network, shape)
    macs = sum(operator_prices(graph, IDENTITY, "macs", None))
    params = sum(operator_prices(graph, IDENTITY, "params", None))
    expected = count_macs(network, shape)[""]
    unused = sum(graph.unused.values())
    own = sum(operator.signature.own_macs for operator in graph.operators)
    stored = sum(parameter.numel() for parameter in network.parameters())
    return {
        "network": name,
        "image": size,
        "macs": int(macs),
        "PyTorch's": expected,
        "macs ratio": f"{macs / expected:.4f}",
        "counted whole": f"{own / expected:.3f}",
        "params": int(params),
        "parameters()": stored - unused,
        "params ratio": f"{params / (stored - unused):.4f}",
        "folded ratio": f"{params / (folded_parameters(network, graph) - unused):.4f}",
        "never read": ", ".join(f"{path} ({count})" for path, count in graph.unused.items()),
    }


def main() -> None:
    """Count the networks, print the table, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--all", action="store_true", help=f"{', '.join(_LARGE)} too")
    given = parser.parse_args()
    names = given.networks or [name for name in NETWORKS if given.all or name not in _LARGE]
    rows = []
    for name in names:
        rows.append(measure(name, NETWORKS[name]))
        print(rows[-1], flush=True)
    print_table(rows, list(rows[0]))
    print(write_csv("counts", [row | provenance(SEED) for row in rows]))


if __name__ == "__main__":
    main()
