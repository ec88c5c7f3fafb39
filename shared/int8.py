"""Linear layers in 8 bits, for a CPU: two thirds of the time of float32 by AVX2.

Weights have a scale per output channel and inputs one per token, so that no text depends on its neighbours in
a batch. Input channels that are far larger than the others would leave these no bits: what makes them large
is moved into the weights.
Source: Xiao et al. 2023 (SmoothQuant), section 4; Dettmers et al. 2022 (LLM.int8()), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, nn

ENGINE = "fbgemm"
SMOOTHING = 0.65  # how much of an input channel's size its weights take; the paper's alpha
# Inputs have 7 bits: AVX2 adds two products of a u8 and an s8 in 16 bits, which 8 could overflow.
_LEVELS = 63
_WEIGHT_LEVELS = 127


def is_possible() -> bool:
    """Whether this machine's torch can compute so."""
    return ENGINE in torch.backends.quantized.supported_engines


class Int8Linear(nn.Module):
    """What `linear` computes, (.., in) to (.., out) float32, in integers. Inference only."""

    inverse: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, largest: Tensor) -> None:
        """largest: (in,) the largest magnitude that was seen of each input channel."""
        super().__init__()
        weight = linear.weight.detach()
        of_weights = weight.abs().amax(0).clamp_min(1e-5)
        smoothing = largest.clamp_min(1e-3) ** SMOOTHING / of_weights ** (1.0 - SMOOTHING)
        weight = weight * smoothing
        scales = (weight.abs().amax(1) / _WEIGHT_LEVELS).clamp_min(1e-8).double()
        rounded = torch.quantize_per_channel(
            weight, scales, torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8
        )
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = ENGINE
        try:
            self._packed = torch.ops.quantized.linear_prepack(rounded, None)
        finally:
            torch.backends.quantized.engine = before
        self.register_buffer("inverse", 1.0 / smoothing)
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, states: Tensor) -> Tensor:
        # Bound by memory: what can be is done in place, and a largest magnitude is found without a copy.
        states = states * self.inverse
        peaks = torch.maximum(states.amax(-1, keepdim=True), states.amin(-1, keepdim=True).neg_())
        peaks.clamp_min_(1e-12)
        states *= peaks.reciprocal()
        products = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            states, 1.0 / _LEVELS, _LEVELS + 1, self._packed
        )
        return cast(Tensor, products.mul_(peaks).add_(self.bias))


def to_int8(network: nn.Module, names: Iterable[str], run: Callable[[], object]) -> None:
    """Replace the linear layers of these last names, in place.

    run: puts ordinary inputs through the network, from which the sizes of the channels are taken. By one
    thread: cores are busy at the start of a system, and threads that share a product wait for each other.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _replace(network, frozenset(names), run)
    finally:
        torch.set_num_threads(threads)


def _replace(network: nn.Module, names: frozenset[str], run: Callable[[], object]) -> None:
    linears = {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in names
    }
    largest: dict[nn.Module, Tensor] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        own = inputs[0].abs().flatten(0, -2).amax(0)
        largest[module] = torch.maximum(largest[module], own) if module in largest else own

    hooks = [linear.register_forward_pre_hook(look) for linear in linears.values()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for path, linear in linears.items():
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, Int8Linear(linear, largest[linear]))
