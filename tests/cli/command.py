"""Running commands as a user does, but in this process."""

from __future__ import annotations

import pytest

from amc.cli import main

# A search of a few seconds.
NETWORK = "network=tests.cli.nets:tiny"
REPAIR = ("recovery.images=40", "recovery.batch_norm_images=20", "search.images=40")
SMALL = (
    NETWORK,
    "data=digits",
    "device=roofline_phone",
    "search.evaluations=3",
    "search.final_candidates=1",
    "search.bfloat16=false",  # some are killed in processes of their own, and resumed in this one
    *REPAIR,
)


def amc(*arguments: str) -> int:
    """Run a command line; gives its exit code."""
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    code = leaving.value.code
    assert isinstance(code, int)
    return code


def search(*arguments: str) -> int:
    """A small search; what is given comes after ``SMALL`` and so before it."""
    return amc("search", *SMALL, *arguments)
