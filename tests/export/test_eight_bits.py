"""Everything in 8 bits, beside ONNX Runtime's own static quantization of the same file."""

import pytest

from amc.compress.verify import graph_of
from amc.export import export_onnx
from amc.problem.candidate import Compressor
from amc.runtimes import OnnxNetwork, integer_layers
from amc.strategy import Bits, Strategy
from benchmarks.eight_bits import REPAIRS, quantize_with_onnxruntime
from benchmarks.real_network import exit_without, spread
from tests.recovery.test_no_harm import (
    SHAPE,
    InvertedResidual,
    Residual,
    built,
    divergence,
    images,
)


@pytest.mark.parametrize("build", [InvertedResidual, Residual])
def test_eight_bits_are_no_worse_than_onnxruntimes_own(build, tmp_path):
    network, calibration, unseen = built(build), images(48, 1), images(256, 2)
    graph = graph_of(network, SHAPE)
    source, theirs, ours = (tmp_path / f"{name}.onnx" for name in ("float", "theirs", "ours"))
    export_onnx(network, SHAPE, source)
    quantize_with_onnxruntime(source, theirs, calibration, "MinMax")
    compressor = Compressor(graph, calibration)
    strategy = Strategy({}, {layer.name: Bits(8, 8) for layer in graph.layers})
    lost = {}
    for name in ("amc, as rounded", "amc, full repair"):
        compressor.settings, is_full = REPAIRS[name]
        found = compressor.repair(strategy) if is_full else compressor.apply(strategy)
        export_onnx(found.module, SHAPE, ours, images=calibration)
        lost[name] = divergence(OnnxNetwork(ours), network, unseen)
    limit = divergence(OnnxNetwork(theirs), network, unseen)
    assert lost["amc, as rounded"] <= limit
    assert lost["amc, full repair"] <= 0.7 * limit
    assert integer_layers(ours) == len(graph.layers)


def test_benchmark_without_photographs_says_what_it_needs(tmp_path):
    expected = "needs photographs in .*nowhere and their labels in .*CSV with the columns file"
    with pytest.raises(SystemExit, match=expected):
        exit_without(tmp_path / "nowhere", tmp_path / "labels.csv")


def test_benchmark_calibrates_with_rows_from_all_over_the_file():
    rows = [{"file": str(place)} for place in range(10)]
    assert [row["file"] for row in spread(rows, 4)] == ["0", "2", "5", "7"]
    assert spread(rows, 20) == rows
