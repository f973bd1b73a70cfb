"""Times operators on a board, for ``amc profile remote=`` (docs/devices.md): PyTorch, without amc.

amc profile device=todo device.name=my_board device.runtime=torch network=resnet20 todo=layers.csv \
    'remote="ssh pi@board python3 board_script.py"'

A line of JSON comes in for each operator; a line goes out with its milliseconds, or with an error.
For another runtime, put what builds and times an operator there in place of `build` and `seconds`.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

SAMPLES = 7
BURST_S = 0.01  # a sample is the median call of a burst about this long

FUNCTIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "add": torch.add,
    "mul": torch.mul,
    "concat": torch.clone,
    "pad": torch.clone,
    "select": lambda x: x.index_select(1, torch.arange(x.shape[1])),
    "softmax": lambda x: torch.softmax(x, 1),
}


def build(asked: dict[str, Any]) -> Any:
    """What is to be timed: called with tensors like the input, it computes the operator.

    Raises:
        ValueError: It is an operator, or it has bits, that this script does not know.
    """
    op, ins, outs = asked["op"], asked["in_channels"], asked["out_channels"]
    if (asked["weight_bits"], asked["activation_bits"]) != (32, 32):
        raise ValueError("this script computes in float alone")
    shape = {key: tuple(asked[key]) for key in ("kernel", "stride", "padding", "dilation")}
    kernel, stride, padding, dilation = shape.values()
    if op == "conv2d":
        return nn.Conv2d(ins, outs, kernel, stride, padding, dilation, asked["groups"])
    if op == "linear":
        return nn.Linear(ins, outs)
    if op == "batch_norm":
        return nn.BatchNorm2d(ins)
    if op == "max_pool2d":
        return nn.MaxPool2d(kernel, stride, padding, dilation)
    if op == "avg_pool2d":
        return nn.AvgPool2d(kernel, stride, padding)
    if op == "adaptive_avg_pool2d":
        return nn.AdaptiveAvgPool2d(tuple(asked["out_size"]))
    if op in FUNCTIONS:
        return FUNCTIONS[op]
    raise ValueError(f"this script knows no operator {op}")


def inputs(asked: dict[str, Any]) -> list[torch.Tensor]:
    """A batch of numbers that are no zeros and not denormal."""
    batch, channels, (height, width) = asked["batch"], asked["in_channels"], asked["in_size"]
    shape = (batch, channels, height, width)
    if asked["op"] == "linear":
        shape = (batch, height, channels) if height > 1 else (batch, channels)
    return [torch.rand(shape) / 2 + 0.5 for _ in range(2 if asked["op"] in ("add", "mul") else 1)]


def seconds(operator: Any, given: list[torch.Tensor]) -> float:
    """Of one call, in a burst of them."""
    ticks = [time.perf_counter()]
    while len(ticks) < 3 or ticks[-1] - ticks[0] < BURST_S:
        operator(*given)
        ticks.append(time.perf_counter())
    return median(end - start for start, end in pairwise(ticks[1:]))


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """What is said of one operator."""
    try:
        operator = build(asked)
        if isinstance(operator, nn.Module):
            operator.eval()
        torch.set_num_threads(asked["threads"])
        given = inputs(asked)
        taken_ms = [seconds(operator, given) * 1e3 for _ in range(SAMPLES)]
    except (ValueError, RuntimeError) as error:
        return {"id": asked["id"], "error": str(error)}
    low, _, high = quantiles(taken_ms, n=4)
    return {
        "id": asked["id"],
        "latency_ms": low,  # what else the board does only adds time
        "spread_ms": (high - low) / 2,
        "samples": SAMPLES,
    }


def main() -> None:
    """Answer every line at once: what was answered is kept if the connection breaks."""
    machine = f"{platform.node()} {platform.machine()}, PyTorch {torch.__version__}"
    print(json.dumps({"machine": machine}), flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
