"""Whisper in torch: what a GPU computes in place of CTranslate2, from the same file of weights.

Tensors in, tensors out. Greedy decoding as CTranslate2 does it for us: the same suppressed tokens, the same
score, the same longest text. Nothing waits for the device but one look at the clips' ends every few tokens.
Source: Radford et al. 2022 (Whisper), section 2.2; Vaswani et al. 2017, section 3; pre-norm.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from services.audio_encoder import model_bin
from shared.device import copied

LOOK_TOKENS: Final = 8
"""Tokens written between two looks whether all clips have ended: a look waits for the device."""

PROMPT_TOKENS: Final = 4  # start, language, task, no timestamps
POSITION_STEP: Final = 16  # places of a cache come in such steps: few shapes, and whole tiles


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of those that are not words. never, never_first: those that may not be written, or not as the
    first. named: the id of a token by its name."""

    start: int
    end: int
    no_speech: int
    transcribe: int
    no_timestamps: int
    languages: tuple[int, ...]
    never: tuple[int, ...]
    never_first: tuple[int, ...]
    named: Callable[[str], int]

    @classmethod
    def of(cls, config: Path, named: Callable[[str], int]) -> Tokens:
        """config: CTranslate2's config.json."""
        told: dict[str, Sequence[int]] = json.loads(config.read_text())
        return cls(
            start=named("<|startoftranscript|>"),
            end=named("<|endoftext|>"),
            no_speech=named("<|nocaptions|>"),  # in later models <|nospeech|>
            transcribe=named("<|transcribe|>"),
            no_timestamps=named("<|notimestamps|>"),
            languages=tuple(told["lang_ids"]),
            never=tuple(told["suppress_ids"]),
            never_first=tuple(told["suppress_ids_begin"]),
            named=named,
        )


@dataclass(frozen=True, slots=True)
class Written:
    """What was written of a clip: ids without the end; the sum of their log probabilities and the end's, over
    their number; the probability that nobody speaks; the id of the language, 0 where nothing was wanted."""

    ids: list[int]
    score: float
    no_speech_probability: float
    language: int


@dataclass(frozen=True, slots=True)
class _Linear:
    """weight: (out, in). bias: (out,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Norm:
    gamma: Tensor
    beta: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.gamma.shape, self.gamma, self.beta)


@dataclass(frozen=True, slots=True)
class _Layer:
    """cross_*: of the decoder only. qkv, cross_kv: queries, keys and values in one product."""

    norm: _Norm
    qkv: _Linear
    out: _Linear
    inner_norm: _Norm
    inner: _Linear
    outer: _Linear
    cross_norm: _Norm | None = None
    cross_q: _Linear | None = None
    cross_kv: _Linear | None = None
    cross_out: _Linear | None = None


class WhisperNetwork:
    """The model on its device, in one type of floats. Any threads may be in it."""

    def __init__(self, folder: Path, tokens: Tokens, *, device: str, dtype: torch.dtype) -> None:
        spec, variables = model_bin.read(folder / "model.bin")
        if spec != "WhisperSpec":
            raise ValueError(f"model.bin holds a {spec}, no Whisper")
        if device != "cpu":
            # cuDNN's attention makes a plan for each shape, and batches have many.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._device, self._dtype = device, dtype
        self._lock = threading.Lock()
        self._tokens = tokens

        def tensor(name: str) -> Tensor:
            if name not in variables:
                raise ValueError(f"model.bin has no {name}")
            return torch.from_numpy(np.array(variables[name])).to(device, dtype)

        def linear(name: str) -> _Linear:
            return _Linear(tensor(f"{name}/weight"), tensor(f"{name}/bias"))

        def norm(name: str) -> _Norm:
            return _Norm(tensor(f"{name}/layer_norm/gamma"), tensor(f"{name}/layer_norm/beta"))

        def layer(name: str, cross: bool) -> _Layer:
            own, other, ffn = f"{name}/self_attention", f"{name}/attention", f"{name}/ffn"
            return _Layer(
                norm(own),
                linear(f"{own}/linear_0"),
                linear(f"{own}/linear_1"),
                norm(ffn),
                linear(f"{ffn}/linear_0"),
                linear(f"{ffn}/linear_1"),
                norm(other) if cross else None,
                linear(f"{other}/linear_0") if cross else None,
                linear(f"{other}/linear_1") if cross else None,
                linear(f"{other}/linear_2") if cross else None,
            )

        def layers(name: str, cross: bool) -> list[_Layer]:
            found: list[_Layer] = []
            while f"{name}/layer_{len(found)}/ffn/linear_0/weight" in variables:
                found.append(layer(f"{name}/layer_{len(found)}", cross))
            return found

        self._heads = int(variables["encoder/num_heads"])
        self._conv1, self._conv2 = linear("encoder/conv1"), linear("encoder/conv2")
        self._encoder_positions = tensor("encoder/position_encodings/encodings")
        self._encoder_layers, self._encoder_norm = layers("encoder", False), norm("encoder")
        self._embedding = tensor("decoder/embeddings/weight")
        self._decoder_positions = tensor("decoder/position_encodings/encodings")
        self._decoder_layers, self._decoder_norm = layers("decoder", True), norm("decoder")
        self._languages = torch.tensor(tokens.languages, device=device)
        self._prompt = torch.tensor(
            [tokens.start, 0, tokens.transcribe, tokens.no_timestamps], device=device
        )  # the second is each clip's own
        # Added to the logits: of every token, and of the first.
        self._barred = torch.zeros(2, self._embedding.shape[0], device=device, dtype=dtype)
        self._barred[:, list(tokens.never)] = -torch.inf
        self._barred[1, list(tokens.never_first)] = -torch.inf

    @torch.inference_mode()
    def encode(self, features: Tensor) -> Tensor:
        """(B, 80, frames) log-mel to (B, frames / 2, D) states, one per 20 ms."""
        x = features.to(self._dtype)
        x = functional.gelu(functional.conv1d(x, self._conv1.weight, self._conv1.bias, padding=1))
        x = functional.gelu(functional.conv1d(x, self._conv2.weight, self._conv2.bias, stride=2, padding=1))
        x = x.transpose(1, 2) + self._encoder_positions[: x.shape[2]]
        batch, states, width = x.shape
        for layer in self._encoder_layers:
            q, k, v = layer.qkv(layer.norm(x)).view(batch, states, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, k, v)
            x = x + layer.out(mixed.transpose(1, 2).reshape(batch, states, width))
            x = x + layer.outer(functional.gelu(layer.inner(layer.inner_norm(x))))
        return self._encoder_norm(x)

    @torch.inference_mode()
    def write(
        self, states: Tensor, wanted: Tensor, language: Callable[[Tensor, Tensor], Tensor], max_tokens: int
    ) -> Callable[[], list[Written]]:
        """The likeliest next token again and again, up to `max_tokens`; what is returned waits for the ids.

        states: (B, T, D). wanted: (B,) bool, on the device; of others nothing is written.
        language: from (B,) ids of the likeliest languages and (B,) their probabilities to (B,) ids.
        """
        with self._lock:
            text = _Text(self, states, wanted, max_tokens)
            text.turn()
            chances = text.logits[:, self._languages].float().softmax(1)
            probability, best = chances.max(1)
            languages = language(self._languages[best], probability)
            no_speech = text.logits.float().softmax(1)[:, self._tokens.no_speech]
            text.token.copy_(languages)
            for written in range(PROMPT_TOKENS - 2 + max_tokens):
                # The first look is a guess at what the shortest clips say.
                if written % LOOK_TOKENS == LOOK_TOKENS - 1 and bool(text.ended.all()):
                    break
                text.turn()
            numbers = torch.stack(
                [text.score / text.length, no_speech, text.length.float(), (languages * wanted).float()]
            )
            wait = copied(torch.cat([numbers, text.ids[:, PROMPT_TOKENS - 1 :].T.float()]).T.contiguous())

        def waited() -> list[Written]:
            rows = wait().tolist()
            return [
                Written([int(i) for i in ids[: int(length)]], score, silent, int(language))
                for score, silent, length, language, *ids in rows
            ]

        return waited


class _Text:
    """What is being written of a batch: everything a turn reads and writes, in place.

    token: (B,) the one read next. position: (1,) its place. logits: (B, V) of the last turn.
    ids: (B, max_tokens) written so far. length, score, ended: (B,) of each.
    """

    def __init__(self, network: WhisperNetwork, states: Tensor, wanted: Tensor, max_tokens: int) -> None:
        self._network = network
        device, dtype = network._device, network._dtype
        rows, heads = states.shape[0], network._heads
        width = states.shape[2] // heads
        places = -(-(PROMPT_TOKENS + max_tokens) // POSITION_STEP) * POSITION_STEP
        layers = len(network._decoder_layers)
        tokens = network._tokens
        self.token = torch.full((rows,), tokens.start, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.empty(rows, network._embedding.shape[0], dtype=dtype, device=device)
        self.ids = torch.zeros(rows, max_tokens + PROMPT_TOKENS, dtype=torch.int64, device=device)
        self.length = torch.zeros(rows, dtype=torch.int64, device=device)
        self.score = torch.zeros(rows, device=device)
        self.ended = ~wanted
        self._places = torch.arange(places, device=device)
        # Keys and values: of what was written, and of the sound, which are computed once.
        self._own = torch.zeros(layers, 2, rows, heads, places, width, dtype=dtype, device=device)
        self._sound = [
            layer.cross_kv(states).view(rows, -1, 2, heads, width).permute(2, 0, 3, 1, 4)
            for layer in network._decoder_layers
            if layer.cross_kv is not None
        ]

    def turn(self) -> None:
        """Read the token, write the next; the prompt's are given. Waits for nothing."""
        net, tokens = self._network, self._network._tokens
        torch.matmul(self._state(), net._embedding.T, out=self.logits)
        first = PROMPT_TOKENS - 1  # the place that the first word follows
        barred = net._barred.index_select(0, (self.position == first).long())
        allowed = (self.logits + barred).float()
        best = allowed.argmax(1)
        chance = allowed.gather(1, best[:, None])[:, 0] - allowed.logsumexp(1)
        ended = best == tokens.end
        writes = ~self.ended & (self.position >= first)
        self.score += chance * writes
        self.ids.index_copy_(1, self.position, best[:, None])
        self.length += writes & ~ended
        self.ended |= writes & ended
        given = net._prompt.index_select(0, (self.position + 1).clamp(max=first))
        self.token.copy_(torch.where(self.position < first, given, best))
        self.position += 1

    def _state(self) -> Tensor:
        """(B, D) of the last layer at the token."""
        net = self._network
        rows, heads = self.token.shape[0], net._heads
        x = net._embedding[self.token] + net._decoder_positions.index_select(0, self.position)
        seen = (self._places <= self.position)[None, None, None, :]
        for layer, own, (keys, values) in zip(net._decoder_layers, self._own, self._sound, strict=True):
            qkv = layer.qkv(layer.norm(x)).view(rows, 3, heads, 1, -1)
            own.index_copy_(3, self.position, qkv[:, 1:].transpose(0, 1))
            mixed = functional.scaled_dot_product_attention(qkv[:, 0], own[0], own[1], attn_mask=seen)
            x = x + layer.out(mixed.view(rows, -1))
            assert layer.cross_norm is not None
            assert layer.cross_q is not None
            assert layer.cross_out is not None
            q = layer.cross_q(layer.cross_norm(x)).view(rows, heads, 1, -1)
            mixed = functional.scaled_dot_product_attention(q, keys, values)
            x = x + layer.cross_out(mixed.view(rows, -1))
            x = x + layer.outer(functional.gelu(layer.inner(layer.inner_norm(x))))
        return net._decoder_norm(x)
