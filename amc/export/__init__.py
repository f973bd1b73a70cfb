"""Compressed networks as ONNX files: written, read back, checked and timed."""

from amc.export.file import ExportReport, export_onnx
from amc.export.graph import precision_words
from amc.export.parity import Parity, check_parity
from amc.export.precision import read_precisions
from amc.export.runtime import OnnxNetwork, integer_layers, runtime_operators

__all__ = [
    "ExportReport",
    "OnnxNetwork",
    "Parity",
    "check_parity",
    "export_onnx",
    "integer_layers",
    "precision_words",
    "read_precisions",
    "runtime_operators",
]
