"""``amc export format=packed``: the network in as few bytes as there is information in it."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import nn

from amc.cli import recipe
from amc.compress.network import CompressedNetwork
from amc.compress.verify import graph_of
from amc.cost.model import operator_prices
from amc.data import DataSet
from amc.export import Packed, Parity, load_packed, pack, parity_of
from amc.export.packed.network import PARTS, PackedTensor
from amc.objectives import Automatic, Objective
from amc.problem.problem import matched
from amc.strategy import FLOAT_BYTES, IDENTITY
from amc.study.artifact import RunRecord
from amc.utils.files import write_text

PACKED_FILE, REPORT_FILE = "model.amcp", "packed.json"
FORMAT_VERSION = 1


def export_packed(
    record: RunRecord,
    folder: Path,
    original: nn.Module,
    compressed: CompressedNetwork,
    data: DataSet,
    asked: Objective | Automatic,
    coder: str,
) -> None:
    """Write the packed file, read it back, compare it with the network, and show what it costs."""
    graph = graph_of(original, data.image_shape)
    packed = pack(compressed, graph, str(record.network["name"]), coder=coder)
    path = folder / PACKED_FILE
    packed.write(path)
    start = time.perf_counter()
    read = load_packed(path, original)
    seconds = time.perf_counter() - start
    objective, data = matched(original, data, asked)
    images = data.search.normalised(data.mean, data.std)
    parity = parity_of(
        compressed.module,
        read.module,
        images,
        data.search.labels,
        objective,
        where=str(path),
        title="the packed file",
    )
    whole = FLOAT_BYTES * round(math.fsum(operator_prices(graph, IDENTITY, "params", None)))
    document = _document(packed, parity, whole, seconds)
    write_text(folder / REPORT_FILE, json.dumps(document, indent=2) + "\n")
    _show(packed, parity, objective, whole, seconds)
    recipe.console_for_tables().print(
        f"written to {folder.resolve()}", markup=False, highlight=False, soft_wrap=True
    )


def _document(packed: Packed, parity: Parity, whole: int, seconds: float) -> dict[str, Any]:
    found = asdict(parity)
    return {
        "format": "amc-export-packed",
        "version": FORMAT_VERSION,
        "model": PACKED_FILE,
        "size": {
            "file_bytes": len(packed.content),
            "original_float_bytes": whole,
            "part_bytes": dict(packed.part_bytes),
        },
        "tensors": {
            one.name: {
                "shape": list(one.sides),
                "symbols": one.symbols,
                "bits_per_number": one.bits,
                "part_bytes": dict(one.parts),
            }
            for one in packed.tensors
        },
        "parity": {
            "images": found["images"],
            "same": found["same"],
            "before_scores": found["torch_scores"],
            "packed_scores": found["onnx_scores"],
            "max_difference": found["max_difference"],
            "max_score": found["max_score"],
        },
        "read_seconds": seconds,
    }


def _show(packed: Packed, parity: Parity, objective: Objective, whole: int, seconds: float) -> None:
    console = recipe.console_for_tables()
    console.print(_account(packed))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    size = len(packed.content)
    table.add_row("file", f"{size:,} bytes", f"{whole / size:.1f} times smaller than in float32")
    table.add_row("read in", f"{seconds:.2f} s", "")
    table.add_row("same decision", f"{100 * parity.same:.2f} %", f"of {parity.images} images")
    for name, scores in (("before", parity.torch_scores), ("packed", parity.onnx_scores)):
        for score in objective.scores:
            if score.heading and score.name in scores:
                value = score.text(scores[score.name])
                table.add_row(f"{score.name}, {name}", value, "search split")
    table.add_row(
        "max difference", f"{parity.max_difference:.2g}", f"of scores up to {parity.max_score:.3g}"
    )
    console.print(table)


def _account(packed: Packed) -> Table:
    """What the bytes are spent on, layer by layer."""
    shown = [part for part in PARTS if part in packed.part_bytes and part != "header"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("layer")
    for heading in ("weights", "values", "bits/weight", *shown, "bytes"):
        table.add_column(heading, justify="right")
    for name, tensors in _by_module(packed.tensors):
        main = max(tensors, key=lambda one: one.weights)
        is_coded = main.symbols > 0
        table.add_row(
            name,
            f"{main.weights:,}" if is_coded else "",
            str(main.symbols) if is_coded else "",
            f"{main.bits:.2f}" if is_coded else "",
            *(_count(sum(one.parts.get(part, 0) for one in tensors)) for part in shown),
            _count(sum(one.size for one in tensors)),
        )
    table.add_row(
        "header and table", "", "", "", *[""] * len(shown), _count(packed.part_bytes["header"])
    )
    sums = (_count(packed.part_bytes[part]) for part in shown)
    table.add_row("all", "", "", "", *sums, _count(len(packed.content)))
    return table


def _by_module(tensors: Sequence[PackedTensor]) -> Iterator[tuple[str, list[PackedTensor]]]:
    """Tensors by the module that has them."""
    found: dict[str, list[PackedTensor]] = defaultdict(list)
    for one in tensors:
        found[one.name.rpartition(".")[0] or one.name].append(one)
    yield from found.items()


def _count(number: int) -> str:
    return f"{number:,}" if number else ""
