"""A model that breaks after its start is noticed although no post is there to show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from services.fusion.canary import Canary, watched
from services.fusion.model import FusionModel
from services.fusion.settings import SHIPPED_WEIGHTS
from services.fusion.testing import FakeClassifier, verdicts_of
from services.fusion.verdicts import Verdicts
from shared.errors import ModelBroken
from shared.messages import Modality, Record, Result, Vector, Verdict

RECORD = Record("embeddings", 0, 0, None, b"", ())


class Turning:
    """A classifier whose answers somebody can change."""

    dimensions = FakeClassifier().dimensions
    encoders = FakeClassifier().encoders

    def __init__(self) -> None:
        self.change: Callable[[Verdict], Verdict] = lambda verdict: verdict

    def classify(self, posts: Sequence[Mapping[Modality, Vector]]) -> Verdicts:
        found = [self.change(verdict) for verdict in FakeClassifier().classify(posts)]
        return verdicts_of(found, found[0].model_version)


def device_is_gone(verdict: Verdict) -> Verdict:
    raise RuntimeError("the device is gone")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda verdict: replace(verdict, score=verdict.score + 0.1), "moved by 0.1000"),
        (lambda verdict: replace(verdict, score=float("nan")), "no numbers"),
        (device_is_gone, "the device is gone"),
    ],
)
def test_a_model_that_turns_is_broken(change: Callable[[Verdict], Verdict], reason: str) -> None:
    classifier = Turning()
    canary = Canary(classifier)
    canary.check()
    classifier.change = change
    with pytest.raises(ModelBroken, match=reason):
        canary.check()


@pytest.mark.parametrize("change", [lambda verdict: replace(verdict, score=float("nan")), device_is_gone])
def test_a_model_that_is_broken_from_the_start_does_not_start(change: Callable[[Verdict], Verdict]) -> None:
    classifier = Turning()
    classifier.change = change
    with pytest.raises(ModelBroken):
        Canary(classifier)


def test_the_shipped_model_judges_its_canary_the_same_again() -> None:
    Canary(FusionModel.load(SHIPPED_WEIGHTS, "cpu")).check()


def test_it_is_asked_only_when_nothing_came_for_a_while() -> None:
    asked: list[float] = []
    now = 0.0

    class Noting:
        def check(self) -> None:
            asked.append(now)

    stepped: list[tuple[int, float]] = []

    def step(records: Sequence[Record], at: float) -> Result:
        stepped.append((len(records), at))
        return Result([], {}, 0)

    run = watched(step, Noting(), canary_s=60)
    for now, records in (
        (0, []),
        (59, []),
        (60, []),
        (100, []),
        (110, [RECORD]),
        (160, []),
        (171, []),
        (5, []),
    ):
        run(records, now)
    assert asked == [60, 171, 5]
    assert len(stepped) == 8
