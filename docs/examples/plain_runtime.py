"""A runtime of one's own: ONNX Runtime without its optimisations (docs/extending.md).

    amc profile device=custom device.name=docs.examples.plain_runtime:PlainOnnx network=resnet20

Operators are timed one by one, each as a model of its own: that is all that most runtimes need.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
from torch import nn

import amc
from amc.errors import DeviceError
from amc.graph.whole import Whole
from amc.runtimes import NO_WHOLES, OnnxNetwork, OnnxRuntime, Sampler, lone_model, open_session
from amc.runtimes.request import Request

_CALLS = 5  # for one sample: the shortest counts


class PlainOnnx(amc.Runtime):
    """ONNX Runtime as it runs a file node by node."""

    name, title = "plain_onnxruntime", "ONNX Runtime, unoptimised"

    def machine(self) -> str:
        return f"{OnnxRuntime().machine()}, unoptimised"

    def compile(self, network: onnx.ModelProto, threads: int) -> nn.Module:
        return OnnxNetwork(network, threads=threads, fused=False)

    @contextmanager
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> Iterator[Sampler]:
        known: dict[Request, tuple[Any, Any]] = {}

        def sample(requests: Sequence[Request]) -> Iterator[float]:
            for request in requests:
                if request not in known:
                    model, inputs = lone_model(request, batch, wholes)
                    how = {"threads": threads, "fused": False, "error": DeviceError}
                    known[request] = open_session(model, str(request), **how), inputs
                session, inputs = known[request]
                yield min(_seconds(session, inputs) for _ in range(_CALLS)) * 1e3

        yield sample


def _seconds(session: Any, inputs: Any) -> float:
    start = time.perf_counter()
    session.run(None, inputs)
    return time.perf_counter() - start
