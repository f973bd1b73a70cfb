"""Attention as networks write it: heads, widths and streams are channel groups."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amc.compress.removal import remove_channels
from amc.compress.verify import TOLERANCE, _random_half, graph_of, removal_error
from amc.cost.account import count_macs
from amc.cost.prices import operator_prices
from amc.export import check_parity, export_onnx
from amc.graph.graph import NetworkGraph
from amc.strategy import IDENTITY, Strategy

SHAPE = (3, 8, 8)
WIDTH, HEADS, TOKENS = 16, 4, 5


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return network.eval()


def sizes(graph: NetworkGraph) -> dict[str, int]:
    return {group.name: group.size for group in graph.free_groups}


def error_of_half(graph: NetworkGraph, seed: int = 0) -> float:
    images = torch.randn(2, *graph.image_shape, generator=torch.Generator().manual_seed(seed))
    return removal_error(graph, _random_half(graph, range(len(graph.groups))), images)


def heads_of(x: Tensor) -> Tensor:
    return x.view(x.shape[0], TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)


def fused(qkv: Tensor) -> Tensor:
    qkv = qkv.reshape(qkv.shape[0], TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(*qkv.unbind(0))


def written_out(qkv: Tensor) -> Tensor:
    shape = (qkv.shape[0], TOKENS, HEADS, WIDTH // HEADS)
    q, k, v = (part.reshape(shape).transpose(1, 2) for part in qkv.chunk(3, -1))
    scores = (q * (WIDTH // HEADS) ** -0.5) @ k.transpose(-2, -1)
    return torch.matmul(scores.softmax(dim=-1), v)


def scaled_by_its_shape(qkv: Tensor) -> Tensor:
    shape = (qkv.shape[0], TOKENS, HEADS, WIDTH // HEADS)
    q, k, v = (part.reshape(shape).transpose(1, 2) for part in qkv.split(WIDTH, 2))
    return (torch.matmul(q, k.mT) / math.sqrt(q.shape[-1])).softmax(-1).matmul(v)


def by_einsum(qkv: Tensor) -> Tensor:
    q, k, v = qkv.reshape(qkv.shape[0], TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k)
    return torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v)


def in_one_batch(qkv: Tensor) -> Tensor:
    """Heads beside the images, for bmm."""
    images, wide = qkv.shape[0], (-1, TOKENS, WIDTH // HEADS)
    shape = (images, TOKENS, HEADS, WIDTH // HEADS)
    q, k, v = (p.reshape(shape).transpose(1, 2).reshape(wide) for p in qkv.chunk(3, -1))
    mixed = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
    return mixed.view(images, HEADS, TOKENS, WIDTH // HEADS)


def of_normalised(qkv: Tensor) -> Tensor:
    shape = (qkv.shape[0], TOKENS, HEADS, WIDTH // HEADS)
    q, k, v = (part.reshape(shape).transpose(1, 2) for part in qkv.chunk(3, -1))
    q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
    return (q @ k.transpose(-2, -1) * 4.0).softmax(-1) @ v


class Block(nn.Module):
    """A token beside the patches, attention, a residual MLP, a head on the first token."""

    def __init__(self, attend) -> None:
        super().__init__()
        self.attend = attend
        self.patches, self.first = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.before, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.project, self.between = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places
        mixed = self.attend(self.qkv(self.before(x)))
        x = x + self.project(mixed.transpose(1, 2).reshape(x.shape[0], TOKENS, WIDTH))
        x = x + self.narrow(functional.gelu(self.wide(self.between(x))))
        return self.head(x[:, 0])


FORMS = [
    *(fused, written_out, scaled_by_its_shape, by_einsum, in_one_batch, of_normalised),
]


@pytest.mark.parametrize("attend", FORMS)
def test_stream_widths_and_mlp_are_free_and_removed_exactly(attend):
    graph = graph_of(randomised(Block(attend)), SHAPE)
    # 16 of the stream; 4 of a head's queries and keys, 4 of its values, whichever head's.
    assert sizes(graph) == {"patches": WIDTH, "qkv": 4, "qkv[1]": 4, "wide": 24}
    assert error_of_half(graph) < TOLERANCE / 10


@pytest.mark.parametrize("attend", FORMS)
def test_products_are_counted_by_what_is_kept(attend):
    network = randomised(Block(attend))
    graph = graph_of(network, SHAPE)
    whole = sum(operator_prices(graph, IDENTITY, "macs", None))
    assert whole == count_macs(network, SHAPE)[""]
    half = sum(operator_prices(graph, Strategy({"qkv": 0.5, "qkv[1]": 0.25}, {}), "macs", None))
    # Of 16 queries 8 are left, and of the keys; of 16 values 4: in the layer before them, in both
    # products of 5 by 5 tokens, and in the layer behind them.
    layers = TOKENS * WIDTH * (8 + 8 + 12) + TOKENS * 12 * WIDTH
    assert whole - half == layers + TOKENS * TOKENS * (8 + 12)


def test_compressed_attention_is_exported(tmp_path):
    graph = graph_of(randomised(Block(fused)), SHAPE)
    compressed = remove_channels(graph.plan, _random_half(graph, range(len(graph.groups))))
    path = tmp_path / "network.onnx"
    export_onnx(compressed, SHAPE, path)
    parity = check_parity(path, compressed, torch.randn(3, *SHAPE), None)
    assert parity.max_difference < 1e-5 * parity.max_score


class Own(nn.Module):
    """PyTorch's own attention, its tokens first or second."""

    def __init__(self, batch_first: bool, **options) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)
        x = x.transpose(1, 2) if self.batch_first else x.permute(2, 0, 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("batch_first", [True, False])
def test_multi_head_attention_is_its_layers(batch_first):
    graph = graph_of(randomised(Own(batch_first)), SHAPE)
    names = [layer.name for layer in graph.layers]
    assert names == ["patches", "attention.in_proj", "attention.out_proj", "head"]
    assert sizes(graph) == {"patches": 16, "attention.in_proj": 4, "attention.in_proj[1]": 4}
    assert graph.unused == {}
    assert error_of_half(graph) < TOLERANCE / 10


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_to_what_is_no_token_is_counted_as_it_stands(options):
    graph = graph_of(randomised(Own(True, **options)), SHAPE)
    assert [layer.name for layer in graph.layers] == ["patches", "head"]
    assert "MultiheadAttention" in str(graph.groups[0].reason)


def test_attention_across_two_tensors_has_three_layers():
    class Across(Own):
        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            return self.head(self.attention(x[:, :1], x, x, need_weights=False)[0].mean(1))

    graph = graph_of(randomised(Across(True)), SHAPE)
    attention = [layer.name for layer in graph.layers if layer.name.startswith("attention")]
    assert attention == [f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    assert sizes(graph) == {"patches": 16, "attention.q_proj": 4, "attention.v_proj": 4} | {
        "attention.out_proj": 16
    }
    assert graph.unused == {}
    assert error_of_half(graph) < TOLERANCE / 10


@pytest.mark.parametrize("norm_first", [True, False])
def test_pytorchs_transformer_layers_are_followed(norm_first):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(
                WIDTH, HEADS, 24, batch_first=True, norm_first=norm_first
            )
            self.patches = nn.Conv2d(3, WIDTH, 4, 4)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(WIDTH, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.encoder(self.patches(x).flatten(2).transpose(1, 2))
            return self.head(x.mean(1))

    graph = graph_of(randomised(Encoder()), SHAPE)
    assert sizes(graph)["encoder.layers.1.linear1"] == 24
    assert sizes(graph)["encoder.layers.1.self_attn.in_proj"] == 4
    assert sizes(graph)["patches"] == WIDTH
    assert error_of_half(graph) < TOLERANCE / 10


class Masked(Block):
    """Scores to which something is added."""

    def __init__(self, mask) -> None:
        super().__init__(self.masked)
        self.bias, self.mask = nn.Parameter(torch.zeros(1, HEADS, TOKENS, TOKENS)), mask

    def masked(self, qkv: Tensor) -> Tensor:
        q, k, v = (heads_of(part) for part in qkv.chunk(3, -1))
        return functional.scaled_dot_product_attention(q, k, v, **self.mask(self, qkv))


@pytest.mark.parametrize(
    "mask", [lambda self, _: {"attn_mask": self.bias}, lambda self, _: {"is_causal": True}]
)
def test_masks_and_biases_of_scores_hold_no_channels(mask):
    graph = graph_of(randomised(Masked(mask)), SHAPE)
    assert sizes(graph) == {"patches": WIDTH, "qkv": 4, "qkv[1]": 4, "wide": 24}
    assert error_of_half(graph) < TOLERANCE / 10


def test_mask_that_follows_from_channels_freezes_them():
    network = Masked(lambda self, qkv: {"attn_mask": qkv[:, None, :, :TOKENS]})
    graph = graph_of(randomised(network), SHAPE)
    assert "says what attention looks at" in {
        str(group.reason).partition(" (")[0] for group in graph.groups
    }
    assert error_of_half(graph) < TOLERANCE / 10


def test_heads_that_share_keys_are_counted_as_they_stand():
    class Shared(Block):
        def __init__(self) -> None:
            super().__init__(self.shared)

        def shared(self, qkv: Tensor) -> Tensor:
            q, k, v = (heads_of(part) for part in qkv.chunk(3, -1))
            return functional.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)

    graph = graph_of(randomised(Shared()), SHAPE)
    assert "reaches scaled_dot_product_attention" in str(graph.groups[1].reason)
    assert sizes(graph) == {"patches": WIDTH, "wide": 24, "qkv[2]": 16}  # of keys nothing reads
    assert error_of_half(graph) < TOLERANCE / 10


class OverChannels(nn.Module):
    """A number over the channels of a map meets all of them."""

    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(3, 8, 3), function
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(torch.relu(self.first(x))).mean((2, 3)))


def responses(x: Tensor) -> Tensor:
    """Global response normalisation (Woo et al. 2023, ConvNeXt V2, equations 1 to 3)."""
    energy = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x * (energy / (energy.mean(dim=1, keepdim=True) + 1e-6)) + x


@pytest.mark.parametrize(
    "function",
    [
        responses,
        lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
        lambda x: x - x.amax(1, keepdim=True),
        lambda x: x - x.amin(dim=1, keepdim=True),
        lambda x: x * torch.max(x, dim=1, keepdim=True)[0].sigmoid(),
        lambda x: x * x.min(1)[0].unsqueeze(1).sigmoid(),
        lambda x: x + x.mean((1, 2, 3), keepdim=True),
        lambda x: x / x.sum(1).unsqueeze(1).add(1.0),
        lambda x: functional.normalize(x, dim=1),
        lambda x: x * x.mean(1, keepdim=True).type_as(x),
    ],
)
def test_number_over_channels_counts_the_kept_ones(function):
    network = randomised(OverChannels(function))
    graph = graph_of(network, SHAPE)
    assert sizes(graph) == {"first": 8}
    keep = _random_half(graph, [0])
    compressed = remove_channels(graph.plan, keep)
    x = torch.randn(2, *SHAPE)
    kept = torch.from_numpy(keep[graph.plan.layers["first"].outputs]).nonzero().flatten()
    given = function(torch.relu(network.first(x))[:, kept]).mean((2, 3))
    expected = given @ network.last.weight[:, kept].T + network.last.bias
    assert torch.allclose(compressed(x), expected, atol=1e-5)


def windows(x: Tensor, size: int) -> Tensor:
    images, height, width, channels = x.shape
    x = x.view(images, height // size, size, width // size, size, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channels)


class Windows(nn.Module):
    """Attention in windows of two by two, shifted, under a mask that is made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8)
        self.qkv, self.project, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        images, height, width, channels = x.shape
        inside = windows(torch.roll(self.norm(x), (-1, -1), (1, 2)), 2)
        mask = x.new_zeros((height, width))
        mask[-1:, :] = 1
        mask[:, -1:] = 2
        mask = windows(mask[None, :, :, None], 2).squeeze(-1)
        mask = (mask[:, None] - mask[:, :, None]).abs() * -9
        q, k, v = self.qkv(inside).reshape(-1, 4, 3, 2, channels // 2).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (channels // 2) ** -0.5
        scores = scores.view(images, -1, 2, 4, 4) + mask[:, None]
        mixed = scores.view(-1, 2, 4, 4).softmax(-1) @ v
        mixed = self.project(mixed.transpose(1, 2).reshape(-1, 4, channels))
        mixed = mixed.view(images, height // 2, width // 2, 2, 2, channels)
        mixed = mixed.permute(0, 1, 3, 2, 4, 5).reshape(images, height, width, channels)
        return self.head((x + torch.roll(mixed, (1, 1), (1, 2))).mean((1, 2)))


def test_windows_shifts_and_masks_made_of_shapes_are_followed():
    network = randomised(Windows())
    graph = graph_of(network, SHAPE)
    assert sizes(graph) == {"patches": 8, "qkv": 4, "qkv[1]": 4}
    assert error_of_half(graph) < TOLERANCE / 10
    whole = sum(operator_prices(graph, IDENTITY, "macs", None))
    assert whole == count_macs(network, SHAPE)[""]


def test_table_made_of_the_number_of_channels_is_cut_with_them():
    class Places(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            return self.head((x * torch.arange(x.shape[2], device=x.device)).mean(1))

    graph = graph_of(randomised(Places(fused)), SHAPE)
    assert sizes(graph) == {"patches": WIDTH}
    assert error_of_half(graph) < TOLERANCE / 10


def test_layer_over_tokens_lets_channels_pass():
    class Mixer(nn.Module):
        """MLP-Mixer's (Tolstikhin et al. 2021): over tokens, then over channels."""

        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
            self.wide, self.narrow = nn.Linear(4, 6), nn.Linear(6, 4)
            self.deep, self.head = nn.Linear(8, 12), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            y = functional.gelu(self.wide(self.norm(x).transpose(1, 2)))
            x = x + self.narrow(y).transpose(1, 2)
            return self.head(torch.relu(self.deep(x)).mean(1))

    network = randomised(Mixer())
    graph = graph_of(network, SHAPE)
    assert sizes(graph) == {"patches": 8, "deep": 12}
    assert [layer.name for layer in graph.layers] == ["patches", "deep", "head"]
    assert error_of_half(graph) < TOLERANCE / 10
    whole = sum(operator_prices(graph, IDENTITY, "macs", None))
    assert whole == count_macs(network, SHAPE)[""]
    half = sum(operator_prices(graph, Strategy({"patches": 0.5}, {}), "macs", None))
    # Four channels less: of the patches 48 products at 4 places; of both layers over tokens 24
    # each; 12 at each of 4 tokens behind them.
    assert whole - half == 4 * (4 * 48 + 2 * 24 + 4 * 12)
    over_tokens = [info.count.fixed for info in graph.stored if info.name in ("wide", "narrow")]
    assert sum(over_tokens) == 24 + 6 + 24 + 4
