"""What is reported of subsets of the modalities, on a judge whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.training import evaluation, report, robustness
from services.training.examples import Examples


class Voter:
    """Says what its first slot with something to say says: text is right for even rows, image for all."""

    classes = ("negative", "positive")
    slots = {"text": 1, "image": 1}  # noqa: RUF012

    def probabilities(
        self, examples: Examples, present: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.float64]:
        shown = examples.present if present is None else present
        right = np.where(shown[:, 1], True, examples.ids.astype(int) % 2 == 0)
        said = np.where(right, examples.labels, 1 - examples.labels)
        return np.where(np.eye(2, dtype=bool)[said], 0.9, 0.1)


def examples(rows: int) -> Examples:
    """Every fourth row has no image."""
    index = np.zeros((rows, 2), np.int64)
    index[3::4, 1] = -1
    return Examples(
        vectors={slot: np.ones((1, 1), np.float16) for slot in Voter.slots},
        index=index,
        labels=np.arange(rows, dtype=np.int64) // 2 % 2,
        emotions=np.full(rows, -1, np.int64),
        ids=np.arange(rows).astype(str),
        languages=np.full(rows, "en"),
        groups=np.full(rows, ""),
        parts=np.full(rows, ""),
    )


def test_fused_against_fewer_is_counted_on_rows_that_have_more() -> None:
    result = evaluation.evaluate(Voter(), examples(40))
    assert set(result["per_subset"]) == {"text", "image", "text+image"}
    assert set(result["paired"]) == {"text", "image"}
    text = result["paired"]["text"]
    # 30 rows have both: the image is right for all of them, the text for the 20 even ones.
    assert (text["rows"], text["all_only_right"], text["subset_only_right"]) == (30, 10, 0)
    assert (text["all_accuracy"], text["subset_accuracy"]) == (1.0, 20 / 30)
    assert text["p"] == 2 / 2**10
    assert result["paired"]["image"]["p"] == 1.0


def test_the_page_shows_all_of_it(tmp_path: Path) -> None:
    result = evaluation.evaluate(Voter(), examples(40))
    labels = np.array([0, 1, 1])
    result["robustness"] = {
        "max_rows": 500,
        "alterations": {
            "noise at 0 dB SNR": {"modality": "audio"}
            | robustness.compared(labels, labels, np.array([0, 0, 1]), 2)
        },
        "negation": robustness.negation(
            ("negative", "neutral", "positive"), lambda texts, _: np.tile([0.0, 0.1, 0.9], (len(texts), 1))
        ),
        "sarcasm": {"lines": 24, "both_of_a_pair": 0.25},
        "sarcasm_file": {"ironic": {"rows": 7, "negative": 0.75, "positive": 0.25}},
    }
    page = report.write(result, tmp_path, "<a model>").read_text()
    for text in ("&lt;a model&gt;", "noise at 0 dB SNR", "not bad", "McNemar", "ironic", "0.333"):
        assert text in page, text
    assert page.count("<img") == 4
