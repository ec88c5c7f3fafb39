"""Utterances in the order they were said: a recurrent model over the videos of a feature file.

For published feature sets such as CMU-MOSI, where what was said before and after tells as much as the
utterance. Source: Poria et al. 2017 (context-dependent sentiment analysis, "bc-LSTM"): a bidirectional
recurrent layer over each modality's utterances, then one over what they make together. Here both levels are
trained at once, each modality with a classifier of its own beside the fused one, and modalities are withheld
at random, so that any subset is answered.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from services.training import metrics
from services.training.examples import Examples
from services.training.fit import FitOptions, Report, withheld

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@dataclass(frozen=True, slots=True)
class ContextConfig:
    """slots: width of each modality's vectors. width: of the recurrent states, both directions together.

    members: networks of other seeds whose probabilities are averaged: the data sets are small, one draw is
    luck.
    """

    slots: Mapping[str, int]
    classes: tuple[str, ...]
    width: int = 128
    dropout: float = 0.5
    members: int = 5


class ContextNetwork(nn.Module):
    """One member. Videos in, a classification of every utterance out."""

    def __init__(self, config: ContextConfig) -> None:
        super().__init__()
        self.config = config
        half, width = config.width // 2, config.width
        for slot, dimension in config.slots.items():
            self.register_buffer(f"mean_{slot}", torch.zeros(dimension))
            self.register_buffer(f"scale_{slot}", torch.ones(dimension))
        self.listen = nn.ModuleDict(
            {s: nn.GRU(d, half, batch_first=True, bidirectional=True) for s, d in config.slots.items()}
        )
        self.alone = nn.ModuleDict({slot: nn.Linear(width, len(config.classes)) for slot in config.slots})
        self.gather = nn.GRU(width * len(config.slots), half, batch_first=True, bidirectional=True)
        self.together = nn.Linear(width, len(config.classes))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, vectors: Mapping[str, Tensor], present: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """vectors: per slot (V, T, D). present: (V, T, slots). Logits (V, T, classes), and those of each slot
        alone.

        Padding comes after the last utterance; the recurrent layers see it as utterances without any
        modality.
        """
        heard, alone = [], {}
        for column, slot in enumerate(self.config.slots):
            shown = present[:, :, column, None]
            centred = (vectors[slot] - self.get_buffer(f"mean_{slot}")) * self.get_buffer(f"scale_{slot}")
            states, _ = self.listen[slot](self.dropout(centred * shown))
            states = self.dropout(states) * shown
            alone[slot] = self.alone[slot](states)
            heard.append(states)
        states, _ = self.gather(torch.cat(heard, 2))
        return self.together(self.dropout(states)), alone


@dataclass(frozen=True, slots=True, eq=False)
class Videos:
    """Rows laid out by video: (V, T) row numbers, -1 where a video has ended."""

    rows: npt.NDArray[np.int64]

    @classmethod
    def of(cls, examples: Examples) -> Videos:
        """By the ids VIDEO_N, in the order of N. Raises ValueError for an id of another form."""
        found: dict[str, list[tuple[int, int]]] = {}
        for row, name in enumerate(examples.ids.tolist()):
            video, underscore, number = name.rpartition("_")
            if not underscore or not number.isdigit():
                raise ValueError(f"--context needs ids of the form VIDEO_N; {name!r} is none")
            found.setdefault(video, []).append((int(number), row))
        longest = max(map(len, found.values()))
        rows = np.full((len(found), longest), -1, np.int64)
        for i, utterances in enumerate(found.values()):
            rows[i, : len(utterances)] = [row for _, row in sorted(utterances)]
        return cls(rows)


class ContextModel:
    """The trained members, asked together."""

    def __init__(self, members: list[ContextNetwork]) -> None:
        self.members = members
        self.config = members[0].config
        self.classes = self.config.classes
        self.slots = self.config.slots

    def probabilities(
        self, examples: Examples, present: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.float64]:
        """(N, classes), each row in the context of its video, with what `present` (N, slots) leaves."""
        examples = examples.aligned(self.config.slots)
        videos = Videos.of(examples)
        vectors, shown = _laid_out(examples, videos, examples.present if present is None else present)
        total = np.zeros((len(examples), len(self.config.classes)))
        there = videos.rows >= 0
        with torch.inference_mode():
            for member in self.members:
                member.eval()
                p = member(vectors, shown)[0].double().softmax(2).numpy()
                total[videos.rows[there]] += p[there] / len(self.members)
        return total

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            f"{i}.{name}": tensor.contiguous()
            for i, member in enumerate(self.members)
            for name, tensor in member.state_dict().items()
        }
        save_file(state, folder / WEIGHTS)
        config = {"context": asdict(self.config), "facts": dict(facts)}
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ContextModel:
        raw = json.loads((folder / CONFIG).read_text())["context"]
        config = ContextConfig(**(raw | {"classes": tuple(raw["classes"])}))
        state = load_file(folder / WEIGHTS)
        members = []
        for i in range(config.members):
            member = ContextNetwork(config)
            own = {n.removeprefix(f"{i}."): t for n, t in state.items() if n.startswith(f"{i}.")}
            member.load_state_dict(own)
            members.append(member.eval())
        return cls(members)


def is_context(folder: Path) -> bool:
    """Whether the model in the folder is one of this module."""
    return "context" in json.loads((folder / CONFIG).read_text())


def fit(
    config: ContextConfig, train: Examples, dev: Examples, options: FitOptions, report: Report | None = None
) -> ContextModel:
    """All members, each stopped at its best dev measure."""
    train, dev = train.aligned(config.slots), dev.aligned(config.slots)
    members = []
    for number in range(config.members):
        members.append(_fit_member(config, train, dev, options, options.seed + number))
        if report is not None:
            value = measured(ContextModel(members), dev, options.measure)
            report(number, {f"dev {options.measure}": value})
    return ContextModel(members)


def measured(model: ContextModel, examples: Examples, measure: str) -> float:
    p = model.probabilities(examples)
    known = examples.labels >= 0
    table = metrics.confusion(examples.labels[known], p[known].argmax(1), p.shape[1])
    return metrics.summary(table)[measure]


def _fit_member(
    config: ContextConfig, train: Examples, dev: Examples, options: FitOptions, seed: int
) -> ContextNetwork:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = ContextNetwork(config)
    for slot, known in train.vectors.items():
        values = torch.from_numpy(known.astype(np.float32))
        network.get_buffer(f"mean_{slot}").copy_(values.mean(0))
        network.get_buffer(f"scale_{slot}").copy_(1.0 / values.std(0, correction=0).clamp_min(1e-3))
    videos = Videos.of(train)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    best, best_value, waited = copy.deepcopy(network.state_dict()), -1.0, 0
    for _ in range(options.epochs):
        network.train()
        order = rng.permutation(len(videos.rows))
        for start in range(0, len(order), 8):
            batch = Videos(videos.rows[order[start : start + 8]])
            kept = withheld(train.present, options, rng)
            vectors, shown = _laid_out(train, batch, kept)
            labels = torch.from_numpy(np.where(batch.rows >= 0, train.labels[batch.rows], -1)).flatten()
            logits, alone = network(vectors, shown)
            loss = functional.cross_entropy(logits.flatten(0, 1), labels, ignore_index=-1)
            for column, slot in enumerate(config.slots):
                own = torch.where(shown[:, :, column].flatten().bool(), labels, -1)
                if bool((own >= 0).any()):
                    own_loss = functional.cross_entropy(alone[slot].flatten(0, 1), own, ignore_index=-1)
                    loss = loss + 0.3 * own_loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
        value = measured(ContextModel([network]), dev, options.measure)
        if value > best_value:
            best, best_value, waited = copy.deepcopy(network.state_dict()), value, 0
        else:
            waited += 1
            if waited >= options.patience:
                break
    network.load_state_dict(best)
    return network.eval()


def _laid_out(
    examples: Examples, videos: Videos, present: npt.NDArray[np.bool_]
) -> tuple[dict[str, Tensor], Tensor]:
    """Per slot (V, T, D) float32, and (V, T, slots) float32 mask."""
    flat = videos.rows.ravel()
    there = flat >= 0
    shown = present[flat] & there[:, None]
    vectors = {}
    for column, (slot, own) in enumerate(examples.vectors.items()):
        block = np.zeros((len(flat), own.shape[1]), np.float32)
        block[shown[:, column]] = own[examples.index[flat, column][shown[:, column]]]
        vectors[slot] = torch.from_numpy(block.reshape(*videos.rows.shape, -1))
    return vectors, torch.from_numpy(cast(Any, shown.reshape(*videos.rows.shape, -1).astype(np.float32)))
