"""Energy that a machine measures itself: RAPL, as Linux shows it under ``/sys/class/powercap``.

Counters of microjoules, one for each processor package (``intel-rapl:0``, on AMD too), which begin
anew at ``max_energy_range_uj`` (Documentation/power/powercap/powercap.rst in Linux's source). They
count all that the package does, and change about once in a millisecond: what is measured takes many
times as long, and what the package takes while it does nothing is measured beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc.errors import DeviceError

FOLDER = Path("/sys/class/powercap")
LEAST_S = 0.5  # of a measurement: hundreds of the counters' steps
_PACKAGE = "intel-rapl:*"
_MICRO, _MILLI = 1e-6, 1e-3


@dataclass(frozen=True)
class Counter:
    """One package's counter.

    Attributes:
        folder: Of its files.
        range_uj: Where it begins anew.
    """

    folder: Path
    range_uj: int

    def read(self) -> int:
        """Microjoules so far.

        Raises:
            DeviceError: It cannot be read.
        """
        return _number(self.folder / "energy_uj")

    def between(self, start_uj: int, end_uj: int) -> int:
        """Microjoules from one reading to the next, less than a whole range apart."""
        return end_uj - start_uj if end_uj >= start_uj else end_uj - start_uj + self.range_uj


def counters(folder: Path = FOLDER) -> list[Counter]:
    """The packages' counters; none where the machine offers none.

    Parts of a package (``intel-rapl:0:0``, its cores) are in its sum already.

    Raises:
        DeviceError: They are there, and may not be read.
    """
    packages = [place for place in sorted(folder.glob(_PACKAGE)) if place.name.count(":") == 1]
    found = [Counter(place, _number(place / "max_energy_range_uj")) for place in packages]
    for counter in found:
        counter.read()
    return found


def check_energy(folder: Path = FOLDER) -> list[Counter]:
    """The counters, where there are any.

    Raises:
        DeviceError: There are none; says which devices have a model of energy.
    """
    found = counters(folder)
    if not found:
        raise DeviceError(
            f"This machine shows no energy: {folder} has no {_PACKAGE}. (Virtual machines and most "
            "containers have none.) Take a device whose energy is a model, device=roofline_phone, "
            "or a table with energy_mj."
        )
    return found


def power_w(
    given: Sequence[Counter],
    call: Callable[[], object],
    *,
    least_s: float = LEAST_S,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Watts of all packages while something is called again and again, and seconds of a call.

    Args:
        least_s: How long it is called at least.
    """
    start_uj, start_s, calls = [counter.read() for counter in given], clock(), 0
    while (taken_s := clock() - start_s) < least_s or not calls:
        call()
        calls += 1
    joules = _MICRO * sum(
        counter.between(before, counter.read())
        for counter, before in zip(given, start_uj, strict=True)
    )
    return joules / taken_s, taken_s / calls


def energy_mj(
    given: Sequence[Counter],
    call: Callable[[], object],
    *,
    least_s: float = LEAST_S,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[float, float]:
    """Millijoules of one call: of all packages, and beyond what these take when nothing runs.

    The second may be below 0 on a machine that is busy with something else.
    """
    watts, call_s = power_w(given, call, least_s=least_s, clock=clock)
    idle_w, _ = power_w(given, lambda: sleep(least_s), least_s=least_s, clock=clock)
    return watts * call_s / _MILLI, (watts - idle_w) * call_s / _MILLI


def _number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except PermissionError:
        raise DeviceError(
            f"{path} may not be read: since 2020 Linux shows energy to root alone "
            f"(CVE-2020-8694). sudo chmod a+r {path.parent}/energy_uj allows it until a restart."
        ) from None
    except (OSError, ValueError) as error:
        raise DeviceError(f"{path} holds no number of microjoules: {error}.") from error
