"""Whether somebody speaks: Silero VAD 6 in torch, many clips at once.

Tensors in, tensors out; the weights are those that faster-whisper ships. The verdict is that of its
`get_speech_timestamps` with its defaults, as a test shows: one piece of 32 ms that is more likely speech than
not is enough there.
Source: github.com/snakers4/silero-vad, MIT; the shapes are those of the packaged ONNX graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.device import sent
from shared.weights import packaged

PIECE_SAMPLES: Final = 512  # 32 ms
CONTEXT_SAMPLES: Final = 64  # of the piece before
LEAST_PROBABILITY: Final = 0.5
_WIDTH: Final = 128
_BASIS_SAMPLES, _BASIS_STEP = 256, 128
_BINS = _BASIS_SAMPLES // 2 + 1
_STRIDES: Final = (1, 2, 2, 1)

_FILE = ("faster_whisper", "assets/silero_vad_v6.onnx")
_SHA256 = "4cbf549b8326f60f80f2536d9eefeb450a9abe83365a098031c89719f1be17d2"
_PREFIX_CONV: Final = "encoder.conv_layers"


class Silero:
    """The model on its device, in float32. Any threads may be in it; on a GPU one at a time."""

    def __init__(self, weights: Mapping[str, npt.NDArray[np.float32]], device: str) -> None:
        def tensor(name: str) -> Tensor:
            return torch.from_numpy(weights[name].copy()).to(device)

        self._basis = tensor("encoder.feature_extractor.forward_basis_buffer")
        self._convolutions = [
            (tensor(f"{_PREFIX_CONV}.{i}.weight"), tensor(f"{_PREFIX_CONV}.{i}.bias"), stride)
            for i, stride in enumerate(_STRIDES)
        ]
        self._last = (tensor("decoder.conv1d.weight")[0, :, 0], tensor("decoder.conv1d.bias"))
        self._lstm = nn.LSTM(_WIDTH, _WIDTH, batch_first=True)
        bias_in, bias_state = np.split(weights["onnx::LSTM_211"][0], 2)
        ours = {
            "weight_ih_l0": weights["onnx::LSTM_209"][0],
            "weight_hh_l0": weights["onnx::LSTM_210"][0],
            "bias_ih_l0": bias_in,
            "bias_hh_l0": bias_state,
        }
        self._lstm.load_state_dict({name: torch.from_numpy(_gates(array)) for name, array in ours.items()})
        self._lstm = self._lstm.to(device).eval().requires_grad_(False)

    @classmethod
    def load(cls, device: str) -> Silero:
        """Raises FileNotFoundError or ValueError when the weights cannot be had."""
        return cls(initialisers(packaged(*_FILE, _SHA256)), device)

    @torch.inference_mode()
    def spoken(self, waveforms: Tensor, samples: Sequence[int]) -> Tensor:
        """(B,) bool, on the waveforms' device.

        waveforms: (B, longest) float32, 0 behind a clip's own `samples`.
        """
        last = sent(torch.tensor([-(-own // PIECE_SAMPLES) for own in samples]), waveforms.device)
        pieces = max(samples) // PIECE_SAMPLES + 1  # there is always some silence at the end
        # A piece that is silence alone is behind the end, and what it sounds like is not asked.
        asked = torch.arange(pieces, device=waveforms.device) < last[:, None]
        likely = self.probabilities(waveforms, samples)
        return ((likely >= LEAST_PROBABILITY) & asked).any(1)

    @torch.inference_mode()
    def probabilities(self, waveforms: Tensor, samples: Sequence[int]) -> Tensor:
        """(B, pieces) that somebody speaks in each piece; behind a clip's end they mean nothing."""
        batch, longest = waveforms.shape
        pieces = max(samples) // PIECE_SAMPLES + 1
        padded = functional.pad(waveforms, (CONTEXT_SAMPLES, max(0, pieces * PIECE_SAMPLES - longest)))
        # faster-whisper silences the last samples of each clip's last piece; so do we.
        ends = torch.tensor([(own // PIECE_SAMPLES + 1) * PIECE_SAMPLES for own in samples])
        tail = sent(ends[:, None] + torch.arange(CONTEXT_SAMPLES), waveforms.device)
        padded.scatter_(1, tail, 0.0)
        heard = padded.unfold(1, CONTEXT_SAMPLES + PIECE_SAMPLES, PIECE_SAMPLES)[:, :pieces]
        x = functional.pad(heard.flatten(0, 1)[:, None], (_BASIS_SAMPLES // 2,) * 2, mode="reflect")
        with _whole_floats(x.device):
            # The first frame is left out, as in the graph.
            parts = functional.conv1d(x, self._basis, stride=_BASIS_STEP)[..., 1:]
            x = (parts[:, :_BINS].square() + parts[:, _BINS:].square()).sqrt()
            for weight, bias, stride in self._convolutions:
                x = functional.relu(functional.conv1d(x, weight, bias, stride=stride, padding=1))
            x, _ = self._lstm(x.view(batch, pieces, _WIDTH))
        weight, bias = self._last
        return torch.sigmoid(functional.relu(x) @ weight + bias)


def _whole_floats(device: torch.device) -> AbstractContextManager[None]:
    """Convolutions and LSTMs of a GPU in float32, not in its 19 bits: a verdict hangs on a threshold."""
    if device.type == "cpu":
        return nullcontext()
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled,
        benchmark=torch.backends.cudnn.benchmark,
        deterministic=torch.backends.cudnn.deterministic,
        allow_tf32=False,
    )
    return flags


def _gates(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """From ONNX's order of an LSTM's gates (input, output, forget, cell) to torch's (input, forget, cell,
    output)."""
    i, o, f, c = np.split(array, 4)
    return np.concatenate([i, f, c, o])


def initialisers(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The float32 tensors of an ONNX file by name: as much of protobuf as that takes, and no graph is run.

    Raises ValueError for a file that is none.
    Source: onnx.proto, messages ModelProto, GraphProto and TensorProto.
    """
    found = {}
    for field, graph in _fields(path.read_bytes()):
        for inner, tensor in _fields(graph) if field == 7 and isinstance(graph, bytes) else ():
            if inner != 5 or not isinstance(tensor, bytes):
                continue
            shape: list[int] = []
            name, raw, kind = "", b"", 0
            for number, value in _fields(tensor):
                if number == 1 and isinstance(value, int):
                    shape.append(value)
                elif number == 1 and isinstance(value, bytes):
                    shape += _varints(value)
                elif number == 2 and isinstance(value, int):
                    kind = value
                elif number == 8 and isinstance(value, bytes):
                    name = value.decode()
                elif number == 9 and isinstance(value, bytes):
                    raw = value
            if kind == 1:  # float32
                found[name] = np.frombuffer(raw, "<f4").reshape(shape)
    return found


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protobuf message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"not an ONNX file: wire type {wire}")
        if at + length > len(message):
            raise ValueError("the ONNX file breaks off")
        yield number, message[at : at + length]
        at += length


def _varints(packed: bytes) -> list[int]:
    found, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        found.append(value)
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Source: the protobuf encoding, "Base 128 Varints"."""
    value = shift = 0
    while at < len(message):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("the ONNX file breaks off")
