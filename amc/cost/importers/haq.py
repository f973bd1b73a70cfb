"""HAQ's latency tables (Wang et al., CVPR 2019; github.com/mit-han-lab/haq).

A ``.npy`` array of shape (layers, 8, 8): the cost of every convolution and linear layer of one
network, in the network's order, indexed ``[layer, weight_bits - 1, activation_bits - 1]``. It
neither says which layers these are nor in which unit the costs are, and knows every layer with
all its channels only.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from amc.cost.device import TableDevice, TableHeader
from amc.cost.importers.common import check_layers, measurements, path_of
from amc.cost.spec import Spec
from amc.cost.unmeasured import OrderedTable
from amc.errors import DeviceError, TableError
from amc.graph.graph import NetworkGraph
from amc.runtimes.request import Request
from amc.strategy import Bits
from amc.utils.files import read_bytes

WIDTHS = tuple(range(1, 9))
PAIRS = tuple(Bits(w, a) for w, a in product(WIDTHS, WIDTHS))
_LONGEST = 80  # characters of a shape or type in a message
_SHAPE = f"(layers, {len(WIDTHS)}, {len(WIDTHS)})"


@dataclass(frozen=True)
class HaqTable(OrderedTable):
    """A table of HAQ that has not been told its network yet.

    Attributes:
        ms_per_unit: Milliseconds of one unit of the table's costs.
    """

    path: Path
    ms_per_unit: float

    def for_network(self, graph: NetworkGraph) -> TableDevice:
        """The device that prices the layers of this network; see `read_haq`."""
        return read_haq(
            self.path,
            graph,
            name=self.name,
            ms_per_unit=self.ms_per_unit,
            batch=self.batch,
            threads=self.threads,
        )


def haq_device(spec: Spec) -> HaqTable:
    """A table of HAQ from the options of a device.

    Raises:
        DeviceError: An option is missing, unknown or out of its range.
        TableError: There is no path.
    """
    spec.allow(["name", "path", "ms_per_unit", "batch", "threads"])
    path = path_of(spec, "device=haq device.path=latency_table.npy")
    if spec.values["ms_per_unit"] is None:
        raise DeviceError(
            "device.ms_per_unit must say how many milliseconds one unit of HAQ's table is, got "
            "null: the file does not. Cycles at 100 MHz: device.ms_per_unit=1e-5. Where it is not "
            "known, take 1 and a budget that is a fraction."
        )
    return HaqTable(
        name=spec.name(),
        runtime="haq",
        batch=spec.integer("batch"),
        threads=spec.integer("threads"),
        channel_step=1,
        supported_bits=PAIRS,
        advice=(
            "HAQ's table knows layers by their order alone. Make a table of your network from it: "
            f"amc profile device=haq device.path={path} network=<network> output=table.csv; then "
            "search with device=table device.path=table.csv."
        ),
        path=path,
        ms_per_unit=spec.number("ms_per_unit"),
    )


def read_haq(
    path: Path,
    graph: NetworkGraph,
    *,
    name: str,
    ms_per_unit: float,
    batch: int = 1,
    threads: int = 1,
) -> TableDevice:
    """Read a table of HAQ for a network.

    The device prices every layer with all its channels, at 1 to 8 bits; operators between layers
    cost nothing, as in HAQ. Its channel step is the widest layer, so that a search leaves all
    channels in place. Layers of one shape share the mean of their costs.

    Args:
        graph: Of the network that the table was made for; its layers in execution order.
        ms_per_unit: Milliseconds of one unit of the table.

    Raises:
        TableError: The file is missing, is no array of shape (layers, 8, 8) of positive numbers,
            in milliseconds too, or has another number of layers than the network.
    """
    with np.errstate(over="ignore"):  # what is no number of milliseconds is said below
        table = _array(path) * ms_per_unit  # (layers, weight bits, activation bits)
    _check(table, path, f"finite number of milliseconds with ms_per_unit={ms_per_unit:g}")
    check_layers(len(table), graph, path)
    sizes = graph.sizes()
    prices = [
        (
            Request(layer.signature, layer.inputs.count(sizes), layer.outputs.count(sizes), bits),
            float(table[layer.index, bits.weight - 1, bits.activation - 1]),
        )
        for layer in graph.layers
        for bits in PAIRS
    ]
    header = TableHeader(
        device=name,
        runtime="haq",
        threads=threads,
        batch=batch,
        channel_step=max(max(request.in_channels, request.out_channels) for request, _ in prices),
        supported_bits=PAIRS,
        source=f"HAQ {path.name}",
        covers="full_layers",
    )
    return TableDevice(header, measurements(prices))


def _array(path: Path) -> npt.NDArray[np.float64]:
    """The table as it stands in the file, shape (layers, 8, 8)."""
    content = read_bytes(path, "HAQ table", TableError)
    try:
        table = _array_of(content, path)
    except TableError:
        raise
    except Exception as cause:  # of many kinds, whatever the bytes make numpy's parser do
        raise TableError(f"{path} is not a .npy array of numbers: {cause}.") from cause
    if table.ndim != 3 or table.shape[1:] != (len(WIDTHS), len(WIDTHS)) or not len(table):
        raise TableError(f"{path}: expected an array of shape {_SHAPE}, got {table.shape}.")
    table = table.astype(np.float64)
    _check(table, path, "finite number")
    return table


def _array_of(content: bytes, path: Path) -> npt.NDArray[Any]:
    """The array of a .npy file, whose header is believed where the rest is as long as it says."""
    file = io.BytesIO(content)
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.kind not in "iuf":
        raise TableError(f"{path}: expected an array of numbers, got {str(dtype)[:_LONGEST]}.")
    held, wanted = len(content) - file.tell(), math.prod(shape) * dtype.itemsize
    if held != wanted or min(shape, default=1) < 0:
        raise ValueError(f"its header says {str(shape)[:_LONGEST]}, and {held} bytes follow")
    numbers = np.frombuffer(content, dtype, offset=file.tell())
    return numbers.reshape(shape, order="F" if is_fortran else "C")


def _check(table: npt.NDArray[np.float64], path: Path, expected: str) -> None:
    wrong = np.argwhere(~(np.isfinite(table) & (table > 0)))
    if len(wrong):
        layer, weight, activation = (int(i) for i in wrong[0])
        raise TableError(
            f"{path}, layer {layer}, {weight + 1}/{activation + 1} bits: expected a positive, "
            f"{expected}, got {table[layer, weight, activation]}."
        )
