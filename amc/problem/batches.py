"""Networks that compute over the batch, and so give an image other scores alone."""

from __future__ import annotations

from torch import nn

from amc.layers.norms import lacks_statistics
from amc.problem.evaluate import BATCH

DEPENDENT = 1e-4  # between alone and in a batch, of the largest output: rounding is far less
_SHOWN = 5


def batch_note(network: nn.Module, batch: int, own: str, batched: str) -> str:
    """What the user should know of such a network.

    Args:
        batch: Images that the device runs at once.
        own: Scores of the network on the search images, so many at once; empty without labels.
        batched: The same in batches of `amc.problem.evaluate.BATCH`.
    """
    norms = [path for path, module in network.named_modules() if lacks_statistics(module)]
    cause = "something in its forward computes over the batch"
    if norms:
        shown = ", ".join(norms[:_SHOWN]) + (", ..." if len(norms) > _SHOWN else "")
        cause = f"batch normalisation without running statistics ({shown})"
    size = "one image" if batch == 1 else f"{batch} images"
    found = f": the original has {own} so, and {batched} in batches of {BATCH}" if own else ""
    return (
        f"{type(network).__name__} gives an image other scores alone than in a batch: {cause}. "
        f"All that is reported here is of {size} at a time, as the device runs it{found}. Train it "
        "with running statistics (track_running_stats=True) for the same scores at any batch."
    )
