"""Databases as they are named."""

from __future__ import annotations


def is_url(store: object) -> bool:
    """Whether a store is named as a database is, and not as a file."""
    return isinstance(store, str) and "://" in store


def has_password(url: str) -> bool:
    """Whether a URL tells everyone who reads it a password."""
    user, at, _ = url.partition("://")[2].partition("/")[0].rpartition("@")
    return bool(at) and ":" in user
