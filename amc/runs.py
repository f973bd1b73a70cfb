"""What makes a folder a run's: known without torch, so that a mistake is told at once."""

from __future__ import annotations

from pathlib import Path

from amc.errors import ArtifactError

RUN_FILE = "run.json"


def check_run_folder(folder: Path) -> None:
    """Check that the folder of a run is there.

    Raises:
        ArtifactError: There is no such folder.
    """
    if not folder.is_dir():
        raise ArtifactError(f"Run folder not found: {folder}. Give the folder of a search.")
