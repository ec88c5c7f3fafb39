"""The evaluation as one HTML page with its plots inside: no script, no network. Writes a file, measures
nothing."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;color:#1c2330}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;text-align:right;border-bottom:1px
solid #dde2ea}th:first-child,td:first-child{text-align:left}img{max-width:100%;height:auto}"""
_MEASURES = ("rows", "accuracy", "macro_recall", "macro_f1", "weighted_f1", "ece")


def write(result: Mapping[str, Any], folder: Path, title: str) -> Path:
    """Write folder/report.html from what `evaluation.evaluate` returned, and say where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _table("All rows", {"all": result}),
        "<p>95 % intervals by bootstrap: "
        + ", ".join(f"{name} {low:.3f} to {high:.3f}" for name, (low, high) in result["intervals_95"].items())
        + ".</p>",
        _per_class(result["per_class"]),
        _image(_confusion(result["confusion"], result["classes"]), "confusion matrix"),
        _table("By language", result["per_language"]),
        _table("By modalities, the others withheld", result["per_subset"]),
        _paired(result["paired"]),
        _image(_reliability(result["reliability"]), "reliability"),
        _image(_missing(result["missing_rate"]), "measures as modalities go missing"),
        *(_emotions(result["emotions"]) if "emotions" in result else ()),
        *(_robustness(result["robustness"]) if "robustness" in result else ()),
    ]
    path = folder / "report.html"
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><body>{''.join(sections)}</body></html>\n"
    )
    return path


def _table(heading: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{name.replace('_', ' ')}" for name in _MEASURES)
    body = "".join(
        f"<tr><td>{html.escape(name)}"
        + "".join(f"<td>{row[m]:.3f}" if isinstance(row[m], float) else f"<td>{row[m]}" for m in _MEASURES)
        for name, row in rows.items()
    )
    return f"<h2>{html.escape(heading)}</h2><table><tr><th>{head}{body}</table>"


def _per_class(rows: Mapping[str, Mapping[str, Any]], heading: str = "By class") -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    body = "".join(
        f"<tr><td>{html.escape(name)}<td>{row['rows']}<td>{shown(row['precision'])}"
        f"<td>{shown(row['recall'])}<td>{shown(row['f1'])}"
        for name, row in rows.items()
    )
    return f"<h2>{heading}</h2><table><tr><th><th>rows<th>precision<th>recall<th>f1{body}</table>"


def _emotions(found: Mapping[str, Any]) -> list[str]:
    emotions = list(found["per_class"])
    return [
        _table("Emotions", {"all": found}),
        _per_class(found["per_class"], "By emotion"),
        _image(_confusion(found["confusion"], emotions), "confusion matrix of the emotions"),
    ]


def _rows(heading: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3f}" if value >= 0.0005 or value <= 0 else f"{value:.1e}"
        return "-" if value is None else html.escape(str(value))

    head = "".join(f"<th>{html.escape(name.replace('_', ' '))}" for name in columns)
    body = "".join(
        f"<tr><td>{html.escape(name)}" + "".join(f"<td>{shown(row[column])}" for column in columns)
        for name, row in rows.items()
    )
    return f"<h2>{html.escape(heading)}</h2><table><tr><th>{head}{body}</table>"


def _paired(rows: Mapping[str, Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns = ("rows", "all_accuracy", "subset_accuracy", "all_only_right", "subset_only_right", "p")
    return (
        _rows("All modalities against fewer, on the same rows", columns, rows)
        + "<p>p: exact two-sided McNemar test.</p>"
    )


def _robustness(found: Mapping[str, Any]) -> list[str]:
    sections = ["<h2>Robustness</h2>"]
    if found["alterations"]:
        columns = (
            "modality", "rows", "clean_accuracy", "accuracy", "accuracy_drop", "macro_f1", "macro_f1_drop",
            "otherwise",
        )  # fmt: skip
        sections += [
            _rows("The same rows, altered", columns, found["alterations"]),
            f"<p>Of each alteration the rows that it changes, at most {found['max_rows']} of a modality; "
            "otherwise: the share judged otherwise than before.</p>",
            _image(_bars(found["alterations"]), "accuracy of the same rows, altered"),
        ]
    if "negation" in found:
        negation = found["negation"]
        rows = {"all": negation, "not good": negation["not_good"], "not bad": negation["not_bad"]}
        rows |= negation["per_language"]
        sections.append(
            _rows('A "not" in it', ("pairs", "plain_accuracy", "expected_flip_rate", "moved"), rows)
        )
    if "sarcasm" in found:
        sections.append(_rows("Sarcasm", tuple(found["sarcasm"]), {"own lines": found["sarcasm"]}))
    if "sarcasm_file" in found:
        columns = tuple(next(iter(found["sarcasm_file"].values())))
        sections.append(_rows("How posts labelled for sarcasm are judged", columns, found["sarcasm_file"]))
    return sections


def _bars(rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure = Figure(figsize=(7, 0.8 + 0.3 * len(rows)))
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    axes.barh(places, [row["accuracy"] for row in rows.values()], color="#4a7fc1", label="altered")
    axes.scatter(
        [row["clean_accuracy"] for row in rows.values()],
        places, marker="|", s=160, color="#1c2330", label="as they were", zorder=3,
    )  # fmt: skip
    axes.set_yticks(places, list(rows))
    axes.invert_yaxis()
    axes.set(xlabel="accuracy", xlim=(0, 1))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return figure


def _image(figure: Figure, alt: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}"></p>'


def _confusion(table: Sequence[Sequence[int]], classes: Sequence[str]) -> Figure:
    figure = Figure(figsize=(1.5 + len(classes), 1.2 + len(classes)))
    axes = figure.add_subplot()
    counts = np.array(table, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.55 else "black"
        axes.text(
            column, row, f"{share:.2f}\n{int(counts[row, column])}", ha="center", va="center", color=colour
        )
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure


def _reliability(bins: Sequence[Mapping[str, float]]) -> Figure:
    figure = Figure(figsize=(5, 4))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#99a3b3", linewidth=1)
    size = np.array([b["rows"] for b in bins], float)
    axes.scatter(
        [b["confidence"] for b in bins], [b["accuracy"] for b in bins], s=20 + 300 * size / size.sum()
    )
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    return figure


def _missing(curve: Sequence[Mapping[str, float]]) -> Figure:
    figure = Figure(figsize=(5, 4))
    axes = figure.add_subplot()
    for name in ("accuracy", "macro_f1"):
        axes.plot(
            [p["rate"] for p in curve], [p[name] for p in curve], marker="o", label=name.replace("_", " ")
        )
    axes.set(xlabel="share of modalities withheld", ylim=(0, 1))
    axes.legend()
    return figure
