"""Whisper in torch: what a GPU computes in place of CTranslate2, from the same file of weights.

Tensors in, tensors out. Greedy decoding as CTranslate2 does it for us: the same suppressed tokens, the same
score, the same longest text. Nothing waits for the device but one look at the clips' ends every few tokens.
Source: Radford et al. 2022 (Whisper), section 2.2; Vaswani et al. 2017, section 3; pre-norm.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from services.audio_encoder import model_bin
from shared.device import copied

LOOK_TURNS: Final = 8
"""Tokens read between two looks whether all clips have ended: a look waits for the device."""

RECORDED_SHARES: Final = (1, 4, 16)
"""Of the largest batch: these are the sizes that launches are recorded for; a batch has the next larger."""

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
        self._texts: list[_Text] = []
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
        # In one piece, or every layer would have to make it so.
        x = (x.transpose(1, 2) + self._encoder_positions[: x.shape[2]]).contiguous()
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
        rows, length, _ = states.shape
        with self._lock:
            text = self._recorded(rows, length, max_tokens) or _Text(self, rows, length, max_tokens)
            text.begin(states, wanted)
            text.turn()
            chances = text.logits[:, self._languages].float().softmax(1)
            probability, best = (part[:rows] for part in chances.max(1))
            languages = language(self._languages[best], probability)
            no_speech = text.logits[:rows].float().softmax(1)[:, self._tokens.no_speech]
            text.token[:rows] = languages
            for turn in range(1, PROMPT_TOKENS - 1 + max_tokens):
                if turn % LOOK_TURNS == 0 and bool(text.ended.all()):
                    break
                text.turn()
            score, tokens, ids = (part[:rows] for part in (text.score, text.length, text.ids))
            numbers = [score / tokens, no_speech, tokens.float(), (languages * wanted).float()]
            words = ids[:, PROMPT_TOKENS - 1 :].float()
            wait = copied(torch.cat([torch.stack(numbers, 1), words], 1))

        def waited() -> list[Written]:
            return [
                Written([int(i) for i in ids[: int(length)]], score, silent, int(language))
                for score, silent, length, language, *ids in wait().tolist()
            ]

        return waited

    @torch.inference_mode()
    def record(self, shapes: Iterable[tuple[int, int, int]]) -> None:
        """Record the launches of a turn on a GPU, for batches of at most so many clips of so many states, of
        which so many tokens are written at most: one call then does what a hundred did, and the interpreter
        is free for whoever decodes the next clips.

        Raises what CUDA does when it cannot be done.
        """
        shapes = list(shapes)
        layers, width = len(self._decoder_layers), self._embedding.shape[1]
        # One batch is written at a time, so they share the memory of the largest part of it.
        most = max(rows * length for rows, length, _ in shapes)
        sound = torch.zeros(most * layers * 2 * width, dtype=self._dtype, device=self._device)
        pool = torch.cuda.graph_pool_handle()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # one: cuBLAS keeps 32 MB for each
        for most_rows, length, max_tokens in shapes:
            for rows in sorted({-(-most_rows // share) for share in RECORDED_SHARES}):
                text = _Text(self, rows, length, max_tokens, sound)
                text.record(pool, aside)
                self._texts.append(text)

    def _recorded(self, rows: int, length: int, max_tokens: int) -> _Text | None:
        """The smallest recorded that these fit in."""
        fitting = (
            text
            for text in self._texts
            if text.rows >= rows and (text.sound_length, text.max_tokens) == (length, max_tokens)
        )
        return min(fitting, key=lambda text: text.rows, default=None)


class _Text:
    """What is being written of a batch: everything a turn reads and writes, in place.

    token: (B,) the one read next. position: (1,) its place. logits: (B, V) of the last turn.
    ids: (B, places) written so far. length, score, ended: (B,) of each.
    """

    def __init__(
        self,
        network: WhisperNetwork,
        rows: int,
        sound_length: int,
        max_tokens: int,
        sound: Tensor | None = None,
    ) -> None:
        """sound: memory for the keys and values of the sound, at least what they take."""
        self._network = network
        self.rows, self.sound_length, self.max_tokens = rows, sound_length, max_tokens
        device, dtype, heads = network._device, network._dtype, network._heads
        vocabulary, width = network._embedding.shape
        places = -(-(PROMPT_TOKENS + max_tokens) // POSITION_STEP) * POSITION_STEP
        layers = len(network._decoder_layers)
        self.token = torch.zeros(rows, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(rows, vocabulary, dtype=dtype, device=device)
        self.ids = torch.zeros(rows, places, dtype=torch.int64, device=device)
        self.length = torch.zeros(rows, dtype=torch.int64, device=device)
        self.score = torch.zeros(rows, device=device)
        self.ended = torch.ones(rows, dtype=torch.bool, device=device)
        self._places = torch.arange(places, device=device)
        self._nothing = torch.zeros(places, dtype=dtype, device=device)
        # Keys and values: of what was written, and of the sound, which are computed once.
        self._own = torch.zeros(layers, 2, rows, heads, places, width // heads, dtype=dtype, device=device)
        if sound is None:
            sound = torch.zeros(layers * rows * sound_length * 2 * width, dtype=dtype, device=device)
        shape = (layers, rows, sound_length, 2, heads, width // heads)
        self._sound = sound[: math.prod(shape)].view(shape)
        self._replay: Callable[[], None] | None = None

    def begin(self, states: Tensor, wanted: Tensor) -> None:
        rows = len(states)
        for layer, sound in zip(self._network._decoder_layers, self._sound, strict=True):
            assert layer.cross_kv is not None
            sound[:rows] = layer.cross_kv(states).view(sound[:rows].shape)
        self.token.fill_(self._network._tokens.start)
        # Keys and values too: what is not to be seen counts 0 times, but 0 times NaN would stay NaN for good.
        for buffer in (self.position, self.ids, self.length, self.score, self._own):
            buffer.zero_()
        self.ended.fill_(True)
        self.ended[:rows] = ~wanted

    def record(self, pool: Any, aside: Any) -> None:
        """From here on a turn is one launch. pool: of memory, aside: a stream; the same for all."""
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._turn()  # what libraries choose and keep at their first call, they do here
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            self._turn()
        self._replay = graph.replay

    def turn(self) -> None:
        """Read the token, write the next; the prompt's are given. Waits for nothing."""
        (self._replay or self._turn)()

    def _turn(self) -> None:
        net, tokens = self._network, self._network._tokens
        torch.matmul(self._state(), net._embedding.T, out=self.logits)
        first = PROMPT_TOKENS - 1  # the place that the first word follows
        barred = net._barred.index_select(0, (self.position == first).long())
        allowed = (self.logits + barred).float()
        best = allowed.argmax(1)
        chance = allowed.gather(1, best[:, None])[:, 0] - allowed.logsumexp(1)
        ended = best == tokens.end
        writes = ~self.ended & (self.position >= first)
        self.score += torch.where(writes, chance, 0.0)
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
        # As numbers: of a mask each layer would make them again, by three launches.
        seen = self._nothing.masked_fill(self._places > self.position, -torch.inf)[None, None, None, :]
        for layer, own, sound in zip(net._decoder_layers, self._own, self._sound, strict=True):
            qkv = layer.qkv(layer.norm(x)).view(rows, 3, heads, 1, -1)
            own.index_copy_(3, self.position, qkv[:, 1:].transpose(0, 1))
            mixed = functional.scaled_dot_product_attention(qkv[:, 0], own[0], own[1], attn_mask=seen)
            x = x + layer.out(mixed.reshape(rows, -1))
            assert layer.cross_norm is not None
            assert layer.cross_q is not None
            assert layer.cross_out is not None
            q = layer.cross_q(layer.cross_norm(x)).view(rows, heads, 1, -1)
            keys, values = sound.permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(q, keys, values)
            x = x + layer.cross_out(mixed.reshape(rows, -1))
            x = x + layer.outer(functional.gelu(layer.inner(layer.inner_norm(x))))
        return net._decoder_norm(x)
