"""Policies of both kinds: that decide (`agents.policy`), that correct (`agents.trust`)."""

from __future__ import annotations

from pathlib import Path

from agents.policy import Policy
from agents.trust import FORMAT_VERSION, TrustPolicy, folder_of
from agents.weights import DESCRIPTION_FILE
from amc.errors import PolicyError
from amc.utils.documents import fault, parse_json
from amc.utils.files import read_text

AnyPolicy = Policy | TrustPolicy


def load_policy(source: str | Path) -> AnyPolicy:
    """The policy that comes with amc ("shipped"), or that of a folder; nothing in it can run code.

    Raises:
        PolicyError: A file is missing or unreadable, of another version, or the two do not fit
            each other.
    """
    folder = folder_of(str(source))
    path = folder / DESCRIPTION_FILE
    text = read_text(path, "Policy description", PolicyError)
    document = parse_json(text, fault(str(path), PolicyError))
    corrects = isinstance(document, dict) and document.get("version") == FORMAT_VERSION
    return TrustPolicy.load(folder) if corrects else Policy.load(folder)
