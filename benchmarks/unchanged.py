"""Whether a change of structure left the results as they were: hashes of small seeded results.

    python -m benchmarks.unchanged --write before.json
    python -m benchmarks.unchanged --against before.json

Searches of untrained networks on the embedded digits, an epoch of fine-tuning, prices, an exported
graph; nothing is measured, looked up or kept. On the same machine and libraries the same code
prints the same hashes; exit code 1, and the names, where one differs from the file's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

import amc
from amc.compress.verify import graph_of
from amc.cost.choices import choices_for, requests_for
from amc.cost.device import Device, Measurement, TableDevice, TableHeader
from amc.cost.load import load_device
from amc.cost.model import operator_prices
from amc.cost.prices import FORMULAS
from amc.cost.shipped import shipped_device
from amc.strategy import FLOAT, IDENTITY, Bits, Strategy
from amc.utils.files import fingerprint
from tests.conftest import randomise_norms

SHAPES = {"resnet20": (3, 16, 16), "lenet_5": (1, 32, 32), "mobilenet_v1": (3, 32, 32)}
RECOVERY = amc.RecoverySettings(images=96, repair_images=96, quick_images=48, error_images=64)
TRAINING = amc.TrainingSettings(epochs=1, distillation_weight=0.5, augment=("crop",))
PHONE, EDGE = "roofline_phone", "roofline_edge"
ROOFLINES: dict[str, Any] = {name: load_device(shipped_device(name)) for name in (PHONE, EDGE)}


def digits(shape: tuple[int, int, int], *, labelled: bool = True) -> amc.DataSet:
    """Some of the digits."""
    split: dict[str, Any] = {"calibration": 128, "search": 96}
    found = amc.build_data("digits", image_size=shape[1], channels=shape[0], **split)
    images, labels = found.train.images[:576], found.train.labels
    assert labels is not None
    return amc.DataSet.from_tensors(images, labels[:576] if labelled else None, **split)


def network_of(name: str) -> nn.Module:
    """An untrained network whose norms make a difference, its scores for digits some nats apart."""
    network = amc.build_network(name, num_classes=10, image_shape=SHAPES[name])
    data = digits(SHAPES[name])
    last = [
        module for module in randomise_norms(network).modules() if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        scores = network.eval()(data.test.normalised(data.mean, data.std))
        last[-1].weight *= 2 / (scores - scores.mean(0)).std()
    return network


def frozen_table(name: str) -> Device:
    """Prices of all that a search of a network asks for: a formula's, with a ripple."""
    graph, phone = graph_of(network_of(name), SHAPES[name]), ROOFLINES[PHONE]
    choices, fuses = choices_for(graph, [FLOAT, Bits(8, 8)], channel_step=4), ("relu",)
    rows = {}
    for number, asked in enumerate(requests_for(graph, choices, fuses=fuses)):
        channels = asked.in_channels, asked.out_channels
        ms = phone.price("latency_ms", asked.signature, *channels, asked.bits)
        rows[asked] = Measurement(ms * (1 + number % 7 / 50), 0.0, 9)
    return TableDevice(TableHeader("frozen", "none", 1, 1, 4, choices.bits, fuses=fuses), rows)


def searches() -> Iterator[tuple[str, amc.SearchResult]]:
    """What searches can differ in, once each; learning agents learn in the last evaluations."""

    def search(name: str, device: Any, budget: Any, agent: str = "ddpg", **more: Any) -> Any:
        options: dict[str, Any] = {"evaluations": 10, "search_images": 64, "final_candidates": 1}
        options |= {"seed": 3, "store": False, "bfloat16": False, "recovery": RECOVERY, **more}
        learns = {} if agent == "netadapt" else {"hidden": [32], "warmup": 5}
        data = digits(SHAPES[name], labelled=options.pop("labelled", True))
        options["agent"] = {"name": agent, **learns}
        return amc.search(network_of(name), data, device, budget, **options)

    blocks = amc.SearchSpace(drop_blocks=True)
    yield "frozen table", search("lenet_5", frozen_table("lenet_5"), 0.5)
    yield "macs", search("resnet20", None, {"metric": "macs", "fraction": 0.5})
    yield PHONE, search("resnet20", PHONE, 0.3)
    yield EDGE, search("resnet20", EDGE, 0.3)
    yield (
        "drop_blocks",
        search("resnet20", None, {"metric": "macs", "fraction": 0.4}, space=blocks, reward="haq"),
    )
    yield "bops", search("lenet_5", None, {"metric": "bops", "fraction": 0.02})
    yield (
        "size_bytes",
        search("lenet_5", None, {"metric": "size_bytes", "fraction": 0.1}, reward="mnasnet"),
    )
    yield "td3", search("lenet_5", EDGE, 0.3, "td3")
    yield "netadapt", search("resnet20", PHONE, 0.5, "netadapt", reward="accuracy")
    yield "without labels", search("lenet_5", PHONE, 0.25, labelled=False)


def prices(name: str) -> Iterator[str]:
    """Of every operator, whole and half in 8 bits, at full precision."""
    shape = SHAPES[name]
    graph = graph_of(amc.build_network(name, num_classes=10, image_shape=shape), shape)
    half = {group.name: 0.5 for group in graph.free_groups}
    for strategy in IDENTITY, Strategy(half, {layer.name: Bits(8, 8) for layer in graph.layers}):
        for metric in FORMULAS:
            yield repr(operator_prices(graph, strategy, metric, None))
        for device in ROOFLINES.values():
            yield repr(operator_prices(graph, strategy, "latency_ms", device))


def onnx_graph(found: amc.SearchResult) -> bytes:
    """What is written of a network, without what wrote it."""
    data = found.task.data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        amc.export_onnx(found.network, data.image_shape, path, images=amc.calibration_images(data))
        written: bytes = onnx.load(path).graph.SerializeToString(deterministic=True)
    return written


def _weights(network: nn.Module) -> list[str | Tensor]:
    return [part for item in network.state_dict().items() for part in item]


def results() -> Iterator[tuple[str, str]]:
    """Name and hash, one after the other."""
    for name in SHAPES:
        yield f"prices of {name}", fingerprint(*prices(name))
    for name, found in searches():
        yield f"strategy, {name}", fingerprint(found.strategy.to_json())
        rewards = [repr(trial.reward) for trial in found.trials]
        yield f"rewards and weights, {name}", fingerprint(*rewards, *_weights(found.network))
        if name == PHONE:
            yield "onnx graph", fingerprint(onnx_graph(found))
            data, original = found.task.data, found.task.network
            trained = amc.finetune(found.network, original, data, settings=TRAINING)
            losses = [repr(epoch.loss) for epoch in trained.history]
            yield "fine-tuning", fingerprint(*losses, *_weights(trained.network))


def main() -> None:
    """Print every hash; write or compare them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", type=Path, metavar="FILE", help="save the hashes as JSON")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with saved hashes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, str] = {}
    for name, digest in results():
        found[name] = digest
        print(digest, name, flush=True)
    if options.write:
        options.write.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.against:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        names = [name for name in {**before, **found} if before.get(name) != found.get(name)]
        print(f"differs: {'; '.join(names)}" if names else "nothing differs")
        sys.exit(bool(names))


if __name__ == "__main__":
    main()
