"""Where prices come from, as a run says it."""

from __future__ import annotations

import dataclasses

from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.origin import machine_here, origin_note
from amc.cost.shipped import as_device
from amc.graph.types import Signature
from amc.runtimes import OnnxRuntime, TorchRuntime
from amc.runtimes.request import Request
from amc.strategy import FLOAT

ROWS = {Request(Signature("linear"), 8, 8, FLOAT): Measurement(1.0, 0.0, 1)}


def said(runtime, source):
    header = TableHeader("pi", runtime, 1, 1, 8, (FLOAT,), source=source)
    return origin_note(TableDevice(header, ROWS))


def test_model_is_said_to_be_one_with_its_source():
    note = origin_note(as_device("roofline_edge_tpu"))
    assert note.startswith("roofline_edge_tpu is a model, not a measurement: ")
    assert "4 TOPS int8" in note


def test_table_of_another_processor_or_version_is_named_beside_this_one():
    here = OnnxRuntime().machine()
    assert said("onnxruntime", here) == ""
    other = "Cortex-A72, ONNX Runtime 1.0.0"
    assert said("onnxruntime", other) == (
        f"Prices of pi are of another machine: {other}; this one is: {here}."
    )


def test_table_of_a_runtime_that_amc_does_not_run_names_its_source():
    assert said("tflite", "Cortex-A72, TFLite 2.14") == (
        "Prices of pi are of: Cortex-A72, TFLite 2.14."
    )
    assert said("tflite", "") == ""
    assert machine_here("tflite") is None


def test_what_is_measured_here_or_priced_by_a_class_has_no_note():
    assert origin_note(as_device("torch_cpu")) == origin_note(None) == ""
    assert machine_here("torch") == TorchRuntime().machine()
    board = dataclasses.make_dataclass("Board", ["name"])("mine")
    assert origin_note(board) == ""
