"""Compressed networks as files, ONNX, ExecuTorch and packed: written, checked and timed."""

from amc.export.executorch import ProgramReport, export_executorch
from amc.export.file import DEFAULT_OPSET, ExportReport, convert, export_onnx
from amc.export.graph import precision_words
from amc.export.packed.network import Packed, load_packed, pack
from amc.export.parity import Parity, check_parity, parity_of
from amc.export.precision import read_precisions
from amc.export.skeleton import check_opset

__all__ = [
    "DEFAULT_OPSET",
    "ExportReport",
    "Packed",
    "Parity",
    "ProgramReport",
    "check_opset",
    "check_parity",
    "convert",
    "export_executorch",
    "export_onnx",
    "load_packed",
    "pack",
    "parity_of",
    "precision_words",
    "read_precisions",
]
