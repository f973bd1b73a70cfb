"""The errors a user can meet.

Every one of them says what was expected, what arrived, where, and what to do.
The command line prints the message without a traceback and exits with ``exit_code``:
2 for a mistake in what was asked, 1 for a machine that failed (disk full, no permission).
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class AmcError(Exception):
    """Base of all errors that are meant for the user's eyes."""

    exit_code = 2


class ConfigError(AmcError):
    """An option has an unknown name or a value that it cannot take."""


class NetworkError(AmcError):
    """A network is unknown, cannot be built, or does not fit its checkpoint or data."""


class TraceError(AmcError):
    """A network cannot be followed from its input to its output."""


class DataError(AmcError):
    """A data set is missing, unreadable, or of the wrong shape or class count."""


class DeviceError(AmcError):
    """A device is unknown or does not support what was asked."""


class TableError(DeviceError):
    """A latency table is unreadable, incomplete, or has invalid rows."""


class BudgetError(AmcError):
    """A budget names an unknown metric or a bound that makes no sense."""


class UnreachableBudgetError(BudgetError):
    """No strategy that the search may choose meets the budget."""


class StrategyError(AmcError):
    """A strategy does not fit the network or is not a valid strategy file."""


class CalibrationError(AmcError):
    """Calibration statistics are not finite or do not fit the layer."""


class EvaluationError(AmcError):
    """A network returned NaN, or outputs of the wrong shape."""


class PolicyError(AmcError):
    """A policy file is missing, unreadable, or was learned on other observations."""


class ExportError(AmcError):
    """A network has no form in the format that it shall be exported to."""


class ArtifactError(AmcError):
    """A run folder is missing, incomplete, or of another version."""


class StorageError(AmcError):
    """A file could not be written: no permission, or no space left."""

    exit_code = 1


def meant(name: str, known: Iterable[str]) -> str:
    """What may have been meant by a name that is not known: a sentence for an error."""
    listed = list(known)
    near = get_close_matches(name, listed, 1)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(listed) or 'none'}."
