"""``amc doctor``: what is here, and what is missing for what.

Nothing heavy is imported: versions come from the packages' metadata, so that it is quick and an
installation that is broken does not break it too.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from amc import __version__
from amc.utils.machine import cache_folder, cpu_model, usable_cores

PACKAGE = "amc-compress"
EXTRAS = {
    "rivals": "agent=tpe, gp, cma_es, ppo",
    "timm": "network=timm/<name>",
    "ethos": "Arm's Ethos-U as a device: Vela's estimates",
    "openvino": "device=openvino_cpu",
    "packed": "amc export format=packed: smaller files by a range coder",
    "executorch": "device=executorch_xnnpack, amc export format=executorch",
    "joblib": "hydra/launcher=joblib: jobs of a sweep side by side",
    "submitit": "hydra/launcher=submitit_local, submitit_slurm: jobs of a sweep on a cluster",
    "ray": "hydra/launcher=ray: jobs of a sweep on Ray's machines",
    "server": "search.store=<URL of a database>: evaluations shared by many machines",
    "docs": "make docs",
    "test": "make test",
    "dev": "make check",
}
"""What each extra of the package is for; the extra ``all`` is those that users need."""

_SHOWN = ("torch", "torchvision", "onnxruntime", "onnx", "stable-baselines3", "gymnasium")
_DRIVER = Path("/proc/driver/nvidia/version")  # there where a GPU can be used
_LONGEST_S = 0.3  # how long the cache is counted


def doctor() -> str:
    """The report: versions, machine, devices, extras, cache. Whatever fails is a line of it."""
    sections: dict[str, Callable[[], Iterable[tuple[str, str]]]] = {
        "versions": _versions,
        "machine": _machine,
        "devices that are this machine": _devices,
        f"extras: pip install '{PACKAGE}[<name>]'": _extras,
        "cache": _cache,
    }
    lines: list[str] = []
    for title, rows in sections.items():
        lines += ["", title] if lines else [title]
        try:
            lines += [f"  {name:18} {value}" for name, value in rows()]
        except Exception as error:
            lines.append(f"  cannot be told: {type(error).__name__}: {error}")
    return "\n".join(lines)


def _versions() -> Iterator[tuple[str, str]]:
    yield "amc", f"{__version__}, {Path(__file__).resolve().parents[1]}"
    yield "Python", f"{platform.python_version()}, {sys.executable}"
    for name in _SHOWN:
        yield name, _version(name) or "missing: amc does not work without it"
    for requirement, found in _wanting():
        if requirement.name not in _SHOWN or found:
            yield requirement.name, f"{found or 'missing'}, amc needs {requirement}"


def _machine() -> Iterator[tuple[str, str]]:
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield "processor", cpu_model()
    threads = os.environ.get("OMP_NUM_THREADS")
    said = f"OMP_NUM_THREADS={threads}" if threads else "OMP_NUM_THREADS is not set: all of them"
    yield "cores", f"{usable_cores()} usable of {os.cpu_count()}; {said}"
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        busy = load > 0.5 * usable_cores()
        advice = "; latencies are measured best while nothing else runs" if busy else ""
        yield "busy", f"{load:.1f} processes in the last minute{advice}"


def _devices() -> Iterator[tuple[str, str]]:
    for device, package in (("onnxruntime_cpu", "onnxruntime"), ("torch_cpu", "torch")):
        found = _version(package)
        yield device, f"{package} {found}" if found else f"pip install {package}"
    driver = "a driver is there" if _DRIVER.exists() else "no NVIDIA driver here"
    yield "torch_cuda", driver
    found = _version("tensorrt")
    yield "tensorrt", f"{driver}, tensorrt {found}" if found else f"{driver}, tensorrt is missing"


def _extras() -> Iterator[tuple[str, str]]:
    known = metadata(PACKAGE).get_all("Provides-Extra") or ()
    for extra in filter(known.__contains__, EXTRAS):
        missing = [need.name for need, _ in _wanting(extra)]
        state = f"missing {', '.join(missing)}" if missing else "installed"
        yield extra, f"{state} ({EXTRAS[extra]})"


def _cache() -> Iterator[tuple[str, str]]:
    folder = cache_folder()
    yield "folder", f"{folder} (AMC_CACHE=<folder> puts it elsewhere)"
    if not folder.is_dir():
        yield "size", "nothing there yet"
        return
    until, exact = time.monotonic() + _LONGEST_S, True
    for part in sorted(folder.iterdir()):
        size, whole = _size(part, until)
        exact = exact and whole
        yield part.name[:18], f"{'' if whole else 'more than '}{size / 1e6:.1f} MB"


def _size(place: Path, until: float) -> tuple[int, bool]:
    """Bytes of a file or of all files in a folder, and whether there was time for all."""
    if place.is_file():
        return place.stat().st_size, True
    total = 0
    for folder, _, names in os.walk(place):
        for name in names:
            if time.monotonic() > until:
                return total, False
            try:
                total += Path(folder, name).stat().st_size
            except OSError:  # gone meanwhile
                continue
    return total, True


# -- the packages' own words ---------------------------------------------------------------


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _wanting(extra: str = "") -> Iterator[tuple[Requirement, str | None]]:
    """Requirements that are not met, each with the version that is there, if any."""
    for requirement in _requirements(extra):
        found = _version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield requirement, found


def _requirements(extra: str) -> Iterator[Requirement]:
    """What amc requires, or one of its extras beside that; extras of extras too."""
    for text in requires(PACKAGE) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        of_extra = marker is not None and "extra" in str(marker)
        if of_extra != bool(extra) or (marker and not marker.evaluate({"extra": extra})):
            continue
        if _canonical(requirement.name) == PACKAGE:
            for other in sorted(requirement.extras):
                yield from _requirements(other)
        else:
            requirement.marker = None
            yield requirement


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
