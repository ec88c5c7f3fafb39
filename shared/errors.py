"""The kinds of failure a service tells apart; everything else is a bug and crashes."""


class InvalidMessage(ValueError):
    """The data's fault: becomes a dead letter or an `absent` answer with this reason, never a retry."""


class Unavailable(RuntimeError):
    """A dependency stayed away through its bounded retries: the process exits, its offsets uncommitted."""


class Fenced(RuntimeError):
    """Another process owns `partitions` now: what this one wanted to write is refused, all of it."""

    def __init__(self, partitions: frozenset[int]) -> None:
        super().__init__(f"another process has claimed partitions {sorted(partitions)}")
        self.partitions = partitions


class ModelBroken(RuntimeError):
    """The model no longer does what it did at the start: the process must end, and nothing of its be kept."""
