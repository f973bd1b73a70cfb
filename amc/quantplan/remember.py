"""Functions of a few of many numbers, worked out once for each of their values."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import itemgetter

Key = Callable[[Sequence[int]], Hashable]

_LIMIT = 4096  # values of one function


def key_of(places: Iterable[int]) -> Key:
    """Gives the numbers in some places as one key."""
    chosen = sorted(set(places))
    return itemgetter(*chosen) if chosen else _nothing


def _nothing(numbers: Sequence[int]) -> Hashable:
    return None


class Remembered:
    """A function of lists of numbers that depends on some of their places alone."""

    def __init__(self, function: Callable[..., int], *places: Iterable[int]) -> None:
        """
        Args:
            function: Takes as many lists as there are ``places``.
            places: Of each list, those that the function depends on.
        """
        self._function = function
        self._keys = [key_of(chosen) for chosen in places]
        self._known: dict[Hashable, int] = {}

    def __call__(self, *lists: Sequence[int]) -> int:
        key = tuple([key(numbers) for key, numbers in zip(self._keys, lists, strict=True)])
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _LIMIT:
                self._known.clear()
            found = self._known[key] = self._function(*lists)
        return found
