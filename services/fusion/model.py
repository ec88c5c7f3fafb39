"""The fusion model: the vectors a post has, of whichever modalities, to one verdict. Numpy in, verdicts out.

Knows no Kafka, no database, no encoder. Training lives in `services.training` and calls the network in here.

    vectors -> (standardise, project) one token per slot -> a strategy makes one state of them -> heads

A slot is a modality by its name in lower case ("text", "image", "audio", "speech"); a model trained on other
features may have others. Every network answers for every subset of its slots, the empty one included.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from math import factorial
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from services.fusion.verdicts import Verdicts
from shared.device import choose_device
from shared.messages import Label, Modality, Vector
from shared.weights import sha256_of

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SENTIMENTS = ("negative", "neutral", "positive")
EMOTIONS = ("anger", "joy", "sadness", "fear", "surprise", "disgust", "neutral")
STRATEGIES = ("concat", "weighted", "attention", "tensor")
HEADS = ("mlp", "svm", "cnn", "rnn")
MAX_SLOTS = 8  # 2**slots passes explain a verdict

_LABELS = (Label.NEGATIVE, Label.NEUTRAL, Label.POSITIVE)  # of SENTIMENTS

_MAX_ROWS = 16_384  # rows through the network at once: bounds memory, costs no speed

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a fusion network.

    name: of the model, as it appears in verdicts. slots: width of each slot's vectors, in the order of the
    mask's bits. classes: the labels. emotions: () for a model without that head. width: of a token.
    layers, attention_heads: of the attention strategy. rank: of the tensor strategy. wide: a slot whose
    vectors also speak to the classes past the strategy, by one linear layer; "" for none.
    """

    slots: Mapping[str, int]
    classes: tuple[str, ...] = SENTIMENTS
    emotions: tuple[str, ...] = ()
    name: str = "crowdtone-fusion"
    strategy: str = "attention"
    head: str = "mlp"
    width: int = 128
    layers: int = 2
    attention_heads: int = 4
    rank: int = 8
    dropout: float = 0.1
    wide: str = ""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy {self.strategy!r} is none of {', '.join(STRATEGIES)}")
        if self.head not in HEADS:
            raise ValueError(f"head {self.head!r} is none of {', '.join(HEADS)}")
        if not 1 <= len(self.slots) <= MAX_SLOTS:
            raise ValueError(f"{len(self.slots)} slots; 1 to {MAX_SLOTS} are possible")
        if len(self.classes) < 2:
            raise ValueError("a classifier needs two classes or more")
        if self.wide and self.wide not in self.slots:
            raise ValueError(f"wide {self.wide!r} is none of the slots {', '.join(self.slots)}")


class Fused(NamedTuple):
    """What a strategy makes of a post: one state (B, d), and the sequence (B, T, d) it came from, masked (B,
    T)."""

    state: Tensor
    sequence: Tensor
    mask: Tensor


class Concat(nn.Module):
    """All tokens side by side, zeros for the absent, with the mask: one linear layer mixes them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.slots = len(config.slots)
        self.mix = nn.Linear(self.slots * (config.width + 1), config.width)

    def forward(self, tokens: Tensor, present: Tensor) -> Fused:
        flat = torch.cat([tokens.flatten(1), present.to(tokens.dtype)], 1)
        return Fused(functional.gelu(self.mix(flat)), tokens, present)

    def states(self, tokens: Tensor, columns: Sequence[int], subsets: Tensor) -> Tensor:
        """(S, N, d): as `forward`, for `subsets` (S, k) of the slots `columns` with `tokens` (N, k, d).

        The layer is linear, so what a slot brings is computed once, and a subset is a sum.
        """
        rows, _, width = tokens.shape
        blocks, marks = self.mix.weight[:, : self.slots * width], self.mix.weight[:, self.slots * width :]
        brought = torch.stack(
            [
                functional.linear(
                    tokens[:, place], blocks[:, column * width : (column + 1) * width], marks[:, column]
                )
                for place, column in enumerate(columns)
            ]
        )
        mixed = (subsets.to(tokens.dtype) @ brought.flatten(1)).view(-1, rows, self.mix.out_features)
        return functional.gelu(mixed + self.mix.bias)


class Weighted(nn.Module):
    """A sum of the tokens, each weighted by a gate that reads it; a learned token stands in where there is
    none.

    Source: Arevalo et al. 2017 (gated multimodal units), section 3, with a softmax over the slots.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.randn(config.width) * 0.02)
        self.gate = nn.Linear(config.width, 1)

    def forward(self, tokens: Tensor, present: Tensor) -> Fused:
        tokens, present = _with_token(self.prior, tokens, present)
        weights = self.gate(tokens)[:, :, 0].masked_fill(~present, float("-inf")).softmax(1)
        weighted = tokens * weights[:, :, None]
        return Fused(weighted.sum(1), weighted, present)


class AttentionLayer(nn.Module):
    """Self-attention and feed-forward with norms before each.

    Source: Vaswani et al. 2017; Xiong et al. 2020.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.attention_heads
        self.dropout_p = config.dropout
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.inner_norm = nn.LayerNorm(config.width)
        self.inner = nn.Linear(config.width, 2 * config.width)
        self.outer = nn.Linear(2 * config.width, config.width)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        return self.mixed(states, self.qkv(self.attention_norm(states)), mask)

    def mixed(self, states: Tensor, qkv: Tensor, mask: Tensor | None = None) -> Tensor:
        """The rest of the layer for `states` (B, T, d), given queries, keys and values (B, T', 3 d) of all
        places: those of `states` come first."""
        rows, length, width = states.shape
        q, k, v = qkv.view(rows, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q[:, :, :length], k, v, attn_mask=mask)
        mixed = self.attention_out(mixed.transpose(1, 2).reshape(rows, length, width))
        states = states + functional.dropout(mixed, self.dropout_p, self.training)
        mixed = self.outer(functional.gelu(self.inner(self.inner_norm(states))))
        return states + functional.dropout(mixed, self.dropout_p, self.training)


class Attention(nn.Module):
    """A transformer over the tokens that are there and one of its own, whose last state is the post's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.randn(config.width) * 0.02)
        self.layers = nn.ModuleList(AttentionLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, present: Tensor) -> Fused:
        # Slots that no row of the batch has cost nothing: most posts are text alone.
        used = present.any(0)
        states, mask = _with_token(self.prior, tokens[:, used], present[:, used])
        attended = None if bool(mask.all()) else mask[:, None, None, :]
        for layer in self.layers:
            states = layer(states, attended)
        states = self.norm(states)
        return Fused(states[:, 0], states, mask)

    def states(self, tokens: Tensor, columns: Sequence[int], subsets: Tensor) -> Tensor:
        """(S, N, d): as `forward`, for `subsets` (S, k) of the slots `columns` with `tokens` (N, k, d).

        Queries, keys and values of the first layer are those of every subset; of the last layer only the
        first state is wanted.
        """
        layers = cast(Sequence[AttentionLayer], self.layers)

        def after_own(first: Tensor, others: Tensor) -> Tensor:
            return torch.cat([first.expand(len(tokens), 1, -1), others], 1)

        def queries_keys_values(states: Tensor) -> Tensor:
            return cast(Tensor, layers[0].qkv(layers[0].attention_norm(states)))

        sequence = after_own(self.prior, tokens)
        shared = after_own(queries_keys_values(self.prior), queries_keys_values(tokens))
        found = []
        for subset in subsets:
            there = functional.pad(subset, (1, 0), value=True)
            states, qkv = sequence[:, there], shared[:, there]
            for layer, after in pairwise(layers):
                states = layer.mixed(states, qkv)
                qkv = after.qkv(after.attention_norm(states))
            found.append(layers[-1].mixed(states[:, :1], qkv)[:, 0])
        return cast(Tensor, self.norm(torch.stack(found)))


class LowRankTensor(nn.Module):
    """The outer product of all tokens, each with a 1 appended, through a weight tensor of low rank.

    An absent slot's token is zero, so its factor is what it says when silent: the bias.
    Source: Liu et al. 2018 (low-rank multimodal fusion), section 3.2.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.shape = (config.rank, config.width)
        self.factors = nn.ModuleList(
            nn.Linear(config.width, config.rank * config.width) for _ in config.slots
        )
        for factor in self.factors:
            assert isinstance(factor, nn.Linear)
            nn.init.ones_(factor.bias)  # at the start an absent slot multiplies by one: it changes nothing
        self.rank_weights = nn.Parameter(torch.randn(config.rank) * config.rank**-0.5)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, present: Tensor) -> Fused:
        product = torch.ones(len(tokens), *self.shape, device=tokens.device, dtype=tokens.dtype)
        for slot, factor in enumerate(self.factors):
            product = product * factor(tokens[:, slot]).view(-1, *self.shape)
        product = product * self.rank_weights[:, None]
        mask = torch.ones(product.shape[:2], dtype=torch.bool, device=tokens.device)
        return Fused(self.norm(product.sum(1)), product, mask)


def _with_token(token: Tensor, tokens: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The sequence with `token` put before it, and its mask."""
    first = token.expand(len(tokens), 1, -1)
    always = torch.ones(len(tokens), 1, dtype=torch.bool, device=present.device)
    return torch.cat([first, tokens], 1), torch.cat([always, present], 1)


class MlpHead(nn.Module):
    """One hidden layer over the fused state."""

    def __init__(self, config: ModelConfig, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.width, outputs),
        )

    def forward(self, fused: Fused) -> Tensor:
        return cast(Tensor, self.layers(fused.state))


class SvmHead(nn.Module):
    """A linear classifier over the fused state; training gives it the loss of Crammer and Singer 2001."""

    def __init__(self, config: ModelConfig, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(config.width, outputs)

    def forward(self, fused: Fused) -> Tensor:
        return cast(Tensor, self.linear(fused.state))


class CnnHead(nn.Module):
    """A convolution of width 3 over the sequence, its maximum over the places, and the fused state beside it.

    Source: Kim 2014 (convolutional networks for sentence classification), section 2.
    """

    def __init__(self, config: ModelConfig, outputs: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(config.width, config.width, 3, padding=1)
        self.linear = nn.Linear(2 * config.width, outputs)

    def forward(self, fused: Fused) -> Tensor:
        masked = fused.sequence * fused.mask[:, :, None]
        if masked.shape[1] == 0:
            pooled = torch.zeros_like(fused.state)
        else:
            pooled = functional.relu(self.convolution(masked.transpose(1, 2))).amax(2)
        return cast(Tensor, self.linear(torch.cat([pooled, fused.state], 1)))


class RnnHead(nn.Module):
    """A GRU that reads the sequence, starting from the fused state; absent places leave its state alone."""

    def __init__(self, config: ModelConfig, outputs: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(config.width, config.width)
        self.linear = nn.Linear(config.width, outputs)

    def forward(self, fused: Fused) -> Tensor:
        state = fused.state
        for place in range(fused.sequence.shape[1]):
            seen = fused.mask[:, place, None]
            state = torch.where(seen, self.cell(fused.sequence[:, place], state), state)
        return cast(Tensor, self.linear(state))


_STRATEGIES = {"concat": Concat, "weighted": Weighted, "attention": Attention, "tensor": LowRankTensor}
_HEADS = {"mlp": MlpHead, "svm": SvmHead, "cnn": CnnHead, "rnn": RnnHead}


class Group(NamedTuple):
    """Posts that all have the slots `columns`, by their tokens (N, k, d); subsets (S, k) of those slots."""

    tokens: Tensor
    columns: Sequence[int]
    subsets: Tensor


class FusionNetwork(nn.Module):
    """Tokens, strategy and heads. `means` and `scales` standardise each slot; training sets them from its
    data.

    The wide part is that of Cheng et al. 2016 ("Wide & Deep Learning"), section 3.1, over one slot.
    """

    temperatures: Tensor
    emotion_temperatures: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.projections = nn.ModuleDict()
        for slot, dimension in config.slots.items():
            self.register_buffer(f"mean_{slot}", torch.zeros(dimension))
            self.register_buffer(f"scale_{slot}", torch.ones(dimension))
            self.projections[slot] = nn.Sequential(
                nn.Dropout(config.dropout), nn.Linear(dimension, config.width), nn.LayerNorm(config.width)
            )
        self.kinds = nn.Parameter(torch.randn(len(config.slots), config.width) * 0.02)
        self.fuse = _STRATEGIES[config.strategy](config)
        self.classify = _HEADS[config.head](config, len(config.classes))
        self.feel = MlpHead(config, len(config.emotions)) if config.emotions else None
        self.wide = nn.Linear(config.slots[config.wide], len(config.classes)) if config.wide else None
        self.folded = False
        # One temperature per subset of the slots, the mask read as a binary number (first slot: bit 0).
        self.register_buffer("temperatures", torch.ones(2 ** len(config.slots)))
        if config.emotions:
            self.register_buffer("emotion_temperatures", torch.ones(2 ** len(config.slots)))

    def standardise(self, slot: str, mean: Tensor, deviation: Tensor) -> None:
        """Fix the centre and spread, both (D,), of a slot's vectors."""
        self.get_buffer(f"mean_{slot}").copy_(mean)
        self.get_buffer(f"scale_{slot}").copy_(1.0 / deviation.clamp_min(1e-6))

    def fold(self) -> None:
        """Take standardising into the projections, and each slot's kind into the norm after them: the same
        tokens, without a pass over the vectors. Nobody trains the network after that."""
        with torch.no_grad():
            for column, slot in enumerate(self.config.slots):
                _, projection, norm = cast(nn.Sequential, self.projections[slot])
                assert isinstance(projection, nn.Linear)
                assert isinstance(norm, nn.LayerNorm)
                mean, scale = self.get_buffer(f"mean_{slot}"), self.get_buffer(f"scale_{slot}")
                projection.weight.mul_(scale)
                projection.bias.sub_(projection.weight @ mean)
                norm.bias.add_(self.kinds[column])
        self.folded = True

    def start_from(self, weights: Tensor, bias: Tensor) -> None:
        """Begin with the wide part alone, weights (classes, D) and bias (classes,). Learning adds to it, and
        leaves it as it is."""
        assert self.wide is not None
        with torch.no_grad():
            self.wide.weight.copy_(weights)
            self.wide.bias.copy_(bias)
            last = [layer for layer in self.classify.modules() if isinstance(layer, nn.Linear)][-1]
            last.weight.zero_()
            last.bias.zero_()
        self.wide.requires_grad_(False)

    def project(self, vectors: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """(B, slots, d) tokens of each slot's (B, D) vectors; zero where `present` (B, slots) is not, or not
        given. Of a network with a wide part, d is the width and the classes: what the slot says of them."""
        said = 0 if self.wide is None else len(self.config.classes)
        shape = (len(present), len(self.config.slots), self.config.width + said)
        tokens = torch.zeros(shape, device=present.device)
        for column, slot in enumerate(self.config.slots):
            if slot in vectors:
                tokens[:, column] = self.token(column, slot, vectors[slot]) * present[:, column, None]
        return tokens

    def token(self, column: int, slot: str, vectors: Tensor) -> Tensor:
        """(B, d) tokens of (B, D) vectors of one slot."""
        token: Tensor
        if self.folded:
            token = self.projections[slot](vectors.float())
        else:
            centred = vectors.float() - self.get_buffer(f"mean_{slot}")
            token = self.projections[slot](centred * self.get_buffer(f"scale_{slot}")) + self.kinds[column]
        if self.wide is None:
            return token
        if slot == self.config.wide:
            return torch.cat([token, self.wide(vectors.float())], 1)
        return functional.pad(token, (0, len(self.config.classes)))

    def forward(self, tokens: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, classes) and emotion logits (B, emotions) of the tokens that `present` (B, slots) lets
        through."""
        shown = tokens * present[:, :, None]
        fused = self.fuse(shown[:, :, : self.config.width], present)
        logits = self.classify(fused)
        if self.wide is not None:
            logits = logits + shown[:, :, self.config.width :].sum(1)
        return logits, self.feel(fused) if self.feel is not None else None

    def of_subsets(self, groups: Sequence[Group]) -> list[tuple[Tensor, Tensor | None]]:
        """Of each group logits (S, N, classes) of every subset, and emotion logits (N, emotions) of the last.

        What comes after the strategy is computed for all groups at once: fewer and larger products.
        """
        if not (isinstance(self.fuse, Concat | Attention) and isinstance(self.classify, MlpHead | SvmHead)):
            return [self._one_by_one(group) for group in groups]
        states = [
            self.fuse.states(tokens[:, :, : self.config.width], columns, subsets)
            for tokens, columns, subsets in groups
        ]
        logits = _together(self.classify, states)
        if self.wide is not None:
            logits = [
                some
                + torch.einsum(
                    "sk,bkc->sbc", group.subsets.to(some.dtype), group.tokens[:, :, self.config.width :]
                )
                for some, group in zip(logits, groups, strict=True)
            ]
        if self.feel is None:
            return [(some, None) for some in logits]
        return list(zip(logits, _together(self.feel, [some[-1] for some in states]), strict=True))

    def _one_by_one(self, group: Group) -> tuple[Tensor, Tensor | None]:
        tokens, columns, subsets = group
        whole = tokens.new_zeros(len(tokens), len(self.config.slots), tokens.shape[2])
        whole[:, columns] = tokens
        masks = subsets.new_zeros(len(subsets), len(self.config.slots))
        masks[:, columns] = subsets
        # One subset at a time keeps every row of a pass alike, so that absent slots are not computed at all.
        answers = [self(whole, mask.expand(len(tokens), -1)) for mask in masks]
        return torch.stack([logits for logits, _ in answers]), answers[-1][1]

    def calibrated(self, logits: Tensor, present: Tensor) -> Tensor:
        """Probabilities (B, classes): the softmax at the temperature of each row's subset. Source: Guo et al.
        2017."""
        return functional.softmax(logits / self.temperatures[subset_codes(present)][:, None], 1)

    def calibrated_emotions(self, logits: Tensor, present: Tensor) -> Tensor:
        """Probabilities (B, emotions) of emotion logits, likewise."""
        return functional.softmax(logits / self.emotion_temperatures[subset_codes(present)][:, None], 1)


def _together(head: nn.Module, states: Sequence[Tensor]) -> list[Tensor]:
    """What a head that reads the state alone says of each of `states` (.., d), in one pass."""
    flat = torch.cat([some.flatten(0, -2) for some in states])
    said = head(Fused(flat, flat[:, None], flat.new_ones(len(flat), 1)))
    shapes = [some.shape[:-1] for some in states]
    parts = torch.split(said, [shape.numel() for shape in shapes])
    return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]


def subset_codes(present: Tensor) -> Tensor:
    """(B,) int64: each row of a (B, slots) mask as a binary number, the first slot being bit 0."""
    return (present.long() << torch.arange(present.shape[1], device=present.device)).sum(1)


def save(network: FusionNetwork, folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Write model.safetensors and config.json. facts: what else config.json should tell, such as encoder
    versions."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner alone
    config = asdict(network.config)
    (folder / CONFIG).write_text(json.dumps({"network": config, "facts": dict(facts or {})}, indent=1) + "\n")


def load_network(folder: Path) -> FusionNetwork:
    """Raises FileNotFoundError without a model in `folder`, ValueError when weights and config do not belong
    together."""
    raw = json.loads((folder / CONFIG).read_text())["network"]
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()
    }
    try:
        network = FusionNetwork(ModelConfig(**known))
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"the model in {folder} is not one of this version: {error}") from error
    return network.eval()


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a network says of a batch, in numbers.

    probabilities: (N, classes) float64, calibrated. emotions: (N, emotions), no columns without that head.
    contributions: (N, slots) exact Shapley values of `explained`, zero for absent slots.
    explained, prior: (N,) the value explained, and the same of a post with nothing: prior + contributions =
    explained.
    """

    probabilities: Doubles
    emotions: Doubles
    contributions: Doubles
    explained: Doubles
    prior: Doubles


class FusionModel:
    """A trained network behind the numpy surface that the service and the commands use.

    encoders: model version of the encoder behind each modality's vectors in training; empty where unknown.
    """

    def __init__(
        self,
        network: FusionNetwork,
        model_version: str,
        device: str = "cpu",
        encoders: Mapping[Modality, str] = MappingProxyType({}),
    ) -> None:
        self.network = deepcopy(network).to(device).eval()
        self.network.fold()
        self.model_version = model_version
        self.encoders = encoders
        self.config = network.config
        self.slots = tuple(network.config.slots)
        self.dimensions: Mapping[Modality, int] = {
            Modality[slot.upper()]: dimension
            for slot, dimension in network.config.slots.items()
            if slot.upper() in Modality.__members__
        }
        self._device = torch.device(device)
        self._subsets = [_subsets(count) for count in range(len(self.slots) + 1)]
        # What it says of a post with nothing.
        nothing = torch.zeros(1, len(self.slots), dtype=torch.bool, device=self._device)
        with torch.inference_mode():
            logits, feelings = self.network(self.network.project({}, nothing), nothing)
            self._prior = self._probabilities(logits[None], [0])[0, 0]
            self._prior_emotions = self._emotions(feelings, 0, 1)[0]

    @classmethod
    def load(cls, path: Path, device: str = "auto", *, threads: int = 0) -> FusionModel:
        """The model in folder `path`. Raises FileNotFoundError or ValueError.

        device: auto | cpu | cuda. threads: of torch in this process; 0 leaves them as they are.
        """
        if threads:
            torch.set_num_threads(threads)
        network = load_network(path)
        version = f"{network.config.name}@{sha256_of(path / WEIGHTS)[:12]}"
        trained_on = json.loads((path / CONFIG).read_text())["facts"].get("encoders", {})
        encoders = {
            Modality[slot.upper()]: encoder
            for slot, encoder in trained_on.items()
            if slot.upper() in Modality.__members__
        }
        return cls(network, version, choose_device(device), encoders)

    def classify(self, posts: Sequence[Mapping[Modality, Vector]]) -> Verdicts:
        """A verdict per post from the vectors it has; UNSCORED for a post with none that this model knows.

        Raises ValueError for a vector of another length than the model's, or a model of other classes.
        """
        if self.config.classes != SENTIMENTS:
            raise ValueError(f"a model of {', '.join(self.config.classes)} gives no sentiment")
        by_slot = {modality.name.lower(): modality for modality in self.dimensions}
        keys = [by_slot.get(slot) for slot in self.slots]
        opinion = self._judge(posts, keys)
        labels = list(map(_LABELS.__getitem__, opinion.probabilities.argmax(1).tolist()))
        probabilities = list(zip(*opinion.probabilities.T.tolist(), strict=True))
        scores, emotions = opinion.explained.tolist(), opinion.emotions.tolist()
        order = sorted((modality, column) for column, modality in enumerate(keys) if modality is not None)
        known = {}
        for keys_given in set(map(tuple, posts)):
            some = [(modality, column) for modality, column in order if modality in keys_given]
            known[keys_given] = (
                tuple(modality for modality, _ in some),
                _picker([column for _, column in some]),
            )
        shown = list(map(known.__getitem__, map(tuple, posts)))
        given = [modalities for modalities, _ in shown]
        shares = opinion.contributions.tolist()
        contributions = [pick(each) for (_, pick), each in zip(shown, shares, strict=True)]
        for row, modalities in enumerate(given):
            if not modalities:
                labels[row], probabilities[row] = Label.UNSCORED, (0.0, 0.0, 0.0)
                scores[row], emotions[row] = 0.0, ()
        return Verdicts(
            labels,
            probabilities,
            scores,
            given,
            contributions,
            self.config.emotions,
            emotions,
            self.model_version,
        )

    def judge(self, posts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> Opinion:
        """Probabilities, emotions and contributions per post, given by slot name; posts may have any subset.

        What is explained is the score (positive less negative) of a sentiment model, else the probability of
        the class that it gives.
        """
        return self._judge(posts, self.slots)

    @torch.inference_mode()
    def _judge(self, posts: Sequence[Mapping[Any, npt.NDArray[Any]]], keys: Sequence[object]) -> Opinion:
        """keys: of each slot, what a post has its vector under."""
        count = len(posts)
        probabilities = np.tile(self._prior, (count, 1))
        emotions = np.tile(self._prior_emotions, (count, 1))
        contributions = np.zeros((count, len(self.slots)))
        explained = self._explained(probabilities, probabilities)
        prior = explained.copy()
        step = max(1, _MAX_ROWS >> len(self.slots))
        for start in range(0, count, step):
            groups = _alike(posts[start : start + step], keys, start)
            if not groups:
                continue
            for (columns, given), judged in zip(
                groups.items(), self._judge_groups(posts, keys, groups), strict=True
            ):
                rows = np.array(given)
                p, emotions[rows], shares, prior[rows] = judged
                probabilities[rows] = p
                explained[rows] = self._explained(p, p)
                contributions[rows[:, None], columns] = shares
        return Opinion(probabilities, emotions, contributions, explained, prior)

    def _judge_groups(
        self,
        posts: Sequence[Mapping[Any, npt.NDArray[Any]]],
        keys: Sequence[object],
        rows: Mapping[tuple[int, ...], Sequence[int]],
    ) -> Iterator[tuple[Doubles, Doubles, Doubles, Doubles]]:
        """Of the posts that have the same slots: probabilities, emotions, (N, slots present) Shapley values,
        priors.

        Source: Shapley 1953. With at most 4 slots the 16 subsets are all evaluated: nothing is sampled.
        """
        # One product for all vectors of a slot, and each group's part of it.
        tokens: dict[tuple[int, ...], list[Tensor]] = {columns: [] for columns in rows}
        for column in sorted({column for columns in rows for column in columns}):
            having = [columns for columns in rows if column in columns]
            all_tokens = self._tokens(
                column, [posts[row][keys[column]] for columns in having for row in rows[columns]]
            )
            parts = torch.split(all_tokens, [len(rows[columns]) for columns in having])
            for columns, some in zip(having, parts, strict=True):
                tokens[columns].append(some)
        subsets = [self._subsets[len(columns)] for columns in rows]  # the empty one first, the whole last
        groups = [
            Group(torch.stack(some, 1), columns, torch.from_numpy(masks[1:]).to(self._device))
            for (columns, some), (masks, _) in zip(tokens.items(), subsets, strict=True)
        ]
        for group, (masks, weights), (logits, feelings) in zip(
            groups, subsets, self.network.of_subsets(groups), strict=True
        ):
            codes = masks[1:] @ (1 << np.array(group.columns))
            p = self._probabilities(logits, codes.tolist())  # (S - 1, N, classes)
            full = p[-1]
            prior = self._explained(np.broadcast_to(self._prior, full.shape), full)
            values = np.stack([prior, *(self._explained(one, full) for one in p)], 1)  # (N, S)
            yield full, self._emotions(feelings, int(codes[-1]), len(full)), values @ weights, prior

    def _tokens(self, column: int, vectors: Sequence[npt.NDArray[Any]]) -> Tensor:
        """(N, d) tokens of vectors of one slot."""
        slot, width = self.slots[column], self.config.slots[self.slots[column]]
        stacked = np.array(vectors)
        if stacked.shape[1:] != (width,):
            raise ValueError(f"{slot} vectors of shape {stacked.shape[1:]}; the model takes {width}")
        return self.network.token(column, slot, torch.from_numpy(stacked).to(self._device))

    def _probabilities(self, logits: Tensor, codes: Sequence[int]) -> Doubles:
        """(S, N, classes) calibrated probabilities of the logits of each subset, given its `subset_codes`."""
        scaled = logits.double() / self.network.temperatures[codes].double()[:, None, None]
        return cast(Doubles, scaled.softmax(2).cpu().numpy())

    def _emotions(self, logits: Tensor | None, code: int, count: int) -> Doubles:
        """(count, emotions) calibrated probabilities of the logits of one subset, given its code; no columns
        without that head."""
        if logits is None:
            return np.zeros((count, 0))
        scaled = logits.double() / self.network.emotion_temperatures[code].double()
        return cast(Doubles, scaled.softmax(1).cpu().numpy())

    def _explained(self, probabilities: Doubles, final: Doubles) -> Doubles:
        """(N,) the value whose change is explained, given what the whole post was given."""
        if self.config.classes == SENTIMENTS:
            return probabilities[:, 2] - probabilities[:, 0]
        return np.asarray(probabilities[np.arange(len(final)), final.argmax(1)])


def _picker(columns: Sequence[int]) -> Callable[[Sequence[float]], Sequence[float]]:
    """What takes these columns of a row."""
    if len(columns) > 1:
        return itemgetter(*columns)
    return itemgetter(slice(columns[0], columns[0] + 1) if columns else slice(0))


def _alike(
    posts: Sequence[Mapping[Any, npt.NDArray[Any]]], keys: Sequence[object], first: int
) -> dict[tuple[int, ...], list[int]]:
    """The rows of the posts, counted from `first`, by the slots they have; those with none are left out."""
    by_keys: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for row, post in enumerate(posts, first):
        by_keys[tuple(post)].append(row)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for given, rows in by_keys.items():
        groups[tuple(column for column, key in enumerate(keys) if key in given)] += rows
    groups.pop((), None)
    return groups


def _subsets(count: int) -> tuple[npt.NDArray[np.bool_], Doubles]:
    """All subsets of `count` players, (S, count) from the empty to the whole, and the (S, count) weights by
    which their values sum to each player's Shapley value."""
    members = [set(chosen) for size in range(count + 1) for chosen in combinations(range(count), size)]
    masks = np.array([[player in subset for player in range(count)] for subset in members], bool)
    masks = masks.reshape(len(members), count)
    weights = np.zeros((len(members), count))
    for row, subset in enumerate(members):
        for player in range(count):
            others = len(subset - {player})
            share = factorial(others) * factorial(count - others - 1) / factorial(count)
            weights[row, player] = share if player in subset else -share
    return masks, weights
