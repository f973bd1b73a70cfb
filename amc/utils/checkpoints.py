"""Files of trained weights, as far as can be told without reading them."""

from __future__ import annotations

from pathlib import Path

from amc.errors import NetworkError

SUFFIXES = (".safetensors", ".pt", ".pth")


def check_checkpoint(path: Path) -> None:
    """Check that a checkpoint is there, and of a kind that is read; nothing of it is read.

    Raises:
        NetworkError: It is not.
    """
    if path.suffix not in SUFFIXES:
        raise NetworkError(
            f"Checkpoint {path} must be one of {', '.join(SUFFIXES)}, got {path.suffix!r}."
        )
    if not path.is_file():
        raise NetworkError(f"Checkpoint not found: {path}. Check network.checkpoint.")
