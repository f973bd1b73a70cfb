"""Networks of timm, by name: ``timm/<name>``. timm is imported when one is asked for."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from torch import nn

from amc.errors import NetworkError
from amc.networks.torchvision_models import unfetched

PREFIX = "timm/"


def check_timm_name(name: str, *, pretrained: bool = False) -> None:
    """Check that timm has such a network, and weights of it if they are asked for.

    Args:
        name: ``timm/<name>``; behind a dot may follow which weights: ``timm/resnet10t.c3_in1k``.

    Raises:
        NetworkError: timm is not installed, or has none.
    """
    timm = _timm(name)
    called = name.removeprefix(PREFIX)
    architecture, _, tag = called.partition(".")
    if architecture not in timm.list_models():
        raise _unknown(name, architecture, timm.list_models())
    weights = timm.list_pretrained(f"{architecture}.*")
    if tag and called not in weights:
        raise _unknown(name, called, weights)
    if pretrained and not weights:
        raise NetworkError(
            f"timm has no weights of {name!r}. Give a checkpoint of yours instead of "
            "network.pretrained: network.checkpoint=<file.safetensors or .pt>."
        )


def timm_images(name: str) -> dict[str, Any]:
    """What the weights of a network were trained on: options of data.

    Returns:
        ``mean`` and ``std`` for each channel of pixels in [0, 1]; ``image_size`` in pixels where
        images are square.
    """
    config = _timm(name).get_pretrained_cfg(name.removeprefix(PREFIX))
    _, height, width = config.input_size
    size = {"image_size": int(height)} if height == width else {}
    return {**size, "mean": [*map(float, config.mean)], "std": [*map(float, config.std)]}


def timm_network(
    name: str,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int | None = None,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """A network of timm's, with its weights from the hub if they are asked for.

    Args:
        image_shape: Decides ``in_chans`` and, of networks that are built for one size of images,
            ``img_size``; timm adapts the weights to both.
        num_classes: None: as many as the weights have. 0: features, without a classifier.
        options: Keyword arguments of the network.

    Raises:
        NetworkError: The weights cannot be fetched, or have another number of classes.
    """
    timm = _timm(name)
    called = name.removeprefix(PREFIX)
    config = timm.get_pretrained_cfg(called)
    if pretrained and num_classes not in (None, 0, config.num_classes):
        raise NetworkError(
            f"The weights of {name!r} are of a classifier with {config.num_classes} outputs; with "
            f"num_classes={num_classes} it would be untrained. Leave num_classes out, or train the "
            "network for them first: network.checkpoint=<file>."
        )
    arguments: dict[str, Any] = {"in_chans": image_shape[0], **options}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if config.fixed_input_size and tuple(config.input_size[1:]) != image_shape[1:]:
        arguments.setdefault("img_size", image_shape[1:])
    try:
        network: nn.Module = timm.create_model(called, pretrained=pretrained, **arguments)
    except TypeError as cause:
        if "img_size" in arguments and "img_size" in str(cause):
            expected = "x".join(map(str, config.input_size))
            raise NetworkError(
                f"{name!r} takes images of {expected} alone: data.image_size="
                f"{config.input_size[1]}."
            ) from cause
        raise
    except (AssertionError, ValueError):  # of its arguments
        raise
    except Exception as cause:  # connections raise what the hub's library makes of them
        if pretrained:
            raise unfetched(name, cause) from cause
        raise
    return network


def _timm(name: str) -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as cause:
        raise NetworkError(
            f"network={name} needs timm, which amc does not install by itself: "
            f"pip install 'amc-compress[timm]'. ({cause})"
        ) from cause


def _unknown(name: str, called: str, known: list[str]) -> NetworkError:
    near = difflib.get_close_matches(called, known, n=5, cutoff=0.5)
    hint = f" Did you mean {', '.join(PREFIX + other for other in near)}?" if near else ""
    return NetworkError(
        f"timm has no network {name!r}.{hint} timm.list_models() lists them, and "
        "timm.list_pretrained() those with weights."
    )
