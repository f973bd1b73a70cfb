"""Networks by name: our own, torchvision's, timm's, or a function of the user's."""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from amc.errors import NetworkError
from amc.networks.adder import adder_resnet
from amc.networks.lenet import lenet_5, lenet_300_100
from amc.networks.mobilenet import mobilenet_v1
from amc.networks.resnet import cifar_resnet
from amc.networks.shufflenet import shufflenet_v1
from amc.networks.timm_models import PREFIX, check_timm_name, timm_images, timm_network
from amc.networks.torchvision_models import (
    torchvision_images,
    torchvision_names,
    torchvision_network,
)
from amc.utils.packages import import_named

Builder = Callable[..., nn.Module]
log = logging.getLogger(__name__)

NETWORKS: dict[str, Builder] = {
    "resnet20": partial(cifar_resnet, depth=20),
    "resnet32": partial(cifar_resnet, depth=32),
    "resnet44": partial(cifar_resnet, depth=44),
    "resnet56": partial(cifar_resnet, depth=56),
    "resnet110": partial(cifar_resnet, depth=110),
    "mobilenet_v1": mobilenet_v1,
    "shufflenet_v1": shufflenet_v1,
    "adder_resnet20": partial(adder_resnet, depth=20),
    "lenet_300_100": lenet_300_100,
    "lenet_5": lenet_5,
}


def check_network_name(name: str, *, pretrained: bool = False) -> None:
    """Check that there is such a network, without building it.

    Args:
        pretrained: Whether its published weights are asked for.

    Raises:
        NetworkError: The name is unknown, the function cannot be imported, or there are no weights.
    """
    if ":" in name:
        import_named(name, "Network", "function", NetworkError)
    elif name.startswith(PREFIX):
        check_timm_name(name, pretrained=pretrained)
    elif name not in NETWORKS and name not in torchvision_names():
        raise _unknown(name)
    if pretrained and (":" in name or name in NETWORKS):
        raise NetworkError(
            f"There are no published weights of network {name!r}; network.pretrained is for those "
            "of torchvision and timm. Give a checkpoint: network.checkpoint=<file.safetensors or "
            ".pt>."
        )


def images_of(name: str, *, pretrained: bool) -> dict[str, Any]:
    """What images a network is made for: options of data, none where nothing is known.

    Args:
        pretrained: Whether it has its published weights.

    Raises:
        NetworkError: As `check_network_name`, of timm's and where weights are asked for.
    """
    if not (pretrained or name.startswith(PREFIX)):
        return {}
    check_network_name(name, pretrained=pretrained)
    return timm_images(name) if name.startswith(PREFIX) else torchvision_images(name)


def build_network(
    name: str,
    *,
    num_classes: int | None,
    image_shape: tuple[int, int, int],
    seed: int = 0,
    pretrained: bool = False,
    **options: Any,
) -> nn.Module:
    """A network, untrained unless its weights are asked for; equal arguments give equal weights.

    Args:
        name: A key of ``NETWORKS``, a classification model of torchvision, ``timm/<name>``, or
            "package.module:function", a function that returns the network.
        num_classes: Features of the output. None: as many as a network has that is not told;
            amc's own must be told.
        image_shape: (channels, height, width) of one input image.
        seed: Of the initial weights. The global random state is left as it was.
        pretrained: Whether it has its published weights, which torchvision or timm download.
        options: Passed to the builder. A function of the user's is called with those of
            num_classes, image_shape, seed and the options that its signature accepts.

    Raises:
        NetworkError: The name is unknown, the function cannot be imported, the builder fails,
            what it returns is no nn.Module, or there are no such weights.
    """
    check_network_name(name, pretrained=pretrained)
    counted = {} if num_classes is None else {"num_classes": num_classes}
    arguments: dict[str, Any] = {**counted, "image_shape": image_shape, **options}
    if name in NETWORKS and num_classes is None:
        raise NetworkError(
            f"Network {name!r} must be told its number of outputs, as there are no labels to count "
            "classes by: +network.options.num_classes=<number>, or a checkpoint "
            "(network.checkpoint)."
        )
    if ":" in name:
        build, arguments = _users_builder(name, {**arguments, "seed": seed}, set(options))
    elif name in NETWORKS:
        build = NETWORKS[name]
    elif name.startswith(PREFIX):
        build = partial(timm_network, name, pretrained=pretrained)
    else:
        build = partial(torchvision_network, name, pretrained=pretrained)
        del arguments["image_shape"]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _called(name, build, arguments)


def _called(name: str, build: Builder, arguments: dict[str, Any]) -> nn.Module:
    try:
        network: object = build(**arguments)
    except NetworkError:
        raise
    except Exception as cause:
        given = f" with {arguments}" if arguments else ""
        advice = (
            "Check network.options." if arguments else "Correct the function, or what it reads."
        )
        raise NetworkError(
            f"Network {name!r} could not be built{given}: {type(cause).__name__}: {cause}. {advice}"
        ) from cause
    if not isinstance(network, nn.Module):
        raise NetworkError(
            f"Network {name!r} must be a torch.nn.Module, its builder returned "
            f"{type(network).__name__}."
        )
    return network


def _users_builder(
    name: str, offered: dict[str, Any], options: set[str]
) -> tuple[Builder, dict[str, Any]]:
    """The function behind "package.module:function", and what it takes of the offered."""
    build = cast(Builder, import_named(name, "Network", "function", NetworkError))
    accepted = _accepted(build, set(offered))
    if dropped := sorted(options - accepted):
        log.warning("Network %s does not take the options %s; they are dropped.", name, dropped)
    return build, {key: value for key, value in offered.items() if key in accepted}


def _accepted(build: Builder, offered: set[str]) -> set[str]:
    """Which of the offered keyword arguments the signature takes."""
    try:
        parameters = inspect.signature(build).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return set()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return offered
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return offered & {parameter.name for parameter in parameters if parameter.kind in by_name}


def _unknown(name: str) -> NetworkError:
    near = difflib.get_close_matches(name, [*NETWORKS, *torchvision_names()], n=5, cutoff=0.5)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    return NetworkError(
        f"Unknown network {name!r}.{hint} Accepted are: our own ({', '.join(NETWORKS)}); any "
        "classification model of torchvision (e.g. mobilenet_v2); timm/<name> of timm (e.g. "
        'timm/resnet10t); "package.module:function", '
        "a function of yours that returns a torch.nn.Module."
    )
