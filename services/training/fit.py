"""Fits a fusion network to examples and calibrates it. Arrays in, network out: no files, no encoders."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from services.fusion.model import FusionNetwork, ModelConfig, subset_codes
from services.training import metrics
from services.training.examples import Examples

MEASURES = ("accuracy", "macro_recall", "macro_f1")

Report = Callable[[int, dict[str, float]], None]
"""(epoch, what was measured after it)."""

# Temperatures tried, and the fewest dev rows that say anything about one.
_TEMPERATURES = np.geomspace(0.3, 6.0, 121)
_FEWEST_ROWS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Wide:
    """What a network starts from: logits of the classes, linear in the vectors of the slot
    `ModelConfig.wide`. weights: (classes, D). bias: (classes,)."""

    weights: Tensor
    bias: Tensor


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a network is fitted.

    epoch_rows: rows drawn per epoch, 0 for as many as there are. batch_rows: 0 for a 64th of an epoch, 32 to
    256: else a small set would be learned in a handful of steps. patience: epochs without a better dev
    measure before it ends. drop_slot: chance of withholding a slot of a row that has others. drop_all: of
    withholding all of a row. balance: draw each class equally often, and calibrate as if each were. measure:
    what the dev set decides by. deciding_parts: the parts of the dev set whose measures count, () for all.
    wide: for a config with one; the network as it begins is then among those to choose from.
    """

    epochs: int = 30
    patience: int = 5
    batch_rows: int = 0
    epoch_rows: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    drop_slot: float = 0.25
    drop_all: float = 0.02
    label_smoothing: float = 0.05
    emotion_weight: float = 0.3
    balance: bool = False
    measure: str = "macro_f1"
    deciding_parts: tuple[str, ...] = ()
    wide: Wide | None = None
    seed: int = 0


def fit(
    config: ModelConfig,
    train: Examples,
    dev: Examples,
    options: FitOptions,
    *,
    weights: npt.NDArray[np.float64] | None = None,
    device: str = "cpu",
    report: Report | None = None,
) -> FusionNetwork:
    """The network of the epoch with the best dev measure, calibrated on dev; the same for the same seed on a
    CPU.

    weights: (N,) how often each row is drawn, relative to the others; by default equally often (or by class).
    The dev measure is the mean over the parts of the dev set, so that a large part does not decide alone.
    """
    return fit_counting(config, train, dev, options, weights=weights, device=device, report=report)[0]


def fit_counting(
    config: ModelConfig,
    train: Examples,
    dev: Examples,
    options: FitOptions,
    *,
    weights: npt.NDArray[np.float64] | None = None,
    device: str = "cpu",
    report: Report | None = None,
) -> tuple[FusionNetwork, int]:
    """As `fit`, and after how many epochs the network was best."""
    dev = dev.aligned(config.slots)
    deciding = dev.take(np.isin(dev.parts, options.deciding_parts)) if options.deciding_parts else dev
    best: dict[str, Tensor] = {}
    best_value, best_epochs = -1.0, 0
    for epochs, network, loss in _epochs(config, train, options, weights, device):
        if epochs == 0 and options.wide is None:
            continue  # it knows nothing yet
        value = dev_measure(network, deciding, options.measure, device)
        if report is not None and epochs:
            report(epochs - 1, {"loss": loss, f"dev {options.measure}": value})
        if value > best_value:
            best, best_value, best_epochs = copy.deepcopy(network.state_dict()), value, epochs
        elif epochs - best_epochs >= options.patience:
            break
    network.load_state_dict(best)
    network.eval()
    calibrate(network, dev, balance=options.balance, device=device)
    return network, best_epochs


def refit(
    network: FusionNetwork, train: Examples, options: FitOptions, epochs: int, device: str = "cpu"
) -> FusionNetwork:
    """The network anew, trained for so many epochs on all rows there are, those that told when to stop among
    them.

    Nothing is left to calibrate on: the temperatures are those of the network that stopped by held-out rows.
    """
    _, again, _ = next(islice(_epochs(network.config, train, options, None, device), epochs, None))
    again.temperatures.copy_(network.temperatures)
    if network.config.emotions:
        again.emotion_temperatures.copy_(network.emotion_temperatures)
    return again.eval()


def _epochs(
    config: ModelConfig,
    train: Examples,
    options: FitOptions,
    weights: npt.NDArray[np.float64] | None,
    device: str,
) -> Iterator[tuple[int, FusionNetwork, float]]:
    """Trains a new network: as it begins and after each epoch, how many epochs it has seen, the network as it
    is then, and the mean loss of the epoch."""
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    network = FusionNetwork(config)
    if options.wide is not None:
        network.start_from(options.wide.weights, options.wide.bias)
    train = train.aligned(config.slots)
    for slot, vectors in train.vectors.items():
        sample = torch.from_numpy(vectors[rng.permutation(len(vectors))[:20_000]]).float()
        network.standardise(slot, sample.mean(0), sample.std(0, correction=0))
    network.to(device)
    if weights is None and options.balance:
        weights = class_weights(train.labels)
    feel_weights = emotion_weights(train.emotions, len(config.emotions))
    chances = None if weights is None else weights / weights.sum()
    rows_per_epoch = options.epoch_rows or len(train)
    batch_rows = options.batch_rows or min(256, max(32, rows_per_epoch // 64))
    steps = options.epochs * math.ceil(rows_per_epoch / batch_rows)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    warm_up = max(1, steps // 20)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))),
    )
    yield 0, network, math.nan
    for epoch in range(options.epochs):
        network.train()
        if chances is None:
            order = rng.permutation(len(train))[:rows_per_epoch]
        else:
            order = rng.choice(len(train), rows_per_epoch, p=chances)
        total = 0.0
        for start in range(0, len(order), batch_rows):
            loss = _loss(
                network, train, order[start : start + batch_rows], options, rng, feel_weights, device
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += float(loss.detach()) * len(order[start : start + batch_rows])
        yield epoch + 1, network, total / len(order)


def _loss(
    network: FusionNetwork,
    train: Examples,
    rows: npt.NDArray[np.intp],
    options: FitOptions,
    rng: np.random.Generator,
    feel_weights: Tensor,
    device: str,
) -> Tensor:
    present = torch.from_numpy(withheld(train.present[rows], options, rng)).to(device)
    vectors = {slot: torch.from_numpy(block).to(device) for slot, block in train.gather(rows).items()}
    logits, feelings = network(network.project(vectors, present), present)
    labels = torch.from_numpy(train.labels[rows]).to(device)
    known = labels >= 0
    loss: Tensor = logits.sum() * 0.0
    if bool(known.any()):
        if network.config.head == "svm":
            loss = functional.multi_margin_loss(logits[known], labels[known])
        else:
            loss = functional.cross_entropy(
                logits[known], labels[known], label_smoothing=options.label_smoothing
            )
    if feelings is None:
        return loss
    emotions = torch.from_numpy(train.emotions[rows]).to(device)
    felt = emotions >= 0
    if bool(felt.any()):
        loss = loss + options.emotion_weight * functional.cross_entropy(
            feelings[felt], emotions[felt], weight=feel_weights.to(device)
        )
    return loss


def withheld(
    present: npt.NDArray[np.bool_], options: FitOptions, rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """The mask with slots taken away at random, never the last one, but for the few rows that lose all."""
    kept = present & (rng.random(present.shape) >= options.drop_slot)
    lost = ~kept.any(1)
    kept[lost] = present[lost]
    kept[rng.random(len(present)) < options.drop_all] = False
    return kept


def emotion_weights(emotions: npt.NDArray[np.int64], count: int) -> Tensor:
    """(count,) float32: rare emotions weigh more, by the root of their rarity, within a factor of 5 of the
    mean."""
    found = np.bincount(emotions[emotions >= 0], minlength=count).astype(np.float64)
    weights = np.sqrt(found.mean() / np.maximum(found, 1)) if count else found
    return torch.from_numpy(np.clip(weights, 0.2, 5.0)).float()


def class_weights(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(N,) weights under which every class has the same share; rows without a label keep the mean weight."""
    known = labels >= 0
    weights = np.ones(len(labels))
    if not known.any():
        return weights
    counts = np.bincount(labels[known])
    weights[known] = (known.sum() / np.count_nonzero(counts)) / counts[labels[known]]
    return weights


def logits(
    network: FusionNetwork,
    examples: Examples,
    present: npt.NDArray[np.bool_] | None = None,
    device: str = "cpu",
) -> Tensor:
    """(N, classes) of all rows, with what `present` (N, slots of the network) leaves of their slots."""
    return answers(network, examples, present, device)[0]


@torch.inference_mode()
def answers(
    network: FusionNetwork,
    examples: Examples,
    present: npt.NDArray[np.bool_] | None = None,
    device: str = "cpu",
) -> tuple[Tensor, Tensor]:
    """As `logits`, and emotion logits (N, emotions) beside them."""
    network.eval()
    examples = examples.aligned(network.config.slots)
    mask = examples.present if present is None else present
    found, felt = [], []
    for start in range(0, len(examples), 2048):
        rows = np.arange(start, min(start + 2048, len(examples)))
        shown = torch.from_numpy(mask[rows]).to(device)
        vectors = {slot: torch.from_numpy(block).to(device) for slot, block in examples.gather(rows).items()}
        own, feelings = network(network.project(vectors, shown), shown)
        found.append(own.cpu())
        felt.append(own.new_zeros(len(rows), 0).cpu() if feelings is None else feelings.cpu())
    return torch.cat(found), torch.cat(felt)


def dev_measure(network: FusionNetwork, dev: Examples, measure: str, device: str = "cpu") -> float:
    """The mean of the measure over the parts of the dev set."""
    predicted = logits(network, dev, device=device).argmax(1).numpy()
    values = []
    for part in np.unique(dev.parts):
        rows = (dev.parts == part) & (dev.labels >= 0)
        if rows.any():
            table = metrics.confusion(dev.labels[rows], predicted[rows], len(network.config.classes))
            values.append(metrics.summary(table)[measure])
    return float(np.mean(values))


def calibrate(network: FusionNetwork, dev: Examples, *, balance: bool, device: str = "cpu") -> None:
    """Set the temperature of every subset of slots to the one of least dev loss over the rows that have them
    all; that of the emotions over those of them that have one.

    A subset with too few such rows takes the mean temperature of its slots alone. Source: Guo et al. 2017,
    section 4.2.
    """
    dev = dev.aligned(network.config.slots)

    def sentiments(part: Examples, shown: npt.NDArray[np.bool_]) -> Tensor:
        return logits(network, part, shown, device)

    def feelings(part: Examples, shown: npt.NDArray[np.bool_]) -> Tensor:
        return answers(network, part, shown, device)[1]

    _calibrate(network.temperatures, sentiments, dev, dev.labels, balance=balance)
    if network.config.emotions:
        _calibrate(network.emotion_temperatures, feelings, dev, dev.emotions, balance=False)


def _calibrate(
    temperatures: Tensor,
    scores_of: Callable[[Examples, npt.NDArray[np.bool_]], Tensor],
    dev: Examples,
    labels: npt.NDArray[np.int64],
    *,
    balance: bool,
) -> None:
    """scores_of: logits (N, C) of rows with what a mask (N, slots) leaves of them. labels: (N,) of dev."""
    count = dev.present.shape[1]
    temperatures.fill_(1.0)
    single: dict[int, float] = {}
    for chosen in sorted(product((False, True), repeat=count), key=sum):
        subset = np.array(chosen, bool)
        rows = np.flatnonzero((dev.present | ~subset).all(1) & (labels >= 0))
        code = int(subset_codes(torch.from_numpy(subset[None]))[0])
        members = [i for i in range(count) if subset[i]]
        if len(rows) >= _FEWEST_ROWS:
            shown = np.repeat(subset[None], len(rows), 0)
            scores = scores_of(dev.take(rows), shown)
            temperature = best_temperature(scores.double().numpy(), labels[rows], balance)
        else:
            temperature = float(np.mean([single.get(i, 1.0) for i in members])) if members else 1.0
        if len(members) == 1:
            single[members[0]] = temperature
        temperatures[code] = temperature


def best_temperature(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], balance: bool) -> float:
    """By which logits (N, classes) are to be divided for the least loss."""
    weights = class_weights(labels) if balance else np.ones(len(labels))
    losses = []
    for temperature in _TEMPERATURES:
        scaled = scores / temperature
        scaled = scaled - scaled.max(1, keepdims=True)
        log_p = scaled - np.log(np.exp(scaled).sum(1, keepdims=True))
        losses.append(-(weights * log_p[np.arange(len(labels)), labels]).sum() / weights.sum())
    return float(_TEMPERATURES[int(np.argmin(losses))])
