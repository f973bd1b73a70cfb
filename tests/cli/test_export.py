from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc import api
from amc.cli import export as recipe
from amc.compress.network import CompressedNetwork
from amc.compress.quantization import quantize_layer
from amc.compress.removal import keep_mask, remove_channels
from amc.compress.verify import graph_of
from amc.export import ProgramReport, read_precisions
from amc.networks import build_network
from amc.problem.local import time_networks
from amc.runtimes import OF_FILES, ExecuTorch, OnnxNetwork, Runtime
from amc.strategy import FLOAT, Bits, Strategy
from amc.study import artifact
from amc.study.artifact import read_strategy, write_compressed, write_strategy
from amc.utils.measure import Timing
from tests.cli import nets
from tests.cli.command import NETWORK, amc

Output = pytest.CaptureFixture[str]
SHAPE = (3, 32, 32)
LAYERS = ("features.0", "features.3", "linear")


@pytest.fixture
def run(searched: Path, tmp_path: Path) -> Path:
    """A finished search to export."""
    return Path(shutil.copytree(searched, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "time_networks", partial(time_networks, rounds=1))


def export(run: Path, *arguments: str) -> int:
    return amc("export", f"run={run}", NETWORK, *arguments)


def _report(run: Path) -> dict[str, Any]:
    document = json.loads((run / "export" / "export.json").read_text())
    assert isinstance(document, dict)
    return document


def _quantize(run: Path, bits: dict[str, Bits], zero_point: int = 40) -> None:
    """Make the run's network one with all channels and these bits."""
    network = build_network("tests.cli.nets:tiny", num_classes=10, image_shape=SHAPE)
    graph = graph_of(network, SHAPE)
    module = remove_channels(graph.plan, keep_mask(graph, {}))
    for path, pair in bits.items():
        quantized = quantize_layer(module.get_submodule(path), pair, (0.05, zero_point))
        module.set_submodule(path, quantized)
    strategy = Strategy({}, bits)
    write_strategy(run, strategy)
    kept = {group.name: tuple(range(group.size)) for group in graph.free_groups}
    write_compressed(run, CompressedNetwork(module, strategy, kept))


def test_export_writes_the_network_of_the_run_and_says_how_near_it_is(
    run: Path, capsys: Output
) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert export(run) == 0
    shown = capsys.readouterr().out
    for said in ("same decision", "accuracy, ONNX", "max difference", "size_bytes, packed"):
        assert said in shown
    assert f"written to {run / 'export'}" in shown
    assert all((run / name).read_bytes() == content for name, content in before.items())
    assert {path.name for path in (run / "export").iterdir()} == {"model.onnx", "export.json"}
    document = _report(run)
    assert document["parity"]["same"] == 1
    torch_scores, onnx_scores = (document["parity"][f"{of}_scores"] for of in ("torch", "onnx"))
    assert torch_scores["accuracy"] == onnx_scores["accuracy"]
    assert document["latency"]["original"]["latency_ms"] > 0
    assert document["size"]["file_bytes"] == (run / "export" / "model.onnx").stat().st_size
    assert sum(document["size"]["part_bytes"].values()) == document["size"]["file_bytes"]


def test_layers_in_the_file_have_the_bits_of_the_strategy(run: Path, capsys: Output) -> None:
    _quantize(run, {"features.0": Bits(8, 8), "features.3": Bits(4, 8)})
    assert export(run) == 0
    strategy = read_strategy(run)
    precisions = read_precisions(run / "export" / "model.onnx")
    assert precisions == {layer: strategy.bits.get(layer, FLOAT) for layer in LAYERS}
    layers = _report(run)["layers"]
    assert layers["features.3"]["weight"] == "4-bit grid stored as int8"
    assert layers["features.3"]["activation"] == "8-bit grid stored as uint8"
    assert layers["linear"] == {
        "weight_bits": 32,
        "activation_bits": 32,
        "weight": "float32",
        "activation": "float32",
    }
    weights = [16 * 3 * 9, 24 * 16 * 9 // 2, 10 * 24 * 4]  # at 8, 4 and 32 bits
    floats = 2 * (16 + 24) + 10  # a bias per output, and a scale where it is quantized
    assert _report(run)["size"]["estimated_bytes"] == sum(weights) + 4 * floats
    shown = capsys.readouterr().out
    assert "2 of 3 layers are quantized" in shown
    assert "Fewer than 8 bits are stored as 8 (4-bit weights)" in shown


def test_finetuned_network_is_exported_into_its_own_folder(run: Path, capsys: Output) -> None:
    assert amc("finetune", f"run={run}", NETWORK, "epochs=1") == 0
    assert export(run / "finetune") == 0
    tuned = api.load_compressed(run / "finetune", nets.tiny(), SHAPE)
    written = OnnxNetwork(run / "finetune" / "export" / "model.onnx")
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    # Layers in integers round: the finetuned weights differ from those before by far more.
    torch.testing.assert_close(written(images), tuned(images).detach(), rtol=0, atol=1e-4)
    capsys.readouterr()
    assert export(run) == 0
    shown = capsys.readouterr().out
    assert f"before fine-tuning; after it: amc export run={run / 'finetune'} {NETWORK}" in shown


@pytest.mark.parametrize(("milliseconds", "is_said"), [(0.5, False), (1.5, True)])
def test_network_that_is_no_faster_is_said_to_be(
    milliseconds: float, is_said: bool, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    timings = [Timing(1.0, 0.1), Timing(milliseconds, 0.1)]
    monkeypatch.setattr(recipe, "time_networks", lambda *_, **__: timings)
    assert export(run) == 0
    assert ("It is no faster than the original" in capsys.readouterr().out) == is_said


@pytest.mark.parametrize(
    ("rounds", "is_open", "is_slower"),
    [((0.9, 0.9, 1.2, 1.2, 1.2), True, False), ((1.1, 1.1, 1.4, 1.4, 1.4), False, True)],
)
def test_timing_that_is_too_unsteady_for_a_statement_says_so(
    rounds: tuple[float, ...],
    is_open: bool,
    is_slower: bool,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    timings = [Timing(1.0, 0.1, (1.0,) * 5), Timing(rounds[0], 0.1, rounds)]
    monkeypatch.setattr(recipe, "time_networks", lambda *_, **__: timings)
    assert export(run) == 0
    shown = capsys.readouterr().out
    assert f"than: {rounds[0]:.2f} to {rounds[-1]:.2f} of the original's" in shown
    assert ("Whether it is faster cannot be told from it." in shown) == is_open
    assert ("It is no faster than the original" in shown) == is_slower
    share = {"value": rounds[0], "low": rounds[0], "high": rounds[-1]}
    assert _report(run)["latency"]["share"] == pytest.approx(share)


def test_threads_batch_and_opset_are_options(run: Path) -> None:
    assert export(run, "threads=2", "batch=4", "opset=13") == 0
    document = _report(run)
    assert (document["opset"], document["onnx"] != "") == (13, True)
    assert (document["latency"]["threads"], document["latency"]["batch"]) == (2, 4)


def test_what_lies_between_8_bit_layers_is_in_integers_too_and_said(
    run: Path, capsys: Output
) -> None:
    _quantize(run, dict.fromkeys(LAYERS, Bits(8, 8)), zero_point=0)
    assert export(run) == 0
    document = _report(run)
    # What the second convolution gives is averaged for the linear layer: one grid more.
    assert (document["integer_layers"], document["extra_grids"]) == (3, 1)
    assert (document["integer_additions"], document["integer_concatenations"]) == (0, 0)
    assert "the file is close to it, not equal" in capsys.readouterr().out
    assert read_precisions(run / "export" / "model.onnx") == dict.fromkeys(LAYERS, Bits(8, 8))


def test_integer_additions_can_be_refused(run: Path, capsys: Output) -> None:
    _quantize(run, dict.fromkeys(LAYERS, Bits(8, 8)), zero_point=0)
    assert export(run, "integer_additions=false") == 0
    document = _report(run)
    # The first convolution goes straight into the second, nothing else into a quantized layer.
    assert (document["integer_layers"], document["extra_grids"]) == (1, 0)
    assert "close to it" not in capsys.readouterr().out


def test_both_networks_are_timed_in_turn_in_the_way_of_a_search(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def timed(
        runtime: Runtime, networks: list[torch.nn.Module], shape: object, **how: Any
    ) -> list[Timing]:
        assert runtime is OF_FILES
        asked.append({"networks": len(networks), "shape": shape, **how})
        return [Timing(1.0, 0.1), Timing(0.5, 0.1)]

    monkeypatch.setattr(recipe, "time_networks", timed)
    assert export(run, "threads=2", "batch=3") == 0
    images = asked[0].pop("images")
    assert images.shape[1:] == SHAPE  # what lies between 8-bit layers is in integers, as exported
    how = {"batch": 3, "threads": 2, "opset": 17, "energy": True}
    assert asked == [{"networks": 2, "shape": SHAPE, **how}]


def test_energy_of_both_networks_is_said_where_the_machine_shows_it(
    run: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [Timing(1.0, 0.1, energy_mj=20.0), Timing(0.5, 0.1, energy_mj=7.6254)]
    monkeypatch.setattr(recipe, "time_networks", lambda *_, **__: shown)
    assert export(run) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines() if "energy" in line]
    assert said[0] == [
        "energy,",
        "original",
        "20.000",
        "mJ",
        "the",
        "whole",
        "processor's,",
        "by",
        "RAPL",
    ]
    assert said[1] == ["energy,", "compressed", "7.625", "mJ"]
    latency = _report(run)["latency"]
    assert latency["original"] == {"latency_ms": 1.0, "spread_ms": 0.1, "energy_mj": 20.0}
    assert latency["compressed"]["energy_mj"] == 7.6254


def test_machine_that_shows_no_energy_has_no_row_of_it(
    run: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    timings = [Timing(1.0, 0.1), Timing(0.5, 0.1)]
    monkeypatch.setattr(recipe, "time_networks", lambda *_, **__: timings)
    assert export(run) == 0
    assert "energy" not in capsys.readouterr().out
    assert _report(run)["latency"]["compressed"] == {"latency_ms": 0.5, "spread_ms": 0.1}


def test_file_that_does_not_agree_is_not_written(
    run: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(run) == 0
    written = (run / "export" / "model.onnx").read_bytes()
    rebuild = artifact.rebuild_compressed

    class Counting(nn.Module):
        """Gives other scores to more images than a network is written with."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.inner(x)
            return scores + 7 if len(x) > 2 else scores

    def counting(*arguments: Any) -> CompressedNetwork:
        network = rebuild(*arguments)
        network.module.set_submodule("linear", Counting(network.module.get_submodule("linear")))
        return network

    monkeypatch.setattr(artifact, "rebuild_compressed", counting)
    capsys.readouterr()
    assert export(run) == 2
    said = capsys.readouterr().err
    assert f"{run / 'export' / 'model.onnx'} was not written: ONNX Runtime" in said
    assert "Scores differ by up to 7, in the root mean square by 7, of which rounding" in said
    assert "Likely cause: Python code that goes by the contents or the number of its" in said
    assert (run / "export" / "model.onnx").read_bytes() == written
    assert len(list((run / "export").iterdir())) == 2


# -- mistakes ------------------------------------------------------------------------------


def test_missing_run_folder_is_named_and_not_made(capsys: Output) -> None:
    assert amc("export", "run=no/run") == 2
    assert "error: Run folder not found: no/run." in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("name", ["strategy.json", "compressed.json", "compressed.safetensors"])
def test_run_without_a_compressed_network_is_refused(name: str, run: Path, capsys: Output) -> None:
    (run / name).unlink()
    assert export(run) == 2
    assert f"holds no compressed network ({name} is missing)" in capsys.readouterr().err
    assert not (run / "export").exists()


def test_function_that_only_a_file_names_is_not_called(run: Path, capsys: Output) -> None:
    document = json.loads((run / "run.json").read_text())
    document["network"] = {"name": "tests.cli.nets:traced"}
    (run / "run.json").write_text(json.dumps(document))
    nets.CALLS.clear()
    assert amc("export", f"run={run}") == 2
    assert nets.CALLS == []
    assert "amc calls no code that only a file names" in capsys.readouterr().err


def test_folder_that_cannot_be_written_is_said(run: Path, capsys: Output) -> None:
    (run / "export").write_text("taken")
    assert export(run) == 1
    assert f"Could not write {run / 'export' / 'model.onnx'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("opset=99", "opset must be 13 to 20, got 99"),
        ("opset=new", "opset must be a whole number from 1, got 'new'"),
        ("integer_additions=some", "integer_additions must be true or false, got 'some'"),
        ("format=tflite", "format must be one of onnx, packed, executorch, got 'tflite'"),
        ("batch=0", "batch must be a whole number from 1, got 0"),
    ],
)
def test_a_mistaken_option_is_said_in_one_message(
    argument: str, said: str, run: Path, capsys: Output
) -> None:
    assert export(run, argument) == 2
    assert said in capsys.readouterr().err


def test_program_is_written_beside_the_onnx_file_and_timed(
    run: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Runtime] = []

    def timed(runtime: Runtime, networks: Any, *_: object, **__: object) -> list[Timing]:
        asked.append(runtime)
        return [Timing(2.0, 0.1, (2.0, 2.0)), Timing(1.0, 0.1, (1.0, 1.0))]

    def written(network: nn.Module, shape: object, path: Path, **how: Any) -> ProgramReport:
        path.write_bytes(b"program")
        return ProgramReport(path, 7, "ExecuTorch 9")

    monkeypatch.setattr(recipe, "time_networks", timed)
    monkeypatch.setattr(recipe, "export_executorch", written)
    monkeypatch.setattr(ExecuTorch, "machine", lambda self: "here")
    assert export(run, "format=executorch") == 0
    shown = capsys.readouterr().out
    assert "model.pte" in shown
    assert "ExecuTorch with XNNPACK, CPU, threads=1, batch=1" in shown
    assert asked == [OF_FILES, ExecuTorch()]
    document = _report(run)["executorch"]
    assert document["model"] == "model.pte"
    assert document["latency"]["share"]["value"] == 0.5
