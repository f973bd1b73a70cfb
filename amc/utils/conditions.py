"""What a result depends on beside the task and its settings: the machine, libraries, amc's code.

One list for all who compare a recorded result with what would come out now: the store of
evaluations, a search's journal, the searches of a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from amc.utils.files import fingerprint

COMPUTING = ("numpy", "scipy")  # beside PyTorch: what candidates are built and evaluated with
SEARCHING = ("gymnasium", "stable-baselines3", "sb3-contrib", "optuna", "cmaes")
_PACKAGES = ("agents", "amc", "envs")


def machine_and_libraries(
    libraries: Sequence[str] = (*COMPUTING, *SEARCHING),
) -> dict[str, str | int]:
    """Threads, CPU and versions, by name.

    Another number of threads, or another instruction set, adds in another order.

    Args:
        libraries: Those that count beside PyTorch; of one that is not installed, "none".
    """
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        **{library: _version(library) for library in libraries},
    }


@cache  # milliseconds each, and asked for at every evaluation
def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def code_digests() -> Mapping[str, str]:
    """Digest of every file of amc: relative path -> hex digits."""
    home = Path(__file__).parents[2]
    found = [sources(home / package) for package in _PACKAGES]
    return {file: digest for files in found for file, digest in files.items()}


def sources(place: Path) -> dict[str, str]:
    """Digest of every Python file in a folder, or of one file: relative path -> hex digits."""
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    return {
        file.relative_to(place.parent).as_posix(): fingerprint(file.read_bytes()) for file in files
    }
