from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from amc.compress.quantization import Quantized
from amc.export import export_onnx
from amc.recovery.training import TrainingSettings, train
from amc.runtimes import OnnxNetwork
from amc.strategy import Bits
from tests.export.nets import SHAPE, pictures, quantized, scores


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    ).eval()


def test_exported_file_holds_the_steps_that_training_learned(tmp_path: Path) -> None:
    bits = {"0": Bits(8, 8), "2": Bits(4, 8), "5": Bits(8, 8)}
    module = quantized(network(), bits)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    images = (pictures(64) * 0.2 + 0.5).clamp(0, 1)
    settings = TrainingSettings(epochs=2, learning_rate=0.1, batch_size=16)
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    train(
        module,
        images,
        labels,
        mean=[0.5] * 3,
        std=[0.2] * 3,
        settings=settings,
        progress=False,
    )
    file = tmp_path / "trained.onnx"
    export_onnx(module, SHAPE, file, images=pictures())
    held = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer
    }
    for path in bits:
        layer = module.get_submodule(path)
        assert isinstance(layer, Quantized)
        for name in ("weight_scale", "input_scale"):
            learned = getattr(layer, name)
            assert not torch.equal(learned, before[f"{path}.{name}"])
            np.testing.assert_array_equal(held[f"{path}.{name}"], learned.numpy())
    torch.testing.assert_close(
        OnnxNetwork(file)(pictures()), scores(module, pictures()), rtol=0.02, atol=0.02
    )
