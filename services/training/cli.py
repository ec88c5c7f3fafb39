"""`crowdtone train`, `evaluate` and `predict`: options in, tables or one JSON object out. Wiring only."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.fusion.model import EMOTIONS, SENTIMENTS, FusionModel, ModelConfig, load_network, save
from services.fusion.settings import SHIPPED_WEIGHTS
from services.training import context as utterances
from services.training import evaluation, features, manifest, recipe
from services.training.examples import Examples, joined
from services.training.finetune import (
    CHECKPOINT,
    Task,
    TuneOptions,
    dev_measures,
    lower_states,
    tune,
    vectors,
    wide,
)
from services.training.fit import MEASURES, FitOptions, Wide, fit_counting, refit
from shared.device import choose_device
from shared.e5 import (
    E5,
    NO_ADAPTER,
    SHIPPED,
    SHIPPED_ADAPTER,
    adapter_folder,
    add_lexicon,
    load_lexicon,
    save_lexicon,
)
from shared.encoding import Encoder, Input
from shared.messages import Modality, same_model
from shared.settings import ModelSettings, TextModelSettings
from shared.weights import sha256_of

USAGE_EXIT: Final = 2
TRAINED_ON: Final = "trained_on.npy"
ADAPTER: Final = "adapter"
# Fewer texts teach a lexicon little; what is said in a sound would reach it through two slots, and one of
# them would have seen the label.
LEXICON_ROWS: Final = 1_000
_HELD_OUT_PERCENT = 15

error_console = Console(stderr=True)


class Strategy(StrEnum):
    CONCAT = "concat"
    WEIGHTED = "weighted"
    ATTENTION = "attention"
    TENSOR = "tensor"


class FineTune(StrEnum):
    NONE = "none"
    LORA = "lora"
    FULL = "full"


class Head(StrEnum):
    MLP = "mlp"
    SVM = "svm"
    CNN = "cnn"
    RNN = "rnn"


Map = Annotated[
    str,
    typer.Option(
        "--map",
        help="Which column is what, where its name is another: `text=tweet,label=mood`. "
        f"Fields: {', '.join(manifest.FIELDS)}.",
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        help="Only rows of these labels, `negative,neutral,positive`; by default all there are.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output, nothing else there.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same data, same CPU: same model.")]
Manifest = Annotated[
    Path | None, typer.Option(help="CSV or JSONL with a row per post; paths are relative to it.")
]
Device = Annotated[str, typer.Option(help="auto | cpu | cuda")]


def train(
    out: Annotated[Path, typer.Option(help="Folder to write the model into.")],
    manifest_file: Annotated[
        Path | None,
        typer.Option(
            "--manifest", help="CSV or JSONL, a row per post: columns text, image, audio, label, group, ..."
        ),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(
            help="The same, to decide by. Without it 15 % is held out, by group, tells how many epochs are "
            "best, and the model is then trained so long on all rows."
        ),
    ] = None,
    features_file: Annotated[
        Path | None,
        typer.Option("--features", help=".npz of ready-made vectors: an array per modality, y, ids, group."),
    ] = None,
    dev_features: Annotated[Path | None, typer.Option(help="The same, to decide by.")] = None,
    context: Annotated[
        bool,
        typer.Option("--context", help="With --features: read utterances in the order of their ids VIDEO_N."),
    ] = False,
    map: Map = "",
    labels: Labels = "",
    only_slots: Annotated[
        str,
        typer.Option(
            "--slots",
            help="Learn from these alone of text, image, audio (how it is said) and speech (what is said), "
            "or of the arrays of --features; by default all there are.",
        ),
    ] = "",
    strategy: Annotated[Strategy, typer.Option(help="How the modalities become one.")] = Strategy.CONCAT,
    head: Annotated[Head, typer.Option(help="What classifies the fused state.")] = Head.MLP,
    fine_tune: Annotated[
        FineTune, typer.Option(help="Also teach the text model the task: small updates, or whole layers.")
    ] = FineTune.NONE,
    layers: Annotated[
        int, typer.Option(min=1, help="Upper layers of the text model that --fine-tune teaches.")
    ] = 6,
    tune_epochs: Annotated[int, typer.Option(min=1, help="Epochs of --fine-tune.")] = 2,
    trials: Annotated[int, typer.Option(min=0, help="Search rates and sizes in so many trainings.")] = 0,
    measure: Annotated[
        str, typer.Option(help=f"What the dev set decides by: {' | '.join(MEASURES)}.")
    ] = "macro_f1",
    balance: Annotated[bool, typer.Option(help="Draw every class equally often.")] = False,
    lexicon: Annotated[
        bool,
        typer.Option(
            help="Learn what runs of characters say of the labels, beside the text model; with --manifest, "
            f"where it has {LEXICON_ROWS:,} texts or more and no sounds."
        ),
    ] = True,
    augment: Annotated[
        int,
        typer.Option(
            min=0,
            help="Altered copies of every row of --manifest: typos, crops, JPEG, noise, rooms, codecs. Each "
            "copy costs the encoders what the row did; they are cached too.",
        ),
    ] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="At most; it ends when the dev set gains no more.")] = 30,
    seed: Seed = 0,
    device: Device = "auto",
    recipe_name: Annotated[
        str, typer.Option("--recipe", help="`shipped`: the model in the repository, from the sets in --data.")
    ] = "",
    data: Annotated[Path, typer.Option(help="Folder of the data sets, for --recipe.")] = Path(
        "../shared/data"
    ),
    tensorboard: Annotated[Path | None, typer.Option(help="Folder to write TensorBoard logs into.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model on labelled posts.

    `crowdtone train --manifest train.csv --dev dev.csv --out my_model` reads columns `text`, `image`, `audio`
    and `label`; any modality may be missing in any row. Embeddings are cached: a second training on the same
    data costs seconds. Then: `crowdtone evaluate --model my_model --manifest test.csv`.

    `--fine-tune full` teaches the text model the task first: slower, and better wherever words carry the
    label.
    """
    began = time.perf_counter()
    with _refusing(), _progress(as_json) as progress:
        if measure not in MEASURES:
            raise manifest.ManifestError(f"--measure {measure!r} is none of {', '.join(MEASURES)}")
        if sum((recipe_name != "", features_file is not None, manifest_file is not None)) != 1:
            raise manifest.ManifestError("give one of --manifest, --features and --recipe to train on")
        if augment and manifest_file is None:
            raise manifest.ManifestError("--augment goes with --manifest: it alters what is encoded")
        options = FitOptions(epochs=epochs, balance=balance, measure=measure, seed=seed)
        tuning = TuneOptions(
            mode=fine_tune.value, layers=layers, epochs=tune_epochs, measure=measure, seed=seed
        )
        if features_file is not None:
            sets = _feature_sets(features_file, dev_features, options)
        elif manifest_file is not None:
            rows = _labelled_rows(manifest_file, dev, map, labels, seed)
            sets = _manifest_sets(*rows, options, tuning, lexicon, augment, out, device, progress)
            sets = replace(sets, held_out=dev is None)
        elif recipe_name == "shipped":
            sets = _shipped_sets(data, seed, progress)
        elif recipe_name == "text":
            _text_recipe(data, tuning, out, device, progress, as_json)
            return
        else:
            raise manifest.ManifestError(f"there is no recipe {recipe_name!r}: shipped | text")
        if only_slots:
            widths = _widths(sets.train, only_slots)
            sets = replace(sets, train=sets.train.aligned(widths), dev=sets.dev.aligned(widths))
            if "text" not in widths:
                sets = replace(sets, options=replace(sets.options, wide=None))
        writer = _TensorBoard(tensorboard)

        def report(epoch: int, measured: dict[str, float]) -> None:
            progress("training, best dev measure kept", epoch + 1, sets.options.epochs)
            writer.write(epoch, measured)

        slots = {slot: vectors.shape[1] for slot, vectors in sets.train.vectors.items()}
        facts = sets.facts | {"training_rows": len(sets.train), "dev_rows": len(sets.dev), "seed": seed}
        if context:
            if features_file is None:
                raise manifest.ManifestError("--context goes with --features")
            model = utterances.fit(
                utterances.ContextConfig(slots, sets.classes), sets.train, sets.dev, sets.options, report
            )
            model.save(out, facts)
            dev_result = {"": evaluation.evaluate(model, sets.dev, seed=seed)}
            dev_emotions = {}
        else:
            config = ModelConfig(
                slots=slots,
                classes=sets.classes,
                emotions=EMOTIONS if (sets.train.emotions >= 0).any() else (),
                strategy=strategy.value,
                head=head.value,
                wide="text" if sets.options.wide is not None else "",
            )
            chosen = choose_device(device)
            best_epochs = 0
            if trials:
                from services.training.search import search  # Optuna, only where a search is wanted

                network, facts["best_trial"] = search(
                    config,
                    sets.train,
                    sets.dev,
                    sets.options,
                    trials,
                    weights=sets.weights,
                    device=chosen,
                    report=lambda number, best: progress(f"trials, best {best:.3f}", number + 1, trials),
                )
            else:
                network, best_epochs = fit_counting(
                    config,
                    sets.train,
                    sets.dev,
                    sets.options,
                    weights=sets.weights,
                    device=chosen,
                    report=report,
                )
            facts["parameters"] = sum(parameter.numel() for parameter in network.parameters())
            judge = evaluation.NetworkJudge(network)
            parts = {str(part): sets.dev.take(sets.dev.parts == part) for part in np.unique(sets.dev.parts)}
            dev_result = {
                part: evaluation.evaluate(judge, rows, seed=seed)
                for part, rows in parts.items()
                if (rows.labels >= 0).any()
            }
            dev_emotions = {
                part: felt for part, rows in parts.items() if (felt := evaluation.emotions(network, rows))
            }
            if sets.held_out and best_epochs:  # they have told when to stop; now they teach as well
                everything = joined([sets.train, sets.dev])
                network = refit(network, everything, sets.options, best_epochs, chosen)
                facts["refitted_epochs"] = best_epochs
            save(network.cpu(), out, facts)
        if sets.texts:
            np.save(out / TRAINED_ON, recipe.text_codes(sets.texts))
    result = {
        "model": str(out),
        "model_version": _version(out),
        "classes": list(sets.classes),
        "seconds": round(time.perf_counter() - began, 1),
        **facts,
        "dev": dev_result,
        "dev_emotions": dev_emotions,
    }
    if as_json:
        print(json.dumps(result))
        return
    for found, title in ((dev_result, "dev set"), (dev_emotions, "emotions of the dev set")):
        if found:
            _show({name or "dev": measured for name, measured in found.items()}, f"{out}: {title}")


@dataclass(frozen=True, slots=True, eq=False)
class _Sets:
    """What a training works on.

    held_out: whether the rows to decide by were taken from those to train on. texts: those it was trained on,
    where the model must be able to prove it.
    """

    train: Examples
    dev: Examples
    classes: tuple[str, ...]
    options: FitOptions
    weights: npt.NDArray[np.float64] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    held_out: bool = False


def _widths(examples: Examples, names: str) -> dict[str, int]:
    """Width of the vectors of each of these slots, separated by commas."""
    wanted = [name.strip() for name in names.split(",")]
    unknown = [name for name in wanted if name not in examples.vectors]
    if unknown:
        raise manifest.ManifestError(
            f"--slots: no {', '.join(unknown)} among {', '.join(examples.slots)}, which the rows have"
        )
    return {name: examples.vectors[name].shape[1] for name in wanted}


def _feature_sets(file: Path, dev_file: Path | None, options: FitOptions) -> _Sets:
    examples, classes = features.from_file(file)
    if dev_file is not None:
        return _Sets(examples, features.from_file(dev_file, classes)[0], classes, options)
    groups = examples.groups.tolist()
    if not any(groups):  # of VIDEO_N, the video: its utterances must not be on both sides
        groups = [name.rpartition("_")[0] or name for name in examples.ids.tolist()]
    out = _held_out(groups, options.seed)
    return _Sets(examples.take(~out), examples.take(out), classes, options, held_out=True)


def _labelled_rows(
    file: Path, dev_file: Path | None, mapping: str, labels: str, seed: int
) -> tuple[list[manifest.Row], list[manifest.Row], tuple[str, ...]]:
    """Rows to train on, rows to decide by (of the second file, else groups held out of the first), and the
    classes."""
    columns = manifest.parse_map(mapping)
    rows = manifest.of_labels(manifest.read(file, columns), labels)
    found = manifest.classes(rows)
    if len(found) < 2:
        raise manifest.ManifestError(f"{file} has {len(found)} labels; two or more are needed")
    if dev_file is not None:
        return rows, manifest.of_labels(manifest.read(dev_file, columns), labels), found
    held = _held_out([row.group or row.id for row in rows], seed)
    return (
        [row for row, is_out in zip(rows, held, strict=True) if not is_out],
        [row for row, is_out in zip(rows, held, strict=True) if is_out],
        found,
    )


def _manifest_sets(
    rows: Sequence[manifest.Row],
    dev_rows: Sequence[manifest.Row],
    classes: tuple[str, ...],
    options: FitOptions,
    tuning: TuneOptions,
    with_lexicon: bool,
    copies: int,
    out: Path,
    device: str,
    progress: features.Progress,
) -> _Sets:
    model, text = ModelSettings(), TextModelSettings()
    tunes = tuning.mode != "none" and any(row.text for row in rows)
    # A folder of the user's own is no model that another adapter can be laid over.
    reads = with_lexicon and text.adapter in (SHIPPED, NO_ADAPTER) and _for_lexicon(rows)
    if tunes:
        _, tuned_says = _tune(
            rows, dev_rows, classes, tuning, text, out / ADAPTER, device, progress, beside_lexicon=True
        )
        options = replace(options, wide=tuned_says)
    elif reads:
        _learn_lexicon(rows, dev_rows, classes, options.seed, text, out / ADAPTER, progress)
    if tunes or reads:
        text = text.model_copy(update={"adapter": str(out / ADAPTER)})
    elif (out / ADAPTER).is_dir():
        shutil.rmtree(out / ADAPTER)  # of an earlier training into this folder
    open_encoder = features.encoders(model, text)
    changes: list[features.Change | None] = [None]
    if copies:
        from services.training.augment import copier  # torchvision and torchaudio, only where copies are made

        changes += [copier(options.seed, copy) for copy in range(copies)]
    train_set = joined(
        [
            features.from_rows(rows, classes, open_encoder, model.cache_dir, progress, change)
            for change in changes
        ]
    )
    if tunes or reads:
        # A copy's words are nearly those of its row: the lexicon must not have seen either.
        train_set = _unseen(train_set, [row.text for row in rows] * len(changes), text)
    dev_set = features.from_rows(dev_rows, classes, open_encoder, model.cache_dir, progress)
    facts: dict[str, Any] = {"augmented_copies": copies} if copies else {}
    facts |= {"encoders": {slot: open_encoder(_ENCODER_OF[slot]).model_version for slot in train_set.slots}}
    return _Sets(train_set, dev_set, classes, options, facts=facts)


def _shipped_sets(data: Path, seed: int, progress: features.Progress) -> _Sets:
    model, text = ModelSettings(), TextModelSettings()
    rows, _ = recipe.text_rows(data)
    open_encoder = features.encoders(model, text)

    def unseen(examples: Examples, texts: list[str]) -> Examples:
        return _unseen(examples, texts, text)

    train_set, weights, dev_set = recipe.shipped(data, open_encoder, model.cache_dir, progress, unseen=unseen)
    facts = {"encoders": {slot: open_encoder(m).model_version for slot, m in _ENCODER_OF.items()}}
    texts = tuple(row.text for row in rows)
    return _Sets(train_set, dev_set, SENTIMENTS, recipe.options(seed), weights, facts, texts)


def _unseen(examples: Examples, texts: list[str], text: TextModelSettings) -> Examples:
    """What the text model's lexicon, fitted to these very texts, would say of them had it not seen them."""
    folder = adapter_folder(text.model, text.adapter)
    own = load_lexicon(folder) if folder is not None else None
    if own is None or "text" not in examples.slots:
        return examples
    from services.training.lexicon import as_if_unseen  # scikit-learn, only where a lexicon is fitted

    return as_if_unseen(examples, texts, own.classes)


def _text_recipe(
    data: Path, tuning: TuneOptions, out: Path, device: str, progress: features.Progress, as_json: bool
) -> None:
    """Fine-tunes the default text model into the adapter that ships."""
    rows, dev_rows = recipe.text_rows(data)
    tuning = replace(tuning, mode="full", measure="macro_recall")
    base = TextModelSettings(adapter=NO_ADAPTER)
    # Without the lexicon in sight, as the adapter that ships was made.
    measured, _ = _tune(rows, dev_rows, SENTIMENTS, tuning, base, out, device, progress, beside_lexicon=False)
    np.save(out / TRAINED_ON, recipe.text_codes([row.text for row in rows]))
    if as_json:
        print(json.dumps({"adapter": str(out), "dev": measured}))
    else:
        Console().print(f"{out}: " + ", ".join(f"{name} {value:.3f}" for name, value in measured.items()))


def _tune(
    rows: Sequence[manifest.Row],
    dev_rows: Sequence[manifest.Row],
    classes: tuple[str, ...],
    tuning: TuneOptions,
    text: TextModelSettings,
    folder: Path,
    device: str,
    progress: features.Progress,
    *,
    beside_lexicon: bool,
) -> tuple[dict[str, float], Wide | None]:
    """Fine-tunes the text model into an adapter folder; returns the dev measures of each part.

    beside_lexicon: it learns what the lexicon of the labels does not say, and what both say together comes
    back as the wide part of the network on top. Trained on the same texts, of which the tuned model is nearly
    sure, that network would believe the text model alone.
    """
    from services.training import lexicon  # scikit-learn, only where a lexicon is fitted

    model = ModelSettings()
    if text.adapter not in (SHIPPED, NO_ADAPTER):
        raise manifest.ManifestError(
            "--fine-tune starts from the shipped text model: unset CROWDTONE_TEXT_ADAPTER"
        )
    e5 = E5.load(
        text.model,
        cache_dir=model.cache_dir,
        device=choose_device(device),
        max_tokens=text.max_tokens,
        prefix=text.prefix,
        adapter=text.adapter,
    )

    def task(some: Sequence[manifest.Row]) -> Task:
        return Task(
            texts=[row.text for row in some],
            labels=features.numbered([row.label for row in some], classes),
            emotions=features.numbered([row.emotion for row in some], EMOTIONS),
            weights=np.ones(len(some)),
            parts=np.array([row.part for row in some], str),
        )

    def report(place: str, measured: dict[str, float]) -> None:
        told = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
        error_console.print(f"text model, epoch {place}: {told}", highlight=False)

    train_task, dev_task = task(rows), task(dev_rows)
    lexicon_of_all = lexicon.fit(train_task.texts, train_task.labels, len(classes), tuning.seed)
    if beside_lexicon:
        unseen = lexicon.out_of_fold(train_task.texts, train_task.labels, len(classes), tuning.seed)
        train_task = replace(train_task, said=unseen)
        dev_task = replace(dev_task, said=lexicon_of_all.logits(dev_task.texts))
    states = tuple(
        lower_states(e5, each.texts, tuning.layers, lambda done, of: progress("reading the texts", done, of))
        for each in (train_task, dev_task)
    )
    tuned = tune(
        e5,
        train_task,
        dev_task,
        len(classes),
        tuning,
        folder,
        over=SHIPPED if adapter_folder(text.model, text.adapter) == SHIPPED_ADAPTER else NO_ADAPTER,
        states=(states[0], states[1]),
        report=report,
    )
    add_lexicon(folder, lexicon_of_all)
    # The upper layers alone, on states that are there: half of what the encoder would cost.
    encoder = features.encoders(model, text.model_copy(update={"adapter": str(folder)}))(Modality.TEXT)
    for each, its_states in zip((train_task, dev_task), states, strict=True):
        deep = vectors(tuned, its_states, e5.device)
        told = (e5.told(each.texts), lexicon_of_all.logits(each.texts))
        whole = np.concatenate([deep, *(logits.astype(np.float16) for logits in told)], axis=1)
        whole[~deep.any(1)] = 0
        features.remember(encoder, each.texts, whole, model.cache_dir)
    (folder / CHECKPOINT).unlink()
    measured = dev_measures(tuned, dev_task, states[1], len(classes), tuning.measure, e5.device)
    return measured, wide(tuned, e5.dimension)


def _for_lexicon(rows: Sequence[manifest.Row]) -> bool:
    """Whether a lexicon of the rows' labels can be learned from them, and be kept from what it has seen."""
    return sum(bool(row.text and row.label) for row in rows) >= LEXICON_ROWS and not any(
        row.audio for row in rows
    )


def _learn_lexicon(
    rows: Sequence[manifest.Row],
    dev_rows: Sequence[manifest.Row],
    classes: tuple[str, ...],
    seed: int,
    text: TextModelSettings,
    folder: Path,
    progress: features.Progress,
) -> None:
    """Writes an adapter folder that adds a lexicon of these labels to the text model as it is."""
    from services.training import lexicon  # scikit-learn, only where a lexicon is fitted

    model = ModelSettings()
    texts = [row.text for row in rows]
    said = lexicon.fit(texts, features.numbered([row.label for row in rows], classes), len(classes), seed)
    shipped = adapter_folder(text.model, text.adapter) == SHIPPED_ADAPTER
    save_lexicon(folder, said, over=SHIPPED if shipped else NO_ADAPTER)
    # What the text model makes of the texts stays: only the lexicon's values come to it.
    inputs = [Input(row.text) for row in [*rows, *dev_rows] if row.text.strip()]
    before = features.encoders(model, text)(Modality.TEXT)
    vectors, index = features.embed(before, inputs, model.cache_dir, progress)[Modality.TEXT]
    given = np.flatnonzero(index >= 0)
    known = [inputs[i].text for i in given.tolist()]
    whole = np.concatenate([vectors[index[given]], said.logits(known).astype(np.float16)], axis=1)
    after = features.encoders(model, text.model_copy(update={"adapter": str(folder)}))(Modality.TEXT)
    features.remember(after, known, whole, model.cache_dir)


def evaluate(
    manifest_file: Annotated[
        Path | None, typer.Option("--manifest", help="CSV or JSONL with labelled posts, as for `train`.")
    ] = None,
    features_file: Annotated[
        Path | None, typer.Option("--features", help=".npz of ready-made vectors, as for `train`.")
    ] = None,
    model: Annotated[
        Path, typer.Option(help="Folder of the model; by default the shipped one.")
    ] = SHIPPED_WEIGHTS,
    map: Map = "",
    labels: Labels = "",
    report: Annotated[
        Path | None, typer.Option(help="Folder to write report.html with its plots into.")
    ] = None,
    robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            help="Also the same rows with typos, blur, noise, ..., and sets of negation and sarcasm.",
        ),
    ] = False,
    robustness_rows: Annotated[
        int, typer.Option(min=1, help="Rows of each modality that --robustness alters, at most.")
    ] = 500,
    sarcasm: Annotated[
        Path | None,
        typer.Option(
            help="With --robustness: CSV of `text` and a `label` of sarcasm, to see how each is judged."
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a model on labelled posts: overall, by class, language and modality, with intervals and
    calibration.

    Every combination of modalities that the rows have is measured with the others withheld.
    """
    with _refusing(), _progress(as_json) as progress:
        judge: evaluation.Judge
        # As it was trained: a `FusionModel` folds its network, which rounds otherwise.
        network = None if utterances.is_context(model) else load_network(model).to(choose_device(device))
        if network is None:
            judge = utterances.ContextModel.load(model)
        else:
            judge = evaluation.NetworkJudge(network)
        classes = judge.classes
        if robustness and manifest_file is None:
            raise manifest.ManifestError("--robustness goes with --manifest: it alters what is encoded")
        if features_file is not None:
            examples, _ = features.from_file(features_file, classes)
        elif manifest_file is not None:
            rows = manifest.of_labels(manifest.read(manifest_file, manifest.parse_map(map)), labels)
            open_encoder, cache_dir = _encoders_of(model), ModelSettings().cache_dir
            examples = features.from_rows(rows, classes, open_encoder, cache_dir, progress)
        else:
            raise manifest.ManifestError("nothing to evaluate on: give --manifest or --features")
        version = _version(model)
        result = {"model_version": version} | evaluation.evaluate(judge, examples, seed=seed)
        felt = evaluation.emotions(network, examples) if network is not None else None
        if felt is not None:
            result["emotions"] = felt
        if robustness:
            from services.training import robustness as suite  # torchvision and torchaudio, only for this

            result["robustness"] = suite.measure(
                judge, rows, open_encoder, cache_dir, max_rows=robustness_rows, seed=seed, progress=progress
            )
            if sarcasm is not None:
                result["robustness"]["sarcasm_file"] = suite.by_label(
                    manifest.read(sarcasm), judge, open_encoder, cache_dir, progress
                )
        if report is not None:
            from services.training.report import write  # matplotlib, only where a page is wanted

            page = write(result, report, f"{version} on {manifest_file or features_file}")
            error_console.print(f"report: {page}")
    if as_json:
        print(json.dumps(result))
        return
    _show({"all": result}, version)
    _show(result["per_language"], "by language")
    _show(result["per_subset"], "by modalities, the others withheld")
    if "emotions" in result:
        _show({"all": result["emotions"]}, "emotions")
    if robustness:
        _show_robustness(result["robustness"])


def predict(
    text: Annotated[str, typer.Option(help="The words of the post.")] = "",
    image: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A picture.")] = None,
    audio: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A sound.")] = None,
    language: Annotated[str, typer.Option(help="Language of the text, as a hint to the transcript.")] = "und",
    model: Annotated[
        Path, typer.Option(help="Folder of the model; by default the shipped one.")
    ] = SHIPPED_WEIGHTS,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score one post: probabilities, score, emotions, and what each modality contributed."""
    with _refusing(), _progress(as_json):
        if not (text or image or audio):
            raise manifest.ManifestError("nothing to score: give --text, --image or --audio")
        loaded = FusionModel.load(model, device)
        open_encoder = _encoders_of(model)
        vectors: dict[str, Any] = {}
        absent: dict[str, str] = {}
        transcript = ""
        asked = [
            (Modality.TEXT, Input(text, language) if text else None),
            (Modality.IMAGE, Input(text, language, (image.read_bytes(),)) if image else None),
            (Modality.AUDIO, Input(text, language, (audio.read_bytes(),)) if audio else None),
        ]
        for modality, item in asked:
            if item is None:
                continue
            (answers,) = open_encoder(modality).encode([item])
            for slot, found in answers.items():
                transcript = found.transcript or transcript
                if found.vector is None:
                    absent[slot.name.lower()] = found.absent_reason
                elif slot.name.lower() in loaded.slots:
                    vectors[slot.name.lower()] = found.vector
        opinion = loaded.judge([vectors])
    scored = bool(vectors)
    p = opinion.probabilities[0]
    result: dict[str, Any] = {
        "label": loaded.config.classes[int(p.argmax())] if scored else "unscored",
        "probabilities": dict(zip(loaded.config.classes, p.tolist(), strict=True)) if scored else {},
        "score": float(opinion.explained[0]) if scored else 0.0,
        "prior": float(opinion.prior[0]),
        "contributions": {
            slot: float(opinion.contributions[0, loaded.slots.index(slot)]) for slot in vectors
        },
        "emotions": dict(zip(loaded.config.emotions, opinion.emotions[0].tolist(), strict=True))
        if scored
        else {},
        "absent": absent,
        "transcript": transcript,
        "model_version": loaded.model_version,
    }
    if as_json:
        print(json.dumps(result))
        return
    console = Console()
    console.print(f"[bold]{result['label']}[/bold]  score {result['score']:+.3f}  ({loaded.model_version})")
    for heading in ("probabilities", "contributions", "emotions"):
        shown = sorted(result[heading].items(), key=lambda item: -abs(item[1]))
        if shown:
            console.print(f"{heading}: " + ", ".join(f"{name} {value:+.3f}" for name, value in shown))
    for name, reason in absent.items():
        console.print(f"{name}: absent, {reason}", markup=False)
    if transcript:
        console.print(f"heard: {transcript}", markup=False)


_ENCODER_OF: Final[Mapping[str, Modality]] = {
    "text": Modality.TEXT,
    "image": Modality.IMAGE,
    "audio": Modality.AUDIO,
    "speech": Modality.AUDIO,
}


class _TensorBoard:
    """Scalars by epoch, where a folder was given for them."""

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def write(self, step: int, measured: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in measured.items():
                self._writer.add_scalar(name.replace(" ", "/"), value, step)
            self._writer.flush()


def _encoders_of(model: Path) -> features.OpenEncoders:
    """The encoders the model was trained with: with its adapter, where it has one of its own."""
    adapter = model / ADAPTER
    text = TextModelSettings(adapter=str(adapter)) if adapter.is_dir() else None
    open_any = features.encoders(text=text)
    trained_with = FusionModel.load(model, "cpu").encoders

    def open_encoder(modality: Modality) -> Encoder:
        encoder = open_any(modality)
        for slot in encoder.slots:
            if not same_model(trained_with.get(slot, encoder.model_version), encoder.model_version):
                raise manifest.ManifestError(
                    f"{model} was trained with {trained_with[slot]}; configured is {encoder.model_version}, "
                    "whose vectors mean something else: configure the former, or train again"
                )
        return encoder

    return open_encoder


def _held_out(groups: Sequence[str], seed: int) -> npt.NDArray[np.bool_]:
    """(N,) which rows to decide by: whole groups, 15 % of them."""
    names = np.random.default_rng(seed).permutation(np.unique(np.array(groups, str)))
    out = np.isin(np.array(groups, str), names[: max(1, len(names) * _HELD_OUT_PERCENT // 100)])
    if out.all():
        raise manifest.ManifestError("all rows are of one group: nothing can be held out; give --dev")
    return out


def _version(folder: Path) -> str:
    if utterances.is_context(folder):
        return f"{folder.name}@{sha256_of(folder / utterances.WEIGHTS)[:12]}"
    return FusionModel.load(folder, "cpu").model_version


@contextmanager
def _refusing() -> Iterator[None]:
    """Bad input ends with its reason and exit code 2, not with a traceback."""
    try:
        yield
    except (manifest.ManifestError, FileNotFoundError) as error:
        _refuse(str(error))


def _refuse(reason: str) -> NoReturn:
    error_console.print(f"[red]{reason}[/red]" if "[" not in reason else reason, markup="[" not in reason)
    raise typer.Exit(USAGE_EXIT)


@contextmanager
def _progress(as_json: bool) -> Iterator[features.Progress]:
    """Bars on standard error, one per thing that is done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=error_console, disable=as_json and not error_console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield progress


def _show(rows: Mapping[str, Mapping[str, Any]], title: str) -> None:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("rows", "accuracy", "macro recall", "macro f1", "weighted f1", "ece"):
        table.add_column(name, justify="right")
    for name, row in rows.items():
        values = (row[key] for key in ("accuracy", "macro_recall", "macro_f1", "weighted_f1", "ece"))
        table.add_row(name, str(row["rows"]), *(f"{value:.3f}" for value in values))
    Console().print(table)


def _show_robustness(found: Mapping[str, Any]) -> None:
    console = Console()
    table = Table(title="robustness: the same rows, altered", title_justify="left")
    table.add_column("")
    for name in ("rows", "accuracy", "drop", "macro f1", "drop", "judged otherwise"):
        table.add_column(name, justify="right")
    for name, row in found["alterations"].items():
        keys = ("accuracy", "accuracy_drop", "macro_f1", "macro_f1_drop", "otherwise")
        table.add_row(name, str(row["rows"]), *(f"{row[key]:.3f}" for key in keys))
    console.print(table)
    for name in ("negation", "sarcasm", "sarcasm_file"):
        if name in found:
            told = {key: value for key, value in found[name].items() if key != "per_language"}
            console.print(f"{name}: {json.dumps(told)}", markup=False)
