"""Sets of channel ids that live or die together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = npt.NDArray[np.int64]


class DisjointSets:
    """Sets of channel ids: the components of a graph with an edge for every union."""

    def __init__(self) -> None:
        self._count = 0
        self._edges = [np.empty((2, 0), np.int64)]
        self._known: tuple[tuple[int, int], Ids] | None = None  # (ids, unions), the sets of these

    def fresh(self, count: int) -> Ids:
        """New ids, each a set of its own."""
        self._count += count
        return np.arange(self._count - count, self._count, dtype=np.int64)

    def unite(self, left: Ids, right: Ids) -> None:
        """Unite the sets of two equally long vectors of ids, element by element."""
        self._edges.append(np.stack([left, right]))

    def of_ids(self) -> Ids:
        """For every id its set's number, shape (ids,)."""
        state = self._count, len(self._edges)
        if self._known is not None and self._known[0] == state:
            return self._known[1]
        ends = np.concatenate(self._edges, axis=1)
        edges = coo_array((np.ones(ends.shape[1]), ends), shape=(self._count, self._count))
        sets: Ids = connected_components(edges, directed=False)[1].astype(np.int64)
        sets.flags.writeable = False
        self._known = state, sets
        return sets
