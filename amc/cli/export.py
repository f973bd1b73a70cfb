"""``amc export``: write the compressed network of a run as a file, check it and time it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from amc.cli import recipe
from amc.cli.check import check_options
from amc.cli.packed import export_packed
from amc.compress.verify import graph_of
from amc.cost.model import operator_prices
from amc.errors import ConfigError
from amc.export import (
    ExportReport,
    Parity,
    ProgramReport,
    check_opset,
    check_parity,
    export_executorch,
    export_onnx,
    precision_words,
)
from amc.networks import admit
from amc.objectives import Objective, build_objective
from amc.problem.local import calibration_images, time_networks
from amc.problem.problem import matched
from amc.runtimes import DEFAULT_DEVICE, OF_FILES, PROVIDER, ExecuTorch, integer_layers
from amc.strategy import FLOAT_BITS
from amc.study import artifact
from amc.utils.files import write_text
from amc.utils.measure import Share, Timing
from amc.utils.runs import FINETUNE_FOLDER, RUN_FILE, check_network, has_network

MODEL_FILE, REPORT_FILE, FOLDER = "model.onnx", "export.json", "export"
PROGRAM_FILE = "model.pte"
EXECUTORCH = "executorch"
FORMATS = ("onnx", "packed", EXECUTORCH)
FORMAT_VERSION = 1


@dataclass(frozen=True)
class _Program:
    """What an ExecuTorch program is, and how long it takes."""

    report: ProgramReport
    original: Timing
    compressed: Timing


@dataclass(frozen=True)
class _Findings:
    """All that is shown of an export."""

    report: ExportReport
    parity: Parity
    original: Timing
    compressed: Timing
    integer_layers: int
    size_estimate: int
    objective: Objective
    program: _Program | None

    @property
    def share(self) -> Share:
        """The compressed network's time compared with the original's."""
        return self.compressed.share_of(self.original)


def run(config: DictConfig) -> recipe.Ended:
    """Rebuild the run's network, write it, compare it, time it, show it."""
    source = Path(config.run).expanduser()
    is_finetuned = source.name == FINETUNE_FOLDER and not (source / RUN_FILE).exists()
    record = artifact.RunRecord.read(source.parent if is_finetuned else source)
    check_network(source)
    check_options({"network": record.network, "data": record.data})
    check_opset(config.opset)
    if config.format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, got {config.format!r}.")
    if config.format == EXECUTORCH:
        ExecuTorch().machine()  # before anything is written
    asked = build_objective(**recipe.recorded_objective(record.settings, config))
    recipe.recorded_decisions(record.settings, config)
    original, data = recipe.prepared(
        recipe.recorded_network(record.network, config), recipe.recorded_data(record.data, config)
    )
    original = admit(original, data.image_shape)
    compressed = artifact.rebuild_compressed(source, original, data.image_shape)
    if config.format == "packed":
        export_packed(record, source / FOLDER, original, compressed, data, asked, config.coder)
        return recipe.Ended()
    path = source / FOLDER / MODEL_FILE
    calibration = calibration_images(data) if config.integer_additions else None
    images = data.search.normalised(data.mean, data.std)
    report = export_onnx(
        compressed.module,
        data.image_shape,
        path,
        images=calibration,
        compare_on=images,
        opset=config.opset,
    )
    objective, data = matched(original, data, asked)
    parity = check_parity(path, compressed.module, images, data.search.labels, objective)
    plain, smaller = time_networks(
        OF_FILES,
        [original, compressed.module],
        data.image_shape,
        batch=config.batch,
        threads=config.threads,
        images=calibration,
        opset=config.opset,
        energy=True,
    )
    program = None
    if config.format == EXECUTORCH:
        networks = original, compressed.module
        program = _program(networks, data.image_shape, path, calibration, images, config)
    graph = graph_of(original, data.image_shape)
    estimate = sum(operator_prices(graph, compressed.strategy, "size_bytes", None))
    found = _Findings(
        report, parity, plain, smaller, integer_layers(path), round(estimate), objective, program
    )
    document = _document(found, config.threads, config.batch)
    write_text(path.with_name(REPORT_FILE), json.dumps(document, indent=2) + "\n")
    _show(found, config.threads, config.batch)
    trained = source / FINETUNE_FOLDER
    if has_network(trained):
        again = recipe.code_again(record)
        print(f"this is the network before fine-tuning; after it: amc export run={trained}{again}")
    return recipe.Ended()


def _program(
    networks: tuple[nn.Module, nn.Module],
    image_shape: tuple[int, int, int],
    onnx_file: Path,
    calibration: Tensor | None,
    images: Tensor,
    config: DictConfig,
) -> _Program:
    """Write the smaller of two networks as a program beside its ONNX file, and time both."""
    report = export_executorch(
        networks[1],
        image_shape,
        onnx_file.with_name(PROGRAM_FILE),
        images=calibration,
        compare_on=images,
        opset=config.opset,
    )
    how = {"batch": config.batch, "threads": config.threads, "opset": config.opset}
    times = time_networks(ExecuTorch(), networks, image_shape, images=calibration, **how)
    return _Program(report, *times)


def _document(found: _Findings, threads: int, batch: int) -> dict[str, Any]:
    report = found.report
    layers = {
        path: {
            "weight_bits": bits.weight,
            "activation_bits": bits.activation,
            "weight": precision_words(bits.weight, "int8"),
            "activation": precision_words(bits.activation, "uint8"),
        }
        for path, bits in report.precisions.items()
    }
    return {
        "format": "amc-export",
        "version": FORMAT_VERSION,
        "model": report.path.name,
        "opset": report.opset,
        **report.versions,
        "layers": layers,
        "integer_layers": found.integer_layers,
        "integer_additions": report.integer_additions,
        "integer_concatenations": report.integer_concatenations,
        "extra_grids": report.extra_grids,
        "parity": asdict(found.parity),
        "size": {
            "file_bytes": report.file_bytes,
            "part_bytes": dict(report.part_bytes),
            "estimated_bytes": found.size_estimate,
        },
        "latency": {
            "runtime": f"{OF_FILES.name} {PROVIDER}",
            "threads": threads,
            "batch": batch,
            "original": _latency(found.original),
            "compressed": _latency(found.compressed),
            "share": asdict(found.share),
        },
        **_program_document(found.program),
    }


def _program_document(program: _Program | None) -> dict[str, Any]:
    if program is None:
        return {}
    latency = {
        "original": _latency(program.original),
        "compressed": _latency(program.compressed),
        "share": asdict(program.compressed.share_of(program.original)),
    }
    report = program.report
    written = {"model": report.path.name, "runtime": report.runtime, "latency": latency}
    return {"executorch": written | {"file_bytes": report.file_bytes}}


def _latency(timing: Timing) -> dict[str, float]:
    found = {"latency_ms": timing.latency_ms, "spread_ms": timing.spread_ms}
    return found if timing.energy_mj is None else found | {"energy_mj": timing.energy_mj}


def _show(found: _Findings, threads: int, batch: int) -> None:
    console = recipe.console_for_tables()
    parity, report = found.parity, found.report
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("same decision", f"{100 * parity.same:.2f} %", f"of {parity.images} images")
    for name, scores in (("PyTorch", parity.torch_scores), ("ONNX", parity.onnx_scores)):
        for score in found.objective.scores:
            if score.heading and score.name in scores:
                value = score.text(scores[score.name])
                table.add_row(f"{score.name}, {name}", value, "search split")
    table.add_row(
        "max difference", f"{parity.max_difference:.2g}", f"of scores up to {parity.max_score:.3g}"
    )
    estimate = f"size_bytes, packed: {found.size_estimate / 1e3:,.1f} kB"
    table.add_row("file", f"{report.file_bytes / 1e3:,.1f} kB", estimate)
    for part, size in report.part_bytes.items():
        table.add_row(f"  {part}", f"{size / 1e3:,.1f} kB", f"{size / report.file_bytes:.0%}")
    where = f"{OF_FILES.title}, CPU, threads={threads}, batch={batch}"
    for name, timing in (("original", found.original), ("compressed", found.compressed)):
        spread = f"{timing.latency_ms:.3f} ± {timing.spread_ms:.3f} ms"
        table.add_row(f"latency, {name}", spread, where if name == "original" else _gain(found))
    for name, timing in (("original", found.original), ("compressed", found.compressed)):
        if timing.energy_mj is not None:
            said = "the whole processor's, by RAPL" if name == "original" else ""
            table.add_row(f"energy, {name}", f"{timing.energy_mj:.3f} mJ", said)
    if (program := found.program) is not None:
        held = f"{program.report.file_bytes / 1e3:,.1f} kB"
        table.add_row(program.report.path.name, held, program.report.runtime)
        share = f"{program.compressed.share_of(program.original)} of the original"
        for name, timing, said in (
            ("original", program.original, where.replace(OF_FILES.title, ExecuTorch.title)),
            ("compressed", program.compressed, share),
        ):
            spread = f"{timing.latency_ms:.3f} ± {timing.spread_ms:.3f} ms"
            table.add_row(f"latency, {name}", spread, said)
    console.print(table)
    for note in _notes(found):
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    folder = report.path.parent.resolve()
    console.print(f"written to {folder}", markup=False, highlight=False, soft_wrap=True)


def _gain(found: _Findings) -> str:
    return f"{found.share} of the original"


def _rounding_notes(report: ExportReport) -> list[str]:
    additions, concatenations = report.integer_additions, report.integer_concatenations
    if not (additions or concatenations or report.extra_grids):
        return []
    return [
        f"Between layers, {additions} additions and {concatenations} concatenations are computed "
        f"in integers, and {report.extra_grids} tensors are rounded to calibrated 8-bit grids. The "
        "PyTorch network does not round them: the file is close to it, not equal. "
        "integer_additions=false rounds nothing but what the strategy says, and is slower."
    ]


def _notes(found: _Findings) -> list[str]:
    """What the numbers alone do not say."""
    precisions = found.report.precisions.values()
    quantized = [bits for bits in precisions if not bits.is_float]
    both = sum(FLOAT_BITS not in bits for bits in quantized)
    notes = []
    if quantized:
        notes.append(
            f"{len(quantized)} of {len(precisions)} layers are quantized, {OF_FILES.title} "
            f"computes {found.integer_layers} of them in integers. The rest is dequantized and "
            "runs in float: what goes into something that takes float values, and what has only "
            f"weights or only activations quantized ({len(quantized) - both})."
        )
    share = found.share
    if not share.is_steady:
        unknown = " Whether it is faster cannot be told from it." if share.leaves_open(1) else ""
        notes.append(share.caveat + unknown)
    if share.value >= 1 and not share.leaves_open(1):
        notes.append(
            f"It is no faster than the original in {OF_FILES.title} on this machine. Search with "
            f"device={DEFAULT_DEVICE} to budget that time"
            + (
                ", or for channels only: env.weight_bits=[32] env.activation_bits=[32]."
                if quantized
                else "."
            )
        )
    notes += _rounding_notes(found.report) if quantized else []
    few = Counter(
        words
        for bits in quantized
        for width, words in (
            (bits.weight, f"{bits.weight}-bit weights"),
            (bits.activation, f"{bits.activation}-bit activations"),
        )
        if width < 8
    )
    if few:
        notes.append(
            f"Fewer than 8 bits are stored as 8 ({', '.join(sorted(few))}): their grids are exact, "
            "size and speed are those of 8 bits."
        )
    return notes
