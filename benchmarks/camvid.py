"""A U-Net on CamVid: searched for half the latency, beside uniform and magnitude pruning.

    python -m benchmarks.camvid --root camvid --network networks/unet.py:UNet \\
        --checkpoint unet.safetensors

The folder holds train, val and test, with images and masks (240x180, one byte a pixel, 11: of no
class); the network takes rows 2 to 177 and is called without arguments. Strategies are searched on
val's images, weights refitted to train's, and mean IoU is of test's. Nothing is trained. The budget
is of the predicted latency on ONNX Runtime, one thread, batch 1, with float and 8 bits to choose
from; all networks are then timed in turn. Magnitude pruning has the counts of the uniform strategy
in float, keeps the channels of largest norm over all weights that have them, and repairs nothing.

Beside the CSV it writes a picture: images, their masks, what the original and the found network
make of them, and where the two differ.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

import amc
from amc.data import DataSet, build_data
from amc.networks import load_checkpoint
from amc.objectives import Segmentation
from amc.problem.evaluate import Evaluator
from amc.problem.local import calibration_images, time_networks
from amc.problem.task import CompressionTask
from amc.runtimes import OF_FILES
from amc.strategy import Strategy
from benchmarks.provenance import RESULTS, print_table, provenance, write_csv
from benchmarks.vit import magnitude_pruned
from envs.uniform import uniform_strategies

IMAGE_SIZE = (176, 240)
NO_CLASS = 11
# Sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, cyclist; of no class.
COLOURS = np.array(
    [
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0),
        (192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192), (0, 0, 0),
    ],
    dtype=np.uint8,
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A network and what it was predicted to take."""

    network: nn.Module
    predicted_ms: float | None


def camvid(root: Path) -> DataSet:
    """CamVid as the network takes it."""
    return build_data("mask_folder", root=root, image_size=IMAGE_SIZE, ignored=NO_CLASS)


def network_in(named: str, checkpoint: Path) -> nn.Module:
    """The network of ``file.py:name``, called without arguments, with a checkpoint's weights."""
    path, _, name = named.rpartition(":")
    spec = importlib.util.spec_from_file_location("camvid_network", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"--network must be file.py:name, got {named!r}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    build: Callable[[], nn.Module] = getattr(module, name)
    network = build()
    load_checkpoint(network, checkpoint)
    return network.eval()


def rows_of(network: nn.Module, result: amc.SearchResult) -> dict[str, Row]:
    """The networks that are compared, by name."""
    task = result.task
    candidates = uniform_strategies(task.costs)

    def reward(strategy: Strategy) -> float:
        return task.evaluate(strategy).scores["agreement"]

    uniform = max(candidates, key=reward)
    rows = {"original": Row(network, task.original.costs.get("latency_ms"))}
    in_float = [strategy for strategy in candidates if strategy.is_float]
    if in_float:
        even = max(in_float, key=reward)
        ms = task.predicted_ms(even)
        rows["magnitude, float"] = Row(magnitude_pruned(task.graph, even), ms)
        rows["uniform, float"] = Row(task.finish(even).module, ms)
    if not uniform.is_float:
        rows["uniform"] = Row(task.finish(uniform).module, task.predicted_ms(uniform))
    rows["found"] = Row(result.network, task.predicted_ms(result.strategy))
    return rows


def measured(rows: Mapping[str, Row], task: CompressionTask) -> list[dict[str, object]]:
    """A table's rows: scores on the test split, and milliseconds measured in turn."""
    data, networks = task.data, [row.network for row in rows.values()]
    judge = Evaluator(data.test, data.mean, data.std, objective=task.objective)
    scores = [judge(network.eval()).scores for network in networks]
    timings = time_networks(
        OF_FILES, networks, data.image_shape, images=calibration_images(data), rounds=5
    )
    first = scores[0]["mean_iou"]
    return [
        {
            "network": name,
            "test mean IoU %": f"{100 * found['mean_iou']:.2f}",
            "lost": f"{100 * (first - found['mean_iou']):.2f}",
            "pixels %": f"{100 * found['pixel_accuracy']:.2f}",
            "predicted ms": "" if row.predicted_ms is None else f"{row.predicted_ms:.2f}",
            "measured ms": f"{timing.latency_ms:.2f}",
            "±": f"{timing.spread_ms:.2f}",
            "of the original": f"{timing.latency_ms / timings[0].latency_ms:.3f}",
        }
        for (name, row), found, timing in zip(rows.items(), scores, timings, strict=True)
    ]


# -- the picture ---------------------------------------------------------------------------


def picture(
    path: Path, data: DataSet, objective: Segmentation, networks: Sequence[nn.Module], count: int
) -> None:
    """Test images, evenly spread, in rows: image, mask, before, after, and where these differ."""
    split = data.test
    assert split.labels is not None
    at = torch.linspace(0, len(split) - 1, count).round().long()
    shown = split.take(at)
    assert shown.labels is not None
    images = shown.normalised(data.mean, data.std)
    with torch.inference_mode():
        before, after = (objective.decisions(network(images)) for network in networks)
    unlabelled = shown.labels == objective.ignored
    columns = {
        "image": shown.images.permute(0, 2, 3, 1).numpy(),
        "mask": coloured(shown.labels),
        "before": coloured(before),
        "after": coloured(after),
        "differs (grey: of no class)": differences(before, after, unlabelled),
    }
    height, width = IMAGE_SIZE
    size = (2.4 * len(columns), 2.5 * count * height / width + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, len(columns), squeeze=False)
    for column, (title, drawn) in enumerate(columns.items()):
        axes[0, column].set_title(title)
        for row in range(count):
            axes[row, column].imshow(drawn[row], interpolation="nearest")
            axes[row, column].set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def coloured(classes: Tensor) -> npt.NDArray[np.uint8]:
    """Of classes (n, H, W) their colours, (n, H, W, 3)."""
    colours: npt.NDArray[np.uint8] = COLOURS[classes.long().clamp(max=NO_CLASS).numpy()]
    return colours


def differences(before: Tensor, after: Tensor, unlabelled: Tensor) -> npt.NDArray[np.uint8]:
    """White where two networks agree, red where not; darker where no class is known."""
    drawn = np.full((*before.shape, 3), 255, np.uint8)
    drawn[unlabelled.numpy()] = 200
    drawn[(before != after).numpy()] = (220, 0, 0)
    return drawn


def main() -> None:
    """Search, measure, print the table, write the CSV and the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="holds train, val and test")
    parser.add_argument("--network", required=True, help="file.py:name")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--fraction", type=float, default=0.5, help="of the predicted latency")
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--candidates", type=int, default=2, help="repaired and ranked again")
    parser.add_argument("--polish", type=int, default=0, help="passes by gradient, without labels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=4, help="test images that are drawn")
    options = parser.parse_args()
    data = camvid(options.root)
    network = network_in(options.network, options.checkpoint)
    result = amc.search(
        network,
        data,
        "onnxruntime_cpu",
        amc.Budget("latency_ms", fraction=options.fraction),
        objective="segmentation",
        evaluations=options.evaluations,
        seed=options.seed,
        final_candidates=options.candidates,
        recovery=amc.RecoverySettings(polish=options.polish),
    )
    for note in result.notes:
        print(note, flush=True)
    rows = rows_of(network, result)
    table = measured(rows, result.task)
    print_table(table, list(table[0]))
    told = {
        "evaluations": options.evaluations,
        "fraction": options.fraction,
        "polish": options.polish,
    }
    print(write_csv("camvid", [row | told | provenance(options.seed) for row in table]))
    path = RESULTS / "camvid.png"
    picture(path, data, Segmentation(), [network, result.network], options.pictures)
    print(path)


if __name__ == "__main__":
    main()
