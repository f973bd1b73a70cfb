"""Compressed networks as ONNX files: written, read back, checked and timed."""

from amc.export.file import DEFAULT_OPSET, ExportReport, convert, export_onnx
from amc.export.graph import precision_words
from amc.export.parity import Parity, check_parity
from amc.export.precision import read_precisions
from amc.export.skeleton import check_opset

__all__ = [
    "DEFAULT_OPSET",
    "ExportReport",
    "Parity",
    "check_opset",
    "check_parity",
    "convert",
    "export_onnx",
    "precision_words",
    "read_precisions",
]
