"""What long computations tell of themselves while they last, and when they have to end.

Whatever loops over rows, steps or removals calls :meth:`Watch.tick`, which costs nothing most of
the time. It lets the fit say what it does, about once a second, and ends it, as Ctrl-C does, when
its time is over or a callback asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class OutOfTime(KeyboardInterrupt):
    """The time that a fit may take is over."""


class Watch:
    """Ends computations in time and reports what they do.

    It raises ``OutOfTime`` once: what is done then to end in good order may take its time.

    Pickled as its deadline alone: workers end in time, and report nothing.

    Parameters
    ----------
    deadline : float, default=None
        Seconds since the epoch at which the computation must end.
    beat : callable, default=None
        Told the activity every ``beat_seconds``; says whether the computation shall end.
    beat_seconds : float, default=1
        Seconds between two beats.
    """

    def __init__(
        self,
        deadline: float | None = None,
        beat: Callable[[str], bool] | None = None,
        beat_seconds: float = 1.0,
    ):
        self.deadline = deadline
        self.beat = beat
        self.beat_seconds = beat_seconds
        self.activity = "training"
        self.has_ended = False
        self._last_beat = time.monotonic()

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, (self.deadline,)

    @property
    def is_over(self) -> bool:
        return self.deadline is not None and time.time() >= self.deadline

    def say(self, activity: str) -> None:
        """Tell what is being done from now on, to be reported once it lasts."""
        self.activity = activity
        self.tick()

    def tick(self) -> None:
        if self.is_over and not self.has_ended:
            self.has_ended = True
            raise OutOfTime
        if self.beat is None or time.monotonic() - self._last_beat < self.beat_seconds:
            return
        self._last_beat = time.monotonic()
        if self.beat(self.activity):
            raise KeyboardInterrupt

    def disarm(self) -> None:
        """Let what remains to be done end by itself."""
        self.deadline = None
        self.beat = None
