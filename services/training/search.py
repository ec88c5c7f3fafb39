"""Searches how to fit a network: Optuna's tree-structured Parzen estimator over rates, sizes and what is
withheld.

Source: Akiba et al. 2019 (Optuna); Bergstra et al. 2011 (TPE).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna

from services.fusion.model import FusionNetwork, ModelConfig
from services.training.examples import Examples
from services.training.fit import FitOptions, dev_measure, fit


def search(
    config: ModelConfig,
    train: Examples,
    dev: Examples,
    options: FitOptions,
    trials: int,
    *,
    weights: npt.NDArray[np.float64] | None = None,
    device: str = "cpu",
    report: Callable[[int, float], None] | None = None,
) -> tuple[FusionNetwork, dict[str, Any]]:
    """The network of the best trial by the dev measure, and its settings. The first trial is what was asked
    for.

    The dev set chooses among the trials, so its figures flatter the more the more trials there are.
    """
    best: list[tuple[float, FusionNetwork]] = []

    def trial_value(trial: optuna.Trial) -> float:
        tried = replace(
            options,
            learning_rate=trial.suggest_float("learning_rate", 2e-4, 5e-3, log=True),
            weight_decay=trial.suggest_float("weight_decay", 1e-3, 0.3, log=True),
            drop_slot=trial.suggest_float("drop_slot", 0.0, 0.5),
            label_smoothing=trial.suggest_float("label_smoothing", 0.0, 0.15),
        )
        shape = replace(
            config,
            width=trial.suggest_categorical("width", [32, 64, 128]),
            layers=trial.suggest_int("layers", 1, 3),
            dropout=trial.suggest_float("dropout", 0.0, 0.6),
        )
        network = fit(shape, train, dev, tried, weights=weights, device=device)
        value = dev_measure(network, dev, options.measure, device)
        if not best or value > best[0][0]:
            best[:] = [(value, network)]
        if report is not None:
            report(trial.number, best[0][0])
        return value

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=options.seed))
    study.enqueue_trial(
        {
            "learning_rate": options.learning_rate,
            "weight_decay": options.weight_decay,
            "drop_slot": options.drop_slot,
            "label_smoothing": options.label_smoothing,
            "width": config.width,
            "layers": config.layers,
            "dropout": config.dropout,
        }
    )
    study.optimize(trial_value, n_trials=trials)
    return best[0][1], dict(study.best_params)
