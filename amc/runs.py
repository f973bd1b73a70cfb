"""What makes a folder a run's: known without torch, so that a mistake is told at once."""

from __future__ import annotations

from pathlib import Path

from amc.errors import ArtifactError

RUN_FILE = "run.json"
JOURNAL_FILE = "journal.sqlite"
STRATEGY_FILE = "strategy.json"


def check_run_folder(folder: Path) -> None:
    """Check that the folder of a run is there.

    Raises:
        ArtifactError: There is no such folder.
    """
    if folder.is_file():
        raise ArtifactError(f"{folder} is a file. Give the folder of a search: {folder.parent}.")
    if not folder.is_dir():
        raise ArtifactError(f"Run folder not found: {folder}. Give the folder of a search.")


def where_the_run_is(folder: Path) -> str:
    """What to do where a folder is there and holds no ``run.json``: a sentence, or nothing."""
    inside = [run.parent for run in folder.glob(f"*/{RUN_FILE}")]
    if (folder.parent / RUN_FILE).is_file():
        return f" The run is the folder above it: {folder.parent}."
    if inside:
        newest = max(inside, key=lambda run: (run / RUN_FILE).stat().st_mtime)
        return f" Choose one of the runs in it, as {newest}."
    if (folder / STRATEGY_FILE).is_file():
        return (
            " It was written from Python, and only Python has its network and data: "
            "amc.load_compressed, amc.export_onnx, amc.finetune, and amc.search(folder=..., "
            "resume=True) go on from it."
        )
    return ""
