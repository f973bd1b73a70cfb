"""A small vision transformer on real images: searched, beside magnitude pruning and uniform.

    python -m benchmarks.vit --root cifar10 --checkpoint vit.safetensors --train --epochs 12
    python -m benchmarks.vit --root cifar10 --checkpoint vit.safetensors

Patches of 4 pixels of 32, dimension 128, six layers of four heads, written as one writes it. It is
trained on the images but every tenth, on which searches evaluate; a training that was killed goes
on from its last epoch. All results are of 0.6 of the predicted latency in float on ONNX Runtime,
and none is trained afterwards. Magnitude pruning takes the uniform strategy's counts, keeps the
channels of largest norm over all weights that have them, and repairs nothing.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import amc
from amc.compress.removal import keep_mask, remove_channels
from amc.data import DataSet, build_data
from amc.graph.plan import NetworkGraph
from amc.layers import layer_at
from amc.networks import load_checkpoint
from amc.problem.evaluate import Evaluator
from amc.problem.local import calibration_images, time_networks
from amc.runtimes import OF_FILES
from amc.strategy import Strategy
from amc.utils.files import write_tensors
from benchmarks.provenance import print_table, provenance, write_csv

SEARCH_EVERY = 10
BATCH, RATE, DECAY, SMOOTHING = 128, 1.5e-3, 0.05, 0.1
ADDED = 4  # pixels around an image, of which a crop leaves as many


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, dim = x.shape
        parts = self.qkv(x).reshape(images, tokens, 3, self.heads, dim // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        if self.training:  # the fused kernel takes twice as long backwards, for so few tokens
            mixed = (q @ k.transpose(-2, -1) * (dim // self.heads) ** -0.5).softmax(-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(images, tokens, dim))
        return out


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """Images (n, 3, size, size) to scores (n, num_classes)."""

    def __init__(
        self, num_classes: int, size: int, patch: int, dim: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.places = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.places, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.places
        scores: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return scores


def build(num_classes: int = 10) -> VisionTransformer:
    """The network without its weights: ``network=benchmarks.vit:build``."""
    return VisionTransformer(num_classes, size=32, patch=4, dim=128, depth=6, heads=4)


# -- training ------------------------------------------------------------------------------


def train(data: DataSet, path: Path, epochs: int) -> None:
    """Train on all images that are neither searched on nor tested with; weights go to a file.

    Every epoch's state is kept beside it until the end.
    """
    images, labels = _trained_on(data)
    torch.manual_seed(0)
    network = build(data.num_classes)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, (0.9, 0.99), weight_decay=DECAY)
    steps = math.ceil(len(images) / BATCH)
    state, first = path.with_suffix(".state.pt"), 0
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["epoch"] + 1
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (data.mean, data.std))
    judge = Evaluator(data.search, data.mean, data.std)
    for epoch in range(first, epochs):
        draw = torch.Generator().manual_seed(epoch)
        start, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images), generator=draw)
        for step, chosen in enumerate(torch.split(order, BATCH)):
            optimizer.param_groups[0]["lr"] = RATE * _pace(epoch * steps + step, epochs * steps)
            batch = (_augmented(images[chosen], draw).float() / 255 - mean) / std
            with torch.autocast("cpu", torch.bfloat16):
                scores = network(batch)
            loss = F.cross_entropy(scores.float(), labels[chosen], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            total += float(loss.detach())
        accuracy = judge(network.eval()).scores["accuracy"]
        network.train()
        took = time.perf_counter() - start
        said = f"loss {total / steps:.3f}, search accuracy {100 * accuracy:.2f} %, {took:.0f} s"
        print(f"epoch {epoch + 1} of {epochs}: {said}", flush=True)
        kept = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**kept, "epoch": epoch}, state)
        write_tensors(path, network.state_dict())


def _trained_on(data: DataSet) -> tuple[Tensor, Tensor]:
    """Images and labels: weights may know what statistics are taken of."""
    splits = data.train, data.calibration
    labels = [split.labels for split in splits if split.labels is not None]
    return torch.cat([split.images for split in splits]), torch.cat(labels)


def _pace(step: int, steps: int) -> float:
    """Of the learning rate: a twentieth of the steps up, then a cosine down to 0."""
    warm = steps / 20
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _augmented(images: Tensor, draw: torch.Generator) -> Tensor:
    """Flipped and shifted, each image on its own."""
    count, _, height, width = images.shape
    flips = torch.rand(count, generator=draw) < 0.5
    images = torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images)
    wide = F.pad(images, (ADDED,) * 4)
    tops, lefts = torch.randint(2 * ADDED + 1, (2, count), generator=draw)
    rows = (tops[:, None] + torch.arange(height)).view(-1, 1, height, 1)
    columns = (lefts[:, None] + torch.arange(width)).view(-1, 1, 1, width)
    which = torch.arange(count).view(-1, 1, 1, 1)
    return wide[which, torch.arange(images.shape[1]).view(1, -1, 1, 1), rows, columns]


# -- compression ---------------------------------------------------------------------------


def magnitude_pruned(graph: NetworkGraph, strategy: Strategy) -> nn.Module:
    """The network with a strategy's counts of the channels of largest norm, nothing repaired."""
    plan = graph.plan
    energy = torch.zeros(len(plan.unit_group), dtype=torch.float64)
    for path, units in plan.layers.items():
        squares = layer_at(plan.module, path).weight.detach().double().square()
        energy.index_add_(0, torch.from_numpy(units.outputs), squares.flatten(1).sum(1))
        columns = squares.transpose(0, 1).flatten(1).sum(1)
        if len(columns) == len(units.inputs):  # else in groups: their outputs say it
            energy.index_add_(0, torch.from_numpy(units.inputs), columns)
    counts, kept = graph.kept_counts(strategy), {}
    for group in graph.free_groups:
        members = np.flatnonzero(plan.unit_group == group.index)
        largest = energy[members].argsort(descending=True)[: counts[group.index]]
        kept[group.index] = largest.sort().values.numpy()
    return remove_channels(plan, keep_mask(graph, kept))


def measure(options: argparse.Namespace, data: DataSet) -> list[dict[str, object]]:
    """A row for the original, magnitude pruning, uniform, and the search."""
    network = build(data.num_classes)
    load_checkpoint(network, options.checkpoint)
    network.eval()
    found = {}
    for agent, evaluations in (("uniform", 2), ("ddpg", options.evaluations)):
        found[agent] = amc.search(
            network,
            data,
            "onnxruntime_cpu",
            amc.Budget("latency_ms", fraction=options.fraction),
            agent=agent,
            evaluations=evaluations,
            seed=options.seed,
            space=amc.SearchSpace(weight_bits=(32,), activation_bits=(32,)),
            final_candidates=options.candidates,
        )
        for note in found[agent].notes:
            print(f"{agent}: {note}", flush=True)
    uniform, best = found["uniform"], found["ddpg"]
    pruned = magnitude_pruned(uniform.task.graph, uniform.strategy)
    networks = {
        "original": network,
        "magnitude": pruned,
        "uniform": uniform.network,
        f"found in {options.evaluations}": best.network,
    }
    predicted = [
        best.comparison[0].predicted_ms,
        *[uniform.comparison[-1].predicted_ms] * 2,
        best.comparison[-1].predicted_ms,
    ]
    judge = Evaluator(data.test, data.mean, data.std)
    scores = [100 * judge(each.eval()).scores["accuracy"] for each in networks.values()]
    timings = time_networks(
        OF_FILES, list(networks.values()), data.image_shape, images=calibration_images(data)
    )
    return [
        {
            "network": name,
            "test accuracy %": f"{score:.2f}",
            "lost": f"{scores[0] - score:.2f}",
            "predicted ms": f"{ms:.3f}" if ms is not None else "",
            "measured ms": f"{timing.latency_ms:.3f}",
            "of the original": f"{timing.latency_ms / timings[0].latency_ms:.3f}",
        }
        for name, score, ms, timing in zip(networks, scores, predicted, timings, strict=True)
    ]


def main() -> None:
    """Train, or measure, print the table and write the CSV."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="train/<class>/*, test/<class>/*")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--train", action="store_true", help="write the checkpoint")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--fraction", type=float, default=0.6)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=3, help="repaired and ranked again")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = build_data("image_folder", root=options.root, search_every=SEARCH_EVERY)
    if options.train:
        train(data, options.checkpoint, options.epochs)
        return
    rows = measure(options, data)
    print_table(rows, list(rows[0]))
    told = {"evaluations": options.evaluations, "fraction": options.fraction}
    print(write_csv("vit", [row | told | provenance(options.seed) for row in rows]))


if __name__ == "__main__":
    main()
