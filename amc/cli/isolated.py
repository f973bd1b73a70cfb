"""A launcher's job in a process of its own, so that one that dies takes no other with it.

Launchers run jobs in processes that several of them share, or give all up when one is gone. Here
the launcher's process only waits: it loads neither torch nor data, and outlives what it started.
"""

from __future__ import annotations

import logging
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

Outcome = tuple[int, float | list[float] | None]
"""Exit code and objective of a job."""
Run = Callable[[str, DictConfig], Outcome]
"""Runs a job of a command."""

_START = f"from {__name__} import main; main()"
_ASKED, _OUTCOME = "asked", "outcome"
_DIED = 1  # as if the machine had failed
_IN_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
log = logging.getLogger("amc")


def is_launched() -> bool:
    """Whether a job is one of a launcher that is not Hydra's own, which starts no process."""
    hydra_config = HydraConfig.get()
    launcher = hydra_config.launcher.get("_target_")
    return hydra_config.mode == RunMode.MULTIRUN and launcher != _IN_PROCESS


def run_isolated(run: Run, command: str, config: DictConfig) -> Outcome:
    """Run a job in another process, whose death is an exit code.

    Ctrl-C reaches that process too, which ends its search early; it is waited for.

    Args:
        run: A function of a module, which is imported there.
    """
    plain = [OmegaConf.to_container(of) for of in (config, HydraConfig.instance().cfg)]
    asked = pickle.dumps((run, command, *plain))
    with tempfile.TemporaryDirectory(prefix="amc-job-") as name:
        folder = Path(name)
        (folder / _ASKED).write_bytes(asked)
        # -P: a folder of the user's may hold packages named like those amc imports.
        process = subprocess.Popen([sys.executable, "-P", "-c", _START, name])
        try:
            process.wait()
        except KeyboardInterrupt:
            process.wait()
        if not (folder / _OUTCOME).exists():
            log.error("job %s: %s", HydraConfig.get().job.num, _death(process.returncode))
            return _DIED, None
        # Of a folder that this process made, and that no other user can read or write.
        outcome: Outcome = pickle.loads((folder / _OUTCOME).read_bytes())
        return outcome


def _death(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code} before it could say how it went"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"its process died ({name}): most often memory ran out. The other jobs go on."


def main() -> None:
    """In the process: read what is asked, run it, write the outcome."""
    folder = Path(sys.argv[1])
    setup_globals()
    run, command, config, of_hydra = pickle.loads((folder / _ASKED).read_bytes())
    hydra_config = OmegaConf.create(of_hydra)
    HydraConfig.instance().cfg = hydra_config
    configure_log(hydra_config.hydra.job_logging, hydra_config.hydra.verbose)
    outcome = run(command, OmegaConf.create(config))
    written = folder / f"{_OUTCOME}.part"
    written.write_bytes(pickle.dumps(outcome))
    written.replace(folder / _OUTCOME)
