"""Linear layers in 8 bits are nearly those of 32, and nobody's neighbours matter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared import int8

pytestmark = pytest.mark.skipif(not int8.is_possible(), reason="no int8 products on this machine")


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(64, 48)


def states(*shape: int) -> Tensor:
    """With a channel a hundred times as large as the others, as language models have them."""
    found = torch.randn(*shape, 64, generator=torch.Generator().manual_seed(1))
    found[..., 7] *= 100
    return found


def error(linear: nn.Linear, quantised: nn.Module, given: Tensor) -> float:
    exact = linear(given)
    return float((quantised(given) - exact).norm() / exact.norm())


@torch.inference_mode()
def test_it_is_nearly_the_same_in_any_shape(linear: nn.Linear) -> None:
    quantised = int8.Int8Linear(linear, states(500).abs().amax(0))
    assert error(linear, quantised, states(20)) < 0.02
    assert error(linear, quantised, states(4, 5)) < 0.02
    assert error(linear, quantised, states(20) * 1_000) < 0.02


@torch.inference_mode()
def test_large_channels_leave_the_others_their_bits(linear: nn.Linear) -> None:
    small = states(20)
    small[:, 7] = 0.0

    def lost(quantised: nn.Module) -> float:
        """Of what the other channels say."""
        return float((quantised(states(20)) - linear(states(20))).norm() / linear(small).norm())

    blind = int8.Int8Linear(linear, torch.ones(64))
    told = int8.Int8Linear(linear, states(500).abs().amax(0))
    assert lost(blind) > 2 * lost(told)


@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours(linear: nn.Linear) -> None:
    quantised = int8.Int8Linear(linear, states(500).abs().amax(0))
    given = states(20)
    beside = torch.cat([given[3:4], 1_000 * given[:1]])
    assert torch.equal(quantised(given)[3], quantised(beside)[0])


@torch.inference_mode()
def test_sixteen_bits_between_do_not_overflow() -> None:
    linear = nn.Linear(64, 1)
    linear.weight.fill_(1.0)
    quantised = int8.Int8Linear(linear, torch.ones(64))
    given = torch.ones(2, 64)
    given[1] = -1.0
    torch.testing.assert_close(quantised(given), linear(given))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@torch.inference_mode()
def test_what_is_not_finite_stays_so_and_alone(linear: nn.Linear, broken: float) -> None:
    quantised = int8.Int8Linear(linear, states(500).abs().amax(0))
    given = states(3)
    expected = quantised(given)
    given[1, 5] = broken
    found = quantised(given)
    assert not found[1].isfinite().any()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@torch.inference_mode()
def test_nothing_but_zeros_gives_the_bias(linear: nn.Linear) -> None:
    quantised = int8.Int8Linear(linear, torch.zeros(64))
    assert torch.equal(quantised(torch.zeros(2, 64)), linear.bias.expand(2, -1))


def test_only_the_named_layers_are_replaced_and_sizes_come_from_the_run() -> None:
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module("one", nn.Linear(64, 64))
    network.add_module("other", nn.Linear(64, 8))
    with torch.inference_mode():
        exact = network(states(10))
        threads = torch.get_num_threads()
        int8.to_int8(network, ["one"], lambda: network(states(10)))
        assert torch.get_num_threads() == threads
        assert isinstance(network.get_submodule("one"), int8.Int8Linear)
        assert isinstance(network.get_submodule("other"), nn.Linear)
        found = network(states(10))
    assert float((found - exact).norm() / exact.norm()) < 0.02
