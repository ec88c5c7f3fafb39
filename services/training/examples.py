"""Labelled posts as arrays: what training and evaluation work on. Knows no encoder and no file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Halves = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """N rows that point at vectors, so that one vector can serve many rows.

    vectors: per slot (K, D) float16. index: (N, slots) which vector, -1 for none; columns in the order of
    `vectors`. labels: (N,) class, -1 where none is known. emotions: (N,) emotion, -1 where none is known.
    ids, languages, groups, parts: (N,) as in `manifest.Row`.
    """

    vectors: Mapping[str, Halves]
    index: Ints
    labels: Ints
    emotions: Ints
    ids: npt.NDArray[np.str_]
    languages: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]
    parts: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.index)

    @property
    def slots(self) -> tuple[str, ...]:
        return tuple(self.vectors)

    @property
    def present(self) -> Bools:
        """(N, slots)."""
        return self.index >= 0

    def take(self, rows: npt.NDArray[np.intp] | Bools) -> Examples:
        """The chosen rows, over the same vectors."""
        return replace(
            self,
            index=self.index[rows],
            labels=self.labels[rows],
            emotions=self.emotions[rows],
            ids=self.ids[rows],
            languages=self.languages[rows],
            groups=self.groups[rows],
            parts=self.parts[rows],
        )

    def gather(self, rows: npt.NDArray[np.intp]) -> dict[str, Floats]:
        """(B, D) float32 of every slot that one of the rows has, zeros where a row has none."""
        found = {}
        for column, (slot, vectors) in enumerate(self.vectors.items()):
            index = self.index[rows, column]
            if not (index >= 0).any():
                continue
            block = np.zeros((len(rows), vectors.shape[1]), np.float32)
            block[index >= 0] = vectors[index[index >= 0]]
            found[slot] = block
        return found

    def posts(self, keep: Sequence[str] | None = None) -> Iterator[dict[str, Halves]]:
        """Each row as the mapping that the model takes; `keep` withholds all other slots."""
        slots = [(i, s) for i, s in enumerate(self.vectors) if keep is None or s in keep]
        for row in self.index:
            yield {slot: self.vectors[slot][row[i]] for i, slot in slots if row[i] >= 0}

    def aligned(self, slots: Mapping[str, int]) -> Examples:
        """The same rows with a model's slots (name -> width) in its order: those it has not are absent,
        others go.

        Raises ValueError when a slot's vectors do not have the width the model takes.
        """
        vectors, columns = {}, []
        for slot, width in slots.items():
            if slot in self.vectors:
                found = self.vectors[slot]
                if found.shape[1] != width:
                    raise ValueError(f"{slot} vectors of width {found.shape[1]}; the model takes {width}")
                columns.append(self.index[:, self.slots.index(slot)])
            else:
                found = np.empty((0, width), np.float16)
                columns.append(np.full(len(self), -1, np.int64))
            vectors[slot] = found
        return replace(self, vectors=vectors, index=np.stack(columns, 1))


def joined(parts: Sequence[Examples]) -> Examples:
    """All rows of several sets; a slot that one of them lacks is absent in its rows."""
    slots = list(dict.fromkeys(slot for part in parts for slot in part.vectors))
    vectors: dict[str, Halves] = {}
    columns = []
    for slot in slots:
        total, stacked, column = 0, [], []
        offsets: dict[int, int] = {}  # sets over the same array go on sharing it
        for part in parts:
            if slot in part.vectors:
                index, own = part.index[:, part.slots.index(slot)], part.vectors[slot]
                if id(own) not in offsets:
                    offsets[id(own)] = total
                    stacked.append(own)
                    total += len(own)
                column.append(np.where(index >= 0, index + offsets[id(own)], -1))
            else:
                column.append(np.full(len(part), -1, np.int64))
        vectors[slot] = np.concatenate(stacked)
        columns.append(np.concatenate(column))
    return Examples(
        vectors=vectors,
        index=np.stack(columns, 1).astype(np.int64),
        labels=np.concatenate([part.labels for part in parts]),
        emotions=np.concatenate([part.emotions for part in parts]),
        ids=np.concatenate([part.ids for part in parts]),
        languages=np.concatenate([part.languages for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
        parts=np.concatenate([part.parts for part in parts]),
    )
