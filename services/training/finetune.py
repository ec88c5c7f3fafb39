"""Fine-tunes the text model for a task and writes what changed as an adapter: low-rank updates, or whole
layers.

Only the upper layers learn. What the lower ones make of each text is computed once and kept, which makes an
epoch cost half as much, and the adapter half as large. Knows texts and labels, no manifest and no fusion.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from services.training import metrics
from services.training.fit import Wide, best_temperature
from shared.e5 import E5, NO_ADAPTER, Bert, LoraConfig, add_lora, save_adapter, token_batches

Ints = npt.NDArray[np.int64]
Report = Callable[[str, dict[str, float]], None]
"""(which point of the training, what was measured there)."""

# Batches whose texts are sorted by length together: little padding, and still a random order.
_SORTED_BATCHES = 32
# Beside the adapter while it is being made: where an interrupted tuning goes on.
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Task:
    """Texts with what is known of them.

    labels: (N,) class or -1. emotions: (N,) or -1.
    weights: (N,) how often each is drawn. parts: (N,) name of the set it is from. said: (N, classes) logits
    of another model, beside which this one learns.
    """

    texts: Sequence[str]
    labels: Ints
    emotions: Ints
    weights: npt.NDArray[np.float64]
    parts: npt.NDArray[np.str_]
    said: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """How the text model is tuned.

    mode: lora | full. layers: how many of the upper layers learn. epoch_rows: texts drawn per epoch, 0 for
    all. batch_tokens: padding counted. checks: how often an epoch stops to measure the dev set.
    """

    mode: str = "full"
    layers: int = 6
    rank: int = 32
    epochs: int = 2
    epoch_rows: int = 0
    batch_tokens: int = 1024
    learning_rate: float = 1e-4
    head_learning_rate: float = 2e-3
    weight_decay: float = 0.01
    emotion_weight: float = 0.2
    label_smoothing: float = 0.05
    checks: int = 2
    measure: str = "macro_recall"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class States:
    """The states that the frozen layers make of the texts: all tokens in a row (T, D) float16, text i at
    `offsets[i]:offsets[i + 1]`."""

    tokens: npt.NDArray[np.float16]
    offsets: Ints

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)

    def padded(self, rows: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """(B, T, D) float32 states and (B, T) bool mask."""
        lengths = self.lengths[list(rows)]
        block = np.zeros((len(rows), lengths.max(), self.tokens.shape[1]), np.float32)
        mask = np.zeros(block.shape[:2], bool)
        for i, row in enumerate(rows):
            block[i, : lengths[i]] = self.tokens[self.offsets[row] : self.offsets[row + 1]]
            mask[i, : lengths[i]] = True
        return torch.from_numpy(block).to(device), torch.from_numpy(mask).to(device)


class Tuned(nn.Module):
    """The upper layers of the text model with heads on its pooled vector; `vector` is what the encoder will
    give.

    trust: how much another model's logits count, which are added to its own; None where there is no other.
    """

    def __init__(
        self, layers: nn.ModuleList, width: int, classes: int, emotions: int, trust: float | None = None
    ) -> None:
        super().__init__()
        self.layers = layers
        self.trust = None if trust is None else nn.Parameter(torch.tensor(trust))
        self.classify = nn.Linear(width, classes)
        self.feel = nn.Linear(width, emotions) if emotions else None
        self.scale = math.sqrt(width)  # pooled vectors have length 1, which is little for a linear layer

    def vector(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, D) unit vectors, as `E5.forward` makes them."""
        attended = None if bool(mask.all()) else mask[:, None, None, :]
        for layer in self.layers:
            states = layer(states, attended)
        weights = mask[:, :, None].float()
        return functional.normalize((states * weights).sum(1) / weights.sum(1), dim=1)

    def forward(
        self, states: Tensor, mask: Tensor, said: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, classes), of both models where `said` (B, classes) is the other's, and emotion
        logits."""
        scaled = self.vector(states, mask) * self.scale
        logits = self.classify(scaled)
        if self.trust is not None and said is not None:
            logits = logits + self.trust * said
        return logits, self.feel(scaled) if self.feel is not None else None


def bert(e5: E5) -> Bert:
    """Raises ValueError for a model whose layers are not known here."""
    if not isinstance(e5.network, Bert):
        raise ValueError("only the default text model can be fine-tuned")
    return e5.network


@torch.inference_mode()
def lower_states(
    e5: E5, texts: Sequence[str], layers: int, progress: Callable[[int, int], None] | None = None
) -> States:
    """What the layers below the upper `layers` make of the texts. An empty text has no tokens."""
    network = bert(e5)
    rows = e5.tokenize(texts)
    lengths = np.array([len(row) for row in rows], np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.empty((int(offsets[-1]), e5.width), np.float16)
    done = 0
    for batch in token_batches(lengths.tolist(), 1024):
        ids, mask = e5.pad([rows[i] for i in batch])
        states = network.embedded(ids)
        attended = None if bool(mask.all()) else mask[:, None, None, :].bool()
        for layer in network.layers[: len(network.layers) - layers]:
            states = layer(states, attended)
        found = states.half().cpu().numpy()
        for i, row in enumerate(batch):
            tokens[offsets[row] : offsets[row + 1]] = found[i, : lengths[row]]
        done += len(batch)
        if progress is not None:
            progress(done, len(texts))
    return States(tokens, offsets)


def tune(
    e5: E5,
    train: Task,
    dev: Task,
    classes: int,
    options: TuneOptions,
    folder: Path,
    *,
    over: str = NO_ADAPTER,
    states: tuple[States, States] | None = None,
    report: Report | None = None,
) -> Tuned:
    """Tune the model's upper layers, in place, and write the best of them as the adapter `folder`.

    over: the adapter that `e5` was loaded with. states: of train and dev, when the caller has them. Returns
    the best by the mean dev measure of the parts.
    With `said` in both tasks it learns what the other model does not say: their logits are added.
    Interrupted, the same call goes on from the last check, to the same weights.
    """
    network = bert(e5)
    network.requires_grad_(False)
    upper = network.layers[len(network.layers) - options.layers :]
    assert isinstance(upper, nn.ModuleList)
    if states is None:
        states = lower_states(e5, train.texts, options.layers), lower_states(e5, dev.texts, options.layers)
    torch.manual_seed(options.seed)
    lora = LoraConfig(rank=options.rank, alpha=2.0 * options.rank) if options.mode == "lora" else None
    if lora is not None:
        tuned_parameters = [parameter for layer in upper for parameter in add_lora(layer, lora)]
    else:
        tuned_parameters = list(upper.requires_grad_(True).parameters())
    emotions = int(train.emotions.max()) + 1
    trust = None
    if train.said is not None:  # at first as much as it is worth by itself
        known = train.labels >= 0
        trust = 1 / best_temperature(train.said[known].astype(np.float64), train.labels[known], balance=False)
    model = Tuned(upper, e5.width, classes, emotions, trust).to(e5.device)
    heads = [p for name, p in model.named_parameters() if not name.startswith("layers.")]
    # Fixed now: `also` takes whole layers in full mode, nothing but the low-rank updates else.
    first = len(network.layers) - options.layers
    whole = (
        []
        if lora
        else [n for n, _ in network.named_parameters() if n.startswith("layers.") and _layer(n) >= first]
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": tuned_parameters, "lr": options.learning_rate},
            {"params": heads, "lr": options.head_learning_rate},
        ],
        weight_decay=options.weight_decay,
    )
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    rng = np.random.default_rng(options.seed)
    plans = [_batches(train, states[0], options, rng) for _ in range(options.epochs)]
    steps = sum(len(plan) for plan in plans)
    work = _fingerprint(e5.model_version, train, dev, classes, options)
    done, best = _resume(folder, work, model, optimizer)
    step = 0
    for epoch, plan in enumerate(plans):
        every = math.ceil(len(plan) / options.checks)
        losses: list[float] = []
        for number, rows in enumerate(plan, 1):
            step += 1
            if step <= done:
                continue
            # Dropout of every step by itself: a resumed tuning draws what an uninterrupted one would.
            torch.manual_seed(options.seed * 1_000_003 + step)
            factor = min(step / (0.06 * steps + 1), max(0.02, (steps - step + 1) / steps))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            model.train()
            loss = _loss(model, train, states[0], rows, options, e5.device)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(tuned_parameters, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            if report is not None and number % 50 == 0:
                report(f"{epoch + number / len(plan):.2f}", {"loss": float(np.mean(losses[-50:]))})
            if number % every == 0 or number == len(plan):
                value = dev_measures(model, dev, states[1], classes, options.measure, e5.device)
                mean = float(np.mean(list(value.values())))
                if report is not None:
                    report(f"{epoch + number / len(plan):.2f}", value)
                is_best = mean > best
                if is_best:
                    best = mean
                    save_adapter(network, folder, lora, whole, over=over)
                _checkpoint(folder, work, model, optimizer, step, best, is_best=is_best)
    model.load_state_dict(
        {
            name.removeprefix("best."): tensor
            for name, tensor in load_file(folder / CHECKPOINT).items()
            if name.startswith("best.")
        }
    )
    network.eval()
    return model.eval()


@torch.inference_mode()
def vectors(model: Tuned, states: States, device: torch.device) -> npt.NDArray[np.float16]:
    """(N, D) what the tuned text model makes of the texts behind the states; zero where one is empty."""
    model.eval()
    found = np.zeros((len(states.lengths), states.tokens.shape[1]), np.float16)
    for batch in token_batches(states.lengths.tolist(), 2048):
        found[batch] = model.vector(*states.padded(batch, device)).cpu().numpy()
    return found


def wide(model: Tuned, dimension: int) -> Wide | None:
    """What the tuned model says together with the other that it learned beside; None where there was none.

    It is of text vectors that are the model's own, filled up to `dimension`, and then the other's logits.
    """
    if model.trust is None:
        return None
    weights, bias, trust = (
        each.detach().cpu() for each in (model.classify.weight, model.classify.bias, model.trust)
    )
    between = torch.zeros(len(bias), dimension - weights.shape[1])
    return Wide(torch.cat([weights * model.scale, between, trust * torch.eye(len(bias))], 1), bias)


def _fingerprint(model_version: str, train: Task, dev: Task, classes: int, options: TuneOptions) -> str:
    """Names a tuning: what another model, data set or option left behind is not gone on with."""
    digest = hashlib.sha256(repr((model_version, classes, options)).encode())
    for task in (train, dev):
        for text in task.texts:
            digest.update(text.encode("utf-8", "replace") + b"\0")
        for array in (task.labels, task.emotions, task.weights, task.said):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _checkpoint(
    folder: Path,
    work: str,
    model: Tuned,
    optimizer: torch.optim.Optimizer,
    step: int,
    best: float,
    *,
    is_best: bool,
) -> None:
    path = folder / CHECKPOINT
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if is_best:
        tensors |= {f"best.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    else:
        tensors |= {name: t for name, t in load_file(path).items() if name.startswith("best.")}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    partial = path.with_suffix(".part")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        partial,
        {"work": work, "step": str(step), "best": repr(best)},
    )
    partial.replace(path)


def _resume(folder: Path, work: str, model: Tuned, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """(steps done, best dev measure) of the same tuning, interrupted; (0, -1.0) when there is none."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return 0, -1.0
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
    if about.get("work") != work:
        return 0, -1.0
    tensors = load_file(path)
    model.load_state_dict(
        {n.removeprefix("model."): tensor for n, tensor in tensors.items() if n.startswith("model.")}
    )
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, field = name.split(".")
            state.setdefault(int(number), {})[field] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(about["step"]), float(about["best"])


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _batches(train: Task, states: States, options: TuneOptions, rng: np.random.Generator) -> list[list[int]]:
    """One epoch: rows drawn by weight, in batches of similar length, the batches in random order."""
    count = options.epoch_rows or len(train.texts)
    weights = train.weights * (states.lengths > 0)
    drawn = rng.choice(len(train.texts), min(count, int((weights > 0).sum())), False, weights / weights.sum())
    lengths = states.lengths
    rows_per_group = _SORTED_BATCHES * max(1, int(options.batch_tokens / lengths[drawn].mean()))
    batches = []
    for start in range(0, len(drawn), rows_per_group):
        group = drawn[start : start + rows_per_group]
        batches += [
            [int(group[i]) for i in b] for b in token_batches(lengths[group].tolist(), options.batch_tokens)
        ]
    random.Random(int(rng.integers(2**31))).shuffle(batches)
    return batches


def _loss(
    model: Tuned, train: Task, states: States, rows: list[int], options: TuneOptions, device: torch.device
) -> Tensor:
    logits, feelings = model(*states.padded(rows, device), _said(train, rows, device))
    labels = torch.from_numpy(train.labels[rows]).to(device)
    loss: Tensor = logits.sum() * 0.0
    if bool((labels >= 0).any()):
        loss = functional.cross_entropy(
            logits, labels, ignore_index=-1, label_smoothing=options.label_smoothing
        )
    emotions = torch.from_numpy(train.emotions[rows]).to(device)
    felt = emotions >= 0
    if feelings is not None and bool(felt.any()):
        loss = loss + options.emotion_weight * functional.cross_entropy(feelings[felt], emotions[felt])
    return loss


def _said(task: Task, rows: Sequence[int], device: torch.device) -> Tensor | None:
    return None if task.said is None else torch.from_numpy(task.said[list(rows)]).to(device)


@torch.inference_mode()
def dev_measures(
    model: Tuned, dev: Task, states: States, classes: int, measure: str, device: torch.device
) -> dict[str, float]:
    """The measure of the labelled rows of each part of the dev set."""
    model.eval()
    predicted = np.zeros(len(dev.texts), np.int64)
    for batch in token_batches(states.lengths.tolist(), 2048):
        logits, _ = model(*states.padded(batch, device), _said(dev, batch, device))
        predicted[batch] = logits.argmax(1).cpu().numpy()
    found = {}
    for part in np.unique(dev.parts):
        rows = (dev.parts == part) & (dev.labels >= 0)
        if rows.any():
            table = metrics.confusion(dev.labels[rows], predicted[rows], classes)
            found[f"dev {part} {measure}".replace("  ", " ")] = metrics.summary(table)[measure]
    return found
