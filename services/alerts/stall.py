"""Whether the process still does its work, judged by what the brokers say of it. Pure: time is an argument.

Faust can go silent with its partitions assigned and its records unread (faust-streaming issues #175, #629,
#640), and nothing inside it notices. The group's committed offsets do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


class Stall:
    """Remembers since when each partition has records waiting and has not moved."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._still: dict[int, tuple[int, float]] = {}
        self._restored: int | None = None

    def seen(
        self,
        progress: Mapping[int, tuple[int, int]],
        owned: Collection[int],
        now: float,
        *,
        restored: int | None = None,
    ) -> frozenset[int]:
        """Partitions that stand still and are ours to move.

        progress: partition -> (committed offset, end). owned: those assigned to this process; a process
        without any answers for all, for it may be what hangs in joining the group.
        restored: how far the table was read back, while it is; nothing else moves meanwhile, and where that
        takes longer than `stall_s` a process that gave up would never come to its records.
        """
        if restored != self._restored:
            self._still = {partition: (committed, now) for partition, (committed, _) in self._still.items()}
        self._restored = restored
        for partition, (committed, end) in progress.items():
            before = self._still.get(partition)
            if committed >= end:
                self._still.pop(partition, None)
            elif before is None or before[0] != committed:
                self._still[partition] = (committed, now)
        return frozenset(
            partition
            for partition, (_, since) in self._still.items()
            if now - since >= self._stall_s and (not owned or partition in owned)
        )
