"""MNIST's LeNets in as few bytes as they are as good in, beside what was published of them.

    python -m benchmarks.mnist_packed --root mnist --network lenet_300_100
    python -m benchmarks.mnist_packed --root mnist --network lenet_5

``mnist`` is an image folder, train/<digit>/* and test/<digit>/*. The reference is trained from
nothing; zeros and codebooks of its layers are chosen by a search under the bytes of the packed
file, the same for all layers, or as Deep Compression's were by hand (Han et al. 2016, tables 4 and
5) until the file is as small; all are trained in the same way, written, read back and tested.
Every twelfth training image is for the search and for the choice of an epoch. What was done is kept
in a folder: the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import amc
from amc.compress.codebook import Codebook
from amc.compress.network import CompressedNetwork, decide
from amc.compress.removal import keep_mask, remove_channels
from amc.compress.sparsity import Sparsity
from amc.compress.verify import graph_of
from amc.data import DataSet, Split
from amc.export.packed.network import pack
from amc.networks import build_network, load_checkpoint
from amc.problem.evaluate import Evaluator
from amc.recovery.training import TrainingSettings, train
from amc.strategy import Strategy
from amc.utils.files import write_tensors, write_text
from benchmarks.provenance import RESULTS, print_table, provenance, write_csv

FLOAT_BYTES = 4  # of the weights that rates are times smaller than
MEAN, STD = 0.1307, 0.3081
BITS = 3.0  # of codebooks that no search chooses
HALVINGS = 6  # of the interval in which a file of the right size is looked for
SPACE = amc.SearchSpace(
    weight_bits=(32,),
    activation_bits=(32,),
    decisions=(
        "bits",  # and no channels: with so few weights, training leaves out whole features itself
        Sparsity(fractions=(0.5, 0.7, 0.85, 0.92, 0.95, 0.97, 0.98, 0.99)),
        Codebook(bits=(3, 4)),
    ),
)
REFERENCE = TrainingSettings(learning_rate=0.02, weight_decay=5e-4)
FINETUNE = TrainingSettings(
    learning_rate=0.02,
    weight_decay=1e-4,
    batch_size=128,
    distillation_weight=0.7,
    temperature=1.0,
    gradual=0.5,
    straight_through=0.8,
)
COLUMNS = ["network", "way", "reference %", "error %", "bytes", "times smaller", "zeros", "bits"]


@dataclass(frozen=True)
class Subject:
    """A network, and what is asked of it.

    Attributes:
        bytes: That the search may take.
        epochs: Of the reference, and of the smaller networks.
        by_hand: What stays of each layer in Deep Compression.
        published: (way, reference %, error %, times smaller).
    """

    bytes: int
    epochs: tuple[int, int]
    by_hand: dict[str, float]
    published: tuple[tuple[str, float, float, float], ...]


SUBJECTS = {
    "lenet_300_100": Subject(
        bytes=13_000,
        epochs=(20, 12),
        by_hand={"fc1": 0.08, "fc2": 0.09, "fc3": 0.26},
        published=(
            ("Deep Compression (Han et al. 2016)", 1.64, 1.58, 40),
            ("soft weight-sharing (Ullrich et al. 2017)", 1.89, 1.94, 64),
        ),
    ),
    "lenet_5": Subject(
        bytes=9_000,
        epochs=(12, 5),
        by_hand={"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19},
        published=(
            ("Deep Compression (Han et al. 2016)", 0.80, 0.74, 39),
            ("soft weight-sharing (Ullrich et al. 2017)", 0.88, 0.97, 162),
        ),
    ),
}


class Run:
    """The stages of one network, each kept in a folder."""

    def __init__(self, name: str, data: DataSet, folder: Path, options: argparse.Namespace) -> None:
        self.name, self.data, self.folder, self._options = name, data, folder, options
        self.subject = SUBJECTS[name]
        self.bytes = options.bytes or self.subject.bytes
        self.reference = self._reference()

    def _reference(self) -> nn.Module:
        """The network, trained from nothing; its last epoch."""
        torch.manual_seed(self._options.seed)
        shape = self.data.image_shape
        network = build_network(self.name, num_classes=10, image_shape=shape)
        path = self.folder / "reference.safetensors"
        if path.is_file():
            load_checkpoint(network, path)
            return network.eval()
        epochs = self._options.reference_epochs or self.subject.epochs[0]
        train(
            network,
            self.data.train.images,
            self.data.train.labels,
            mean=self.data.mean,
            std=self.data.std,
            settings=_with(REFERENCE, epochs, self._options.seed),
            checkpoint_folder=self.folder / "reference",
        )
        write_tensors(path, network.state_dict())
        return network.eval()

    def error(self, network: nn.Module, split: Split) -> float:
        """Per cent of a split's images that a network takes for another digit."""
        found = Evaluator(split, self.data.mean, self.data.std)(network)
        return 100 * (1 - found.scores["accuracy"])

    def strategy(self, way: str) -> Strategy:
        """What a way decides."""
        return WAYS[way](self)

    def row(self, way: str) -> dict[str, object]:
        """A way's network, trained, written and read back."""
        strategy = self.strategy(way)
        folder = self.folder / f"{way}-{self.bytes}"
        shape = self.data.image_shape
        epochs = self._options.epochs or self.subject.epochs[1]
        trained = amc.finetune(
            compressed(self.reference, strategy, shape).module,
            self.reference,
            self.data,
            settings=_with(FINETUNE, epochs, self._options.seed),
            folder=folder,
        )
        path = folder / "model.amcp"
        amc.save_packed(trained.network, self.reference, shape, path)
        back = amc.load_packed(path, self.reference)
        size = path.stat().st_size
        parameters = sum(parameter.numel() for parameter in self.reference.parameters())
        decided = {name: dict(found) for name, found in strategy.others.items()}
        return {
            "network": self.name,
            "way": way,
            "reference %": f"{self.error(self.reference, self.data.test):.2f}",
            "error %": f"{self.error(back, self.data.test):.2f}",
            "search %": f"{self.error(back, self.data.search):.2f}",
            "bytes": size,
            "times smaller": f"{FLOAT_BYTES * parameters / size:.1f}",
            "zeros": " ".join(_numbers(decided.get("sparsity", {}))),
            "bits": " ".join(_numbers(decided.get("codebook", {}))),
            "budget": self.bytes,
            "epochs": epochs,
        }

    def search(self) -> Strategy:
        """What a search chose within the bytes."""
        folder = self.folder / f"search-{self.bytes}"
        kept = folder / "agent.json"
        if not kept.is_file():
            found = amc.search(
                self.reference,
                self.data,
                None,
                amc.Budget("packed_bytes", absolute=self.bytes),
                evaluations=self._options.evaluations,
                space=SPACE,
                seed=self._options.seed,
                final_candidates=2,
                folder=folder / "run",
                resume=True,
                search_images=2000,
            )
            print(found, flush=True)
            write_text(kept, found.strategy.to_json())
        return Strategy.from_json(kept.read_text(), str(kept))

    def by_hand(self) -> Strategy:
        """As Deep Compression thins, but so many times over that the file is no larger."""
        return self._filling(self.subject.by_hand)

    def uniform(self) -> Strategy:
        """The same share of zeros in all layers."""
        return self._filling(dict.fromkeys(self.subject.by_hand, 0.1))

    def _filling(self, stays: Mapping[str, float]) -> Strategy:
        """Shares to the power that gives a file of the bytes, the smallest weights at zero."""
        shape = self.data.image_shape
        graph = graph_of(self.reference, shape)
        low, high = 1.0, 3.0
        for _ in range(HALVINGS):
            power = (low + high) / 2
            made = compressed(self.reference, _thinned(stays, power), shape)
            size = len(pack(made, graph, self.name).content)
            low, high = (power, high) if size > self.bytes else (low, power)
        return _thinned(stays, high)


WAYS: dict[str, Callable[[Run], Strategy]] = {
    "agent": Run.search,
    "uniform": Run.uniform,
    "by_hand": Run.by_hand,
}


def compressed(
    network: nn.Module, strategy: Strategy, shape: tuple[int, int, int]
) -> CompressedNetwork:
    """A network under a strategy that keeps all channels, as training begins with it."""
    graph = graph_of(network, shape)
    module = remove_channels(graph.plan, keep_mask(graph, {}))
    decide(module, strategy)
    kept = {group.name: tuple(range(group.size)) for group in graph.free_groups}
    return CompressedNetwork(module, strategy, kept)


def mnist(root: Path, kept: Path) -> DataSet:
    """The images of a folder; decoded once, and kept in a file."""
    if not kept.is_file():
        found = {}
        for part in ("train", "test"):
            digits = ImageFolder(str(root / part), lambda image: pil_to_tensor(image.convert("L")))
            found[part] = torch.stack([image for image, _ in digits])
            found[f"{part} labels"] = torch.tensor(digits.targets)
        write_tensors(kept, found)
    of = load_file(kept)
    return DataSet.from_tensors(
        of["train"],
        of["train labels"],
        test_images=of["test"],
        test_labels=of["test labels"],
        name="mnist",
        mean=(MEAN,),
        std=(STD,),
        search_every=12,
    )


def published(name: str) -> list[dict[str, object]]:
    """Rows of what others reached with a network."""
    return [
        {
            "network": name,
            "way": way,
            "reference %": f"{reference:.2f}",
            "error %": f"{error:.2f}",
            "times smaller": f"{times:g}",
        }
        for way, reference, error, times in SUBJECTS[name].published
    ]


def _thinned(stays: Mapping[str, float], power: float) -> Strategy:
    return Strategy(
        {},
        {},
        {
            "sparsity": {layer: (round(1 - share**power, 4),) for layer, share in stays.items()},
            "codebook": dict.fromkeys(stays, (BITS,)),
        },
    )


def _with(settings: TrainingSettings, epochs: int, seed: int) -> TrainingSettings:
    return TrainingSettings(**{**vars(settings), "epochs": epochs, "seed": seed})


def _numbers(values: dict[str, tuple[float, ...]]) -> list[str]:
    return [f"{number:g}" for value in values.values() for number in value]


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, required=True, help="image folder")
    parser.add_argument("--network", choices=SUBJECTS, default="lenet_300_100")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--bytes", type=int, help="of the packed file; default: the network's")
    parser.add_argument("--evaluations", type=int, default=24, help="of the search")
    parser.add_argument("--reference-epochs", type=int)
    parser.add_argument("--epochs", type=int, help="of the smaller networks")
    parser.add_argument("--folder", type=Path, default=RESULTS / "mnist_packed")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Go through the stages, print the table, write the CSV."""
    options = arguments()
    data = mnist(options.root, options.folder / "images.safetensors")
    run = Run(options.network, data, options.folder / options.network, options)
    rows = []
    for way in options.ways:
        rows.append(run.row(way) | provenance(options.seed))
        print(rows[-1], flush=True)
    print_table([*published(options.network), *rows], COLUMNS)
    print(write_csv(f"mnist_packed-{options.network}", [*published(options.network), *rows]))


if __name__ == "__main__":
    main()
