"""What the alerts service is configured with. Read once, by __main__."""

from __future__ import annotations

from typing import Final

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings

GROUP: Final = "alerts"
"""Consumer group, and Faust's application id: with the topic prefix, the start of its changelog's name."""


class DetectSettings(Settings):
    """What counts as a turn. The false alarms that follow from it are in README.md."""

    model_config = SettingsConfigDict(env_prefix="CROWDTONE_ALERTS_")

    window_s: int = Field(3600, ge=60, multiple_of=60, description="width of a window of event time")
    baseline_windows: int = Field(24, ge=4, description="how many windows before it a window is held against")
    min_windows: int = Field(8, ge=2, description="windows a baseline must have; fewer are not judged by")
    mood_deviation: float = Field(3.5, gt=0, description="deviations of chance that make a change of mood")
    min_change: float = Field(0.3, ge=0, le=2, description="least change of mean mood, on [-1, 1]")
    min_posts: int = Field(5, ge=1, description="scored posts a window must have to be judged by its mood")
    min_baseline_posts: int = Field(20, ge=1, description="scored posts its baseline must have")
    spike_deviation: float = Field(4.0, gt=0, description="deviations of chance that make a spike of volume")
    min_spike_ratio: float = Field(2.0, ge=1, description="least volume of a spike over the usual one")
    min_spike_posts: int = Field(12, ge=1, description="least posts of a spike")


class AlertsSettings(Settings):
    """When windows are judged, and when this process gives up on itself."""

    model_config = SettingsConfigDict(env_prefix="CROWDTONE_ALERTS_")

    lateness_s: float = Field(
        300.0, ge=0, description="event time by which the newest post must pass a window's end to close it"
    )
    settle_s: float = Field(2.0, ge=0, description="a closed window is judged when quiet for so long")
    open_settle_s: float = Field(10.0, ge=0, description="and one that is still open after this")
    max_wait_s: float = Field(60.0, gt=0, description="one that is never quiet is judged this often")
    keep_windows: int = Field(
        20_000, ge=1, description="rows of the table of arrivals for each partition: bounds memory"
    )
    sweep_windows: int = Field(
        168, ge=1, description="newest windows of every topic that a sweep judges again, whatever arrived"
    )
    sweep_s: float = Field(600.0, gt=0, description="time between sweeps; the first is at the start")
    stall_s: float = Field(90.0, gt=0, description="records waiting and no progress for so long: exit 75")
    drain_s: float = Field(15.0, gt=0, description="after SIGTERM: how long until it ends, drained or not")
