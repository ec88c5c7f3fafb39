"""One fault from its first post to its line in the table."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, timedelta
from statistics import median
from typing import Final

from tests.faults.feed import Feed, Plan
from tests.faults.injections import FAULTS, CannotInject, Fault, Scene
from tests.faults.recount import Published, recount
from tests.faults.system import System, wait_until

FIRST_DAY: Final = date(2026, 1, 1)
WAITED_FOR: Final = 0.25
"""Share of the injections whose recovery is waited for; the next one strikes in the midst of the others."""
MEANWHILE_S: Final = 3.0
RECOVERY_TIMEOUT_S: Final = 240.0
DRAIN_TIMEOUT_S: Final = 600.0
EXPECTED_ENDS: Final = re.compile(r" (exit 75|SIGKILL|SIGTERM)$")
"""A dependency was away; we killed it; it had not yet a handler."""


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. problems: what does not hold; skipped: why it could not be injected here."""

    name: str
    what: str
    times: int = 0
    posts: int = 0
    lost: int = 0
    duplicated: int = 0
    median_s: float = 0.0
    longest_s: float = 0.0
    restarts: int = 0
    problems: tuple[str, ...] = field(default=())
    skipped: str = ""

    @property
    def holds(self) -> bool:
        return not (self.lost or self.duplicated or self.problems or self.skipped)


def run(
    system: System,
    fault: Fault,
    *,
    posts: int,
    times: int,
    rate_per_s: float,
    chance: random.Random,
    published: Published,
    say: Callable[[str], None],
) -> Row:
    """Inject `fault` so many times while at least `posts` posts flow; then drain and count them.

    A quarter of the injections are waited for until the system has recovered; the others are followed by the
    next within seconds, whatever state the system is in.
    """
    day = FIRST_DAY + timedelta(days=3 * [each.name for each in FAULTS].index(fault.name))
    plan = Plan(fault.name, day, **fault.plan)
    log_from = system.log_size()
    problems: list[str] = []
    recoveries: list[float] = []
    say(f"{fault.name}: {times} times")
    try:
        with fault.around(system):
            feed = system.feed(plan)
            try:
                feed.offer(posts // 4)
                feed.flow(rate_per_s)
                for turn in range(times):
                    last = turn == times - 1
                    if last:
                        feed.offer(max(0, posts - feed.offered))
                    time.sleep(chance.uniform(0, 2))
                    fault.inject(Scene(system, feed, chance, last))
                    if not last and chance.random() >= WAITED_FOR:
                        time.sleep(chance.uniform(0, MEANWHILE_S))
                        continue
                    seconds = _recovery_s(system, fault, feed)
                    say(
                        f"{fault.name} {turn + 1}/{times}: {feed.offered} posts, recovered in {seconds:.1f} s"
                    )
                    if seconds >= RECOVERY_TIMEOUT_S:
                        problems.append(
                            f"not recovered within {RECOVERY_TIMEOUT_S:.0f} s of injection {turn + 1}"
                        )
                    recoveries.append(seconds)
                if not feed.finish(DRAIN_TIMEOUT_S):
                    problems.append(f"no ingest ended well within {DRAIN_TIMEOUT_S:.0f} s: {feed.exits}")
                wait_until(lambda: system.complete(plan, feed.offered) >= feed.offered, DRAIN_TIMEOUT_S)
            finally:
                feed.abandon()
    except CannotInject as reason:
        say(f"{fault.name}: skipped: {reason}")
        return Row(fault.name, fault.what, skipped=str(reason))
    count = recount(system, plan, feed.file, published)
    ends = system.ended(log_from) + [f"ingest exit {code}" for code in feed.exits if code > 0]
    problems += sorted({f"crashed: {end}" for end in ends if not EXPECTED_ENDS.search(end)})
    row = Row(
        fault.name,
        fault.what,
        times=times,
        posts=count.posts,
        lost=count.lost,
        duplicated=count.duplicated,
        median_s=round(median(recoveries), 1),
        longest_s=round(max(recoveries), 1),
        restarts=sum(end.endswith("exit 75") for end in ends),
        problems=(*problems, *count.problems),
    )
    say(
        f"{fault.name}: {row.posts} posts, {row.lost} lost, {row.duplicated} duplicated "
        + "; ".join(row.problems)
    )
    return row


def _recovery_s(system: System, fault: Fault, feed: Feed) -> float:
    """Seconds from now until every post offered so far has its complete verdict, and what else must be."""
    began = time.monotonic()
    offered = feed.offered
    also = fault.recovered(system)
    wait_until(lambda: system.complete(feed.plan, offered) >= offered and also(), RECOVERY_TIMEOUT_S)
    return time.monotonic() - began
