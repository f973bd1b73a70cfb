"""Whether it pays to search for the runtime that a network will run on.

    python -m benchmarks.runtimes_pay --network resnet20 --checkpoint file.safetensors \\
        --root cifar10 --search-every 10
    python -m benchmarks.runtimes_pay ... --measure-only --anew     # again, on a quiet machine

For each runtime a search for every loss of accuracy that is allowed (--keep) or every latency
budget (--fraction); each network that is found is then run in all runtimes, beside the original,
in turn. Searches, accuracies and times are kept in --folder: what was killed goes on, what ended
is not repeated. Prints who was searched for against where it was measured, and how much faster than
the others' networks, at equal accuracy, the one is that was searched for the runtime.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from amc.api import load_compressed, search
from amc.cost.profile import LocalSpec
from amc.cost.shipped import as_device
from amc.data import DataSet
from amc.export import convert
from amc.problem.local import calibration_images
from amc.runtimes import ONNX, Runtime
from amc.strategy import FLOAT
from amc.study.artifact import read_strategy
from amc.utils.files import fingerprint, write_text
from amc.utils.measure import ROUNDS, Timing, measure_latency
from amc.utils.runs import has_network
from amc.utils.turns import measuring_turn
from benchmarks.provenance import RESULTS, print_table, provenance, write_csv
from benchmarks.subject import add_options, subject

DEVICES = ("onnxruntime_cpu", "openvino_cpu", "executorch_xnnpack")
TEST_BATCH = 100
PLACES = 5  # accuracies at which two curves are compared
Points = Sequence[tuple[float, float]]
"""Milliseconds and accuracy of networks."""


@dataclass(frozen=True)
class Asked:
    """One search: the device that it is for, and its budget.

    Attributes:
        bound: ``keep`` or ``fraction``, with its value.
    """

    device: str
    bound: tuple[str, float]

    @property
    def name(self) -> str:
        """Of its folder, and in tables."""
        return f"{self.device}-{self.bound[0]}-{self.bound[1]:g}"


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_options(parser)
    parser.add_argument("--devices", nargs="+", default=list(DEVICES))
    parser.add_argument("--keep", type=float, nargs="*", default=[0.5, 1.0, 2.0], help="points")
    parser.add_argument("--fraction", type=float, nargs="*", default=[], help="instead of --keep")
    parser.add_argument("--agent", default="ddpg")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=3, help="repaired and ranked again")
    parser.add_argument("--rounds", type=int, default=3 * ROUNDS, help="of timing in turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="default: outputs/runtimes_pay/<network>")
    parser.add_argument("--measure-only", action="store_true", help="search nothing")
    parser.add_argument("--anew", action="store_true", help="time again what was timed before")
    options = parser.parse_args()
    options.folder = options.folder or Path("outputs", "runtimes_pay", options.network)
    return options


def searches(options: argparse.Namespace) -> list[Asked]:
    """All that are to be searched for."""
    bounds = [("fraction", value) for value in options.fraction]
    bounds = bounds or [("keep", value) for value in options.keep]
    return [Asked(device, bound) for bound in bounds for device in options.devices]


def local(device: str) -> LocalSpec:
    """A device that is this machine."""
    loaded = as_device(device)
    if not isinstance(loaded, LocalSpec):
        raise SystemExit(f"--devices: {device} is not this machine")
    return loaded


def search_all(
    network: nn.Module, data: DataSet, asked: Sequence[Asked], options: argparse.Namespace
) -> None:
    """Search what was not searched yet; a search that was killed goes on."""
    for one in asked:
        folder = options.folder / one.name
        if has_network(folder):
            continue
        kind, value = one.bound
        result = search(
            network,
            data,
            one.device,
            {"metric": "latency_ms", kind: value},
            agent=options.agent,
            evaluations=options.evaluations,
            seed=options.seed,
            final_candidates=options.candidates,
            folder=folder,
            resume=folder.exists(),
        )
        print(one.name, result, sep="\n", flush=True)


def compiled(
    runtime: Runtime, networks: Sequence[nn.Module], data: DataSet, threads: int
) -> Iterator[nn.Module]:
    """Networks as they are shipped to a runtime."""
    images = calibration_images(data)
    for network in networks:
        given: Any = network
        if runtime.compiles == ONNX:
            given = convert(network, data.image_shape, images=images).model
        yield runtime.compile(given, threads)


def accuracy_of(network: nn.Module, data: DataSet) -> float:
    """On the whole test split, in the runtime that the network is compiled for."""
    split, right = data.test, 0
    assert split.labels is not None
    for start in range(0, len(split), TEST_BATCH):
        part = torch.arange(start, min(start + TEST_BATCH, len(split)))
        images = split.take(part).normalised(data.mean, data.std)
        missing = TEST_BATCH - len(images)  # a program is for one shape
        padded = torch.cat([images, images[:1].expand(missing, -1, -1, -1)]) if missing else images
        found = network(padded)[: len(images)].argmax(1)
        right += int((found == split.labels[part]).sum())
    return right / len(split)


def measured(
    device: str, networks: Mapping[str, nn.Module], data: DataSet, options: argparse.Namespace
) -> dict[str, Any]:
    """Accuracy of every network in a runtime, and its times in turn with the others; kept."""
    spec, path = local(device), options.folder / f"measured-on-{device}.json"
    weights = {n: fingerprint(*network.state_dict().values()) for n, network in networks.items()}
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    same = {n for n, weight in weights.items() if kept.get(n, {}).get("weights") == weight}
    if same == networks.keys() == kept.keys() and not options.anew:
        return kept
    runs = list(compiled(spec.runs_on, list(networks.values()), data, spec.threads))
    with measuring_turn(f"networks on {device}"):
        timings = measure_latency(
            runs, data.image_shape, threads=spec.threads, batch=spec.batch, rounds=options.rounds
        )
    found: dict[str, Any] = {}
    for name, run, timing in zip(networks, runs, timings, strict=True):
        accuracy = kept[name]["accuracy"] if name in same else accuracy_of(run, data)
        found[name] = {"weights": weights[name], "accuracy": accuracy, "ms": timing.rounds_ms}
    write_text(path, json.dumps(found, indent=1) + "\n")
    return found


def timing_of(rounds_ms: Sequence[float]) -> Timing:
    """A network's time, from its times of every round."""
    spread = float(np.subtract(*np.percentile(rounds_ms, [75, 25]))) / 2
    return Timing(min(rounds_ms), spread, tuple(rounds_ms))


def rows_of(
    options: argparse.Namespace, asked: Sequence[Asked], cells: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, object]]:
    """One row for each network in each runtime."""
    rows: list[dict[str, object]] = []
    for device, column in cells.items():
        original = timing_of(column["original"]["ms"])
        for one in [None, *asked]:
            name = "original" if one is None else one.name
            timing = timing_of(column[name]["ms"])
            share = timing.share_of(original)
            bits = {} if one is None else read_strategy(options.folder / name).bits
            rows.append(
                {
                    "network": options.network,
                    "searched for": "original" if one is None else one.device,
                    "budget": "" if one is None else f"{one.bound[0]} {one.bound[1]:g}",
                    "measured on": device,
                    "test accuracy %": round(100 * column[name]["accuracy"], 2),
                    "measured ms": round(timing.latency_ms, 5),
                    "spread ms": round(timing.spread_ms, 5),
                    "of the original": round(share.value, 4),
                    "low": round(share.low, 4),
                    "high": round(share.high, 4),
                    "layers in 8 bits": sum(pair != FLOAT for pair in bits.values()),
                }
            )
    return rows


def choices(points: Points) -> list[tuple[float, float]]:
    """The networks that are a choice, quickest first: each is better than all that are quicker."""
    found: list[tuple[float, float]] = []
    for ms, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not found or accuracy > found[-1][1]:
            found.append((ms, accuracy))
    return found


def time_at(points: Points, accuracy: float) -> float:
    """Milliseconds at which the `choices` reach an accuracy; NaN beyond their ends.

    Between two of them the time's logarithm is interpolated: halfway from 1 ms to 4 ms are 2 ms.
    """
    times, reached = zip(*choices(points), strict=True)
    if not reached[0] <= accuracy <= reached[-1]:
        return math.nan
    return math.exp(float(np.interp(accuracy, reached, np.log(times))))


def advantage(own: Points, other: Points) -> float:
    """By how much longer the other networks take at equal accuracy; NaN where none are equal.

    The mean of the times' ratios at `PLACES` accuracies that both reach. Two single networks are
    compared as they are.
    """
    if len(own) == len(other) == 1:
        return other[0][0] / own[0][0] - 1
    ends = [choices(points) for points in (own, other)]
    low, high = max(curve[0][1] for curve in ends), min(curve[-1][1] for curve in ends)
    if low > high:
        return math.nan
    places = np.linspace(low, high, PLACES).tolist()
    return math.expm1(fmean(math.log(time_at(other, at) / time_at(own, at)) for at in places))


def verdicts(rows: Sequence[Mapping[str, Any]], devices: Sequence[str]) -> list[dict[str, object]]:
    """For each runtime: what its own networks gain on those of the others, at equal accuracy."""
    found: list[dict[str, object]] = []
    for device in devices:
        curves = {
            of: [
                (float(row["measured ms"]), float(row["test accuracy %"]))
                for row in rows
                if row["measured on"] == device and row["searched for"] == of
            ]
            for of in devices
        }
        others = [of for of in devices if of != device]
        gains = {of: advantage(curves[device], curves[of]) for of in others}
        row: dict[str, object] = {"measured on": device}
        row |= {f"{of} takes longer by": _shown(gain) for of, gain in gains.items()}
        known = [gain for gain in gains.values() if not math.isnan(gain)]
        least = min(known, default=math.nan)
        is_fastest = "no" if least <= 0 else "yes" if len(known) == len(others) else "unknown"
        row |= {"its own is the fastest": is_fastest, "least": _shown(least)}
        found.append(row)
    return found


def _shown(gain: float) -> str:
    return "no equal accuracy" if math.isnan(gain) else f"{gain:+.1%}"


def crossed(rows: Sequence[Mapping[str, Any]], devices: Sequence[str]) -> list[dict[str, object]]:
    """Who was searched for against where it was measured."""
    found: dict[tuple[str, str], dict[str, object]] = {}
    for row in rows:
        if row["searched for"] == "original":
            continue
        place = str(row["budget"]), str(row["searched for"])
        cell = f"{row['of the original']:.3f}x, {row['test accuracy %']:.2f} %"
        at: dict[str, object] = {"budget": place[0], "searched for": place[1]}
        found.setdefault(place, at)[f"on {row['measured on']}"] = cell
    return list(found.values())


def draw(rows: Sequence[Mapping[str, Any]], devices: Sequence[str], title: str, path: Path) -> None:
    """Accuracy against time, one panel for each runtime, a curve for whom was searched for."""
    figure = Figure(figsize=(4.2 * len(devices), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(devices), sharey=True))
    for axes, device in zip(panels, devices, strict=True):
        for of, style in zip(devices, ("o-", "s--", "^:"), strict=False):
            points = sorted(
                (row["of the original"], row["test accuracy %"])
                for row in rows
                if row["measured on"] == device and row["searched for"] == of
            )
            width = 2.2 if of == device else 1.0
            times, accuracies = zip(*points, strict=True)
            axes.plot(times, accuracies, style, linewidth=width, label=f"searched for {of}")
        axes.set(title=f"measured on {device}", xlabel="of the original's time")
        axes.grid(color="#e0e0e0", linewidth=0.6)
    panels[0].set_ylabel("test accuracy, %")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Search, measure, print, write the CSV and the picture."""
    options = arguments()
    for device in options.devices:
        local(device).runs_on.machine()  # a package that is missing is said at once
    network, data = subject(options)
    asked = searches(options)
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.measure_only:
        search_all(network, data, asked, options)
    if missing := [one.name for one in asked if not has_network(options.folder / one.name)]:
        raise SystemExit(f"{options.folder} has no networks of {', '.join(missing)}: search first")
    networks = {"original": network.eval()}
    for one in asked:
        folder = options.folder / one.name
        networks[one.name] = load_compressed(folder, network, data.image_shape)
    cells = {device: measured(device, networks, data, options) for device in options.devices}
    rows = rows_of(options, asked, cells)
    table, gained = crossed(rows, options.devices), verdicts(rows, options.devices)
    print_table(table, list(table[0]))
    print_table(gained, list(dict.fromkeys(key for row in gained for key in row)))
    name = f"runtimes_pay-{options.network}"
    print(write_csv(name, [row | provenance(options.seed) for row in rows]))
    draw(rows, options.devices, options.network, RESULTS / f"{name}.png")
    print(RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
