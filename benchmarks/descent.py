"""What changing single weights after error feedback is worth, over the layers of a network.

    python -m benchmarks.descent --network resnet20 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10

Of every layer's weight, on a grid of so many bits, the squared error of its output on calibration
images, by second moments: rounded to the nearest, with error feedback, and then changed one by one
with steps refitted in turn (`amc.recovery.rounding.round_with_feedback`). Nothing is repaired.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from amc.compress.quantization import quantize_weight, weight_scale
from amc.compress.verify import graph_of
from amc.layers import layer_at
from amc.recovery.descent import errors_of, system_of
from amc.recovery.importance import absorbs_shift
from amc.recovery.moments import gather_statistics
from amc.recovery.rounding import TURNS, round_with_feedback
from benchmarks.provenance import print_table, provenance, write_csv
from benchmarks.subject import add_options, subject

Row = dict[str, object]


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--images", type=int, default=1024, help="of the calibration images")
    return parser.parse_args()


def errors(weight: Tensor, gram: Tensor, bits: int) -> tuple[float, float, float]:
    """Of a layer's output: rounded to the nearest, with error feedback, and changed after it.

    Args:
        weight: (outputs, ...).
        gram: Second moments (or covariance) of the inputs, (groups, columns, columns).
    """
    scale, system = weight_scale(weight, bits), system_of(gram, "the inputs of a layer")
    rows = weight.reshape(len(gram), -1, gram.shape[1]).double()

    def error(found: Tensor) -> float:
        return float(errors_of(found.reshape(rows.shape).double(), rows, system).sum())

    by_feedback, changed = (
        round_with_feedback(weight, gram, scale, bits, turns=turns)[0] for turns in (0, TURNS)
    )
    return error(quantize_weight(weight, scale, bits)), error(by_feedback), error(changed)


def main() -> None:
    """Measure, print the table, write the CSV."""
    options = arguments()
    network, data = subject(options)
    images = data.calibration.normalised(data.mean, data.std)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    graph = graph_of(network, data.image_shape)
    moments = gather_statistics(graph, images[order[: options.images]]).moments
    rows: list[Row] = []
    for bits in options.bits:
        left = []
        for path, known in moments.items():
            if known.places > 1:
                continue  # of depthwise layers
            weight = layer_at(graph.plan.module, path).weight.detach()
            nearest, fed_back, changed = errors(
                weight, known.system(absorbs_shift(graph, path)), bits
            )
            left.append((fed_back / nearest, changed / fed_back))
        of_nearest, of_feedback = torch.tensor(left, dtype=torch.float64).T
        row: Row = {
            "network": options.network,
            "bits": bits,
            "layers": len(left),
            "feedback / nearest": f"{float(of_nearest.median()):.3f}",
            "changed / feedback": f"{float(of_feedback.median()):.3f}",
            "lowest": f"{float(of_feedback.min()):.3f}",
            "highest": f"{float(of_feedback.max()):.3f}",
        }
        rows.append(row | provenance(options.data_seed))
        print(row, flush=True)
    print_table(rows, [key for key in rows[0] if key not in provenance(0)])
    print(write_csv(f"descent-{options.network}", rows))


if __name__ == "__main__":
    main()
