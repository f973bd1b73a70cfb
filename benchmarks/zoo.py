"""Networks as other packages write them, with random weights: what benchmarks are tried on.

Named ``package/network``. Weights are random, and the factors of normalisations too, so that a
channel that is wrongly kept or lost shows; only facenet_pytorch's networks have those that come
with their package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.networks import build_network
from amc.networks.select import SelectOutputs
from amc.networks.torchvision_models import TORCHVISION_OPTIONS

SEED = 0
TIMM = (
    *("repvgg_a0", "efficientnet_lite0", "tf_efficientnet_b0", "cspresnet50"),
    *("mobilenetv4_conv_small", "resnetv2_50", "regnety_002", "resnest14d", "ghostnet_100"),
    *("convnextv2_atto", "deit_tiny_patch16_224", "mobilevit_xxs"),
)
TORCHVISION = {
    **dict.fromkeys(("vit_b_16", "swin_t", "convnext_tiny", "googlenet", "resnext50_32x4d"), 224),
    "inception_v3": 299,
    "efficientnet_v2_s": 384,
    **dict.fromkeys(("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"), 256),
    "ssdlite320_mobilenet_v3_large": 320,
}  # name -> image size, pixels
ULTRALYTICS = {"yolov8n": 320, "yolov8n-cls": 224}
BOXES = ("0",)  # of what a detector of ultralytics' returns; the rest is for its training loss
OWN = {"shufflenet_v1": 224}
FACES = {"PNet": 12, "RNet": 24, "ONet": 48}
NETWORKS = (
    *(f"timm/{name}" for name in TIMM),
    *(f"torchvision/{name}" for name in TORCHVISION),
    *(f"ultralytics/{name}" for name in ULTRALYTICS),
    *(f"facenet_pytorch/{name}" for name in FACES),
    *(f"amc/{name}" for name in OWN),
)


class Detector(nn.Module):
    """A detector of torchvision's without what is no network: boxes in, boxes out."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = detector.backbone
        self.head: nn.Module = detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = self.backbone(x)
        found: dict[str, Tensor] = self.head(list(features.values()))
        return found


def build(name: str, seed: int = SEED) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network in evaluation mode, and the shape of the images that it is usually given.

    Raises:
        ImportError: Its package is not installed.
        ValueError: There is no such package here.
    """
    package, _, network = name.partition("/")
    if package not in _BUILDERS:
        raise ValueError(f"networks are named package/network, of {', '.join(_BUILDERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built, shape = _BUILDERS[package](network)
    if package != "facenet_pytorch":
        randomise(built, seed)
    return built.eval(), shape


def randomise(network: nn.Module, seed: int) -> None:
    """Draw statistics, factors and shifts: all that there is one of for each channel.

    And weights that begin as zeros, as of ViT's head: nothing before them would show.
    """
    draw = torch.Generator().manual_seed(seed)
    for buffer, tensor in network.named_buffers():
        if buffer.endswith("running_mean"):
            tensor.normal_(0, 0.2, generator=draw)
        elif buffer.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=draw)
    for path, parameter in network.named_parameters():
        if parameter.numel() > max(parameter.shape, default=1):  # no vector
            if not parameter.any():
                parameter.data.normal_(0, 0.02, generator=draw)
            continue
        if path.endswith(("bias", "beta")):
            parameter.data.normal_(0, 0.2, generator=draw)
        else:
            parameter.data.uniform_(0.5, 1.5, generator=draw)


def _timm(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    timm: Any = importlib.import_module("timm")
    network: nn.Module = timm.create_model(name, pretrained=False)
    channels, height, width = network.pretrained_cfg["input_size"]  # type: ignore[index]
    return network, (channels, height, width)


def _torchvision(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    models: Any = importlib.import_module("torchvision.models")
    weights = {} if name in models.list_models(module=models) else {"weights_backbone": None}
    options: Mapping[str, Any] = {**weights, **TORCHVISION_OPTIONS.get(name, {})}
    network: nn.Module = models.get_model(name, weights=None, **options)
    size = TORCHVISION.get(name, 224)
    return (Detector(network) if name.startswith("ssd") else network), (3, size, size)


def _ultralytics(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    tasks: Any = importlib.import_module("ultralytics.nn.tasks")
    kind = tasks.ClassificationModel if name.endswith("-cls") else tasks.DetectionModel
    network: nn.Module = kind(f"{name}.yaml", verbose=False)
    size = ULTRALYTICS.get(name, 640)
    if not name.endswith("-cls"):
        network = SelectOutputs(network, BOXES)
    return network, (3, size, size)


def _own(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    shape = (3, OWN.get(name, 32), OWN.get(name, 32))
    return build_network(name, num_classes=1000, image_shape=shape), shape


def _faces(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    mtcnn: Any = importlib.import_module("facenet_pytorch.models.mtcnn")
    network: nn.Module = getattr(mtcnn, name)(pretrained=False)
    weights = Path(mtcnn.__file__).parents[1] / "data" / f"{name.lower()}.pt"
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network, (3, FACES[name], FACES[name])


_BUILDERS: dict[str, Callable[[str], tuple[nn.Module, tuple[int, int, int]]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "ultralytics": _ultralytics,
    "facenet_pytorch": _faces,
    "amc": _own,
}
