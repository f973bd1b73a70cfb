"""An Ethos-U as a device: its table is of Vela's estimates."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from amc.cost.command import Command
from amc.cost.plugins import local_device
from amc.cost.profile import LocalSpec
from amc.cost.remote import described_in
from amc.cost.spec import Spec
from amc.errors import DeviceError, meant
from amc.graph.whole import Whole
from amc.runtimes import NO_WHOLES, Runtime, Sampler
from amc.runtimes.request import Request
from amc.strategy import Bits
from amc.utils.extras import not_installed

log = logging.getLogger("amc")
ACCELERATORS = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)
WORKER = (sys.executable, "-m", "amc.cost.ethos.worker")
_PACKAGE = "ethos-u-vela"
_PATIENCE_S = 300.0  # for one operator
_NAMED = 5
_MS = 1e3


@dataclass(frozen=True)
class Vela(Runtime):
    """Vela, Arm's compiler for the Ethos-U: it runs nothing, and says how many cycles all takes.

    Attributes:
        accelerator: Which NPU, with its multiply-adds a cycle.
        system_config, memory_mode, config: The rest of the system, as Vela's options call it.
    """

    accelerator: str = "ethos-u55-256"
    system_config: str = "Ethos_U55_High_End_Embedded"
    memory_mode: str = "Shared_Sram"
    config: str = "Arm/vela.ini"

    name = "vela"
    title = "Vela"
    supported_bits = (Bits(8, 8),)
    fuses = ("relu", "relu6", "sigmoid", "tanh", "hardswish")
    is_sum = True
    is_estimate = True

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            hint = meant(str(self.accelerator), ACCELERATORS)
            raise DeviceError(
                f"device.accelerator must be one of {', '.join(ACCELERATORS)}, got "
                f"{self.accelerator!r}. {hint}"
            )

    @property
    def options(self) -> list[str]:
        """Of Vela's command line."""
        return [
            *("--accelerator-config", self.accelerator),
            *("--system-config", self.system_config),
            *("--memory-mode", self.memory_mode),
            *("--config", self.config),
        ]

    def machine(self) -> str:
        """What the estimates are of."""
        try:
            release = version(_PACKAGE)
        except PackageNotFoundError:
            raise not_installed("ethos") from None
        return (
            f"estimates of Vela {release} for {self.accelerator} ({self.system_config}, "
            f"{self.memory_mode}, {self.config})"
        )

    def compile(self, network: Any, threads: int) -> NoReturn:
        raise DeviceError("Vela estimates networks and runs none.")

    @contextmanager
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> Iterator[Sampler]:
        self.machine()  # whether it is installed
        if batch != 1:
            raise DeviceError(f"Vela estimates batches of one image: device.batch=1, got {batch}.")
        yield self._sample

    def _sample(self, requests: Sequence[Request]) -> Iterator[float]:
        """Milliseconds of each request, as they come.

        Raises:
            DeviceError: An operator has no estimate.
        """
        lines = [
            json.dumps(described_in(number, request, batch=1, threads=1))
            for number, request in enumerate(requests)
        ]
        on_host: list[Request] = []
        with Command(
            [*WORKER, *self.options], "".join(f"{line}\n" for line in lines).encode()
        ) as command:
            for number, request in enumerate(requests):
                found = self._answer(command, number, request)
                if found["host"]:
                    on_host.append(request)
                # A table's price is more than nothing; of what takes no time it is a cycle.
                yield max(found["cycles"], 1.0) / found["clock_hz"] * _MS
        if on_host:
            names = "; ".join(map(str, on_host[:_NAMED]))
            more = f" and {len(on_host) - _NAMED} more" if len(on_host) > _NAMED else ""
            log.warning(
                "%d operators cannot be placed on %s: %s%s. They run on the host, of which Vela "
                "estimates no time: here they cost nothing",
                len(on_host),
                self.accelerator,
                names,
                more,
            )

    def _answer(self, command: Command, number: int, request: Request) -> dict[str, Any]:
        try:
            line = command.line(time.monotonic() + _PATIENCE_S)
        except TimeoutError:
            raise DeviceError(
                f"Vela gave no estimate of {request} in {_PATIENCE_S:g} seconds."
            ) from None
        if line is None:
            fault = command.fault(_PATIENCE_S) or "it ended"
            raise DeviceError(f"Vela gave no estimate of {request}: {fault}.")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise DeviceError(f"Vela gives no estimate of {request}: {found['error']}.")
        assert found["id"] == number
        return found


def ethos_device(spec: Spec) -> LocalSpec:
    """An Ethos-U from the options of a device.

    Raises:
        DeviceError: An option is missing, unknown or out of its range.
    """
    own = ("accelerator", "system_config", "memory_mode", "config")
    spec.allow(["name", "channel_step", *own], ["batch", "threads", "grid"])
    return local_device(spec.name(), Vela(**{key: spec.text(key) for key in own}), spec)
