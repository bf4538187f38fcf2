"""As many threads as the work pays for, and no more than torch had before."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

# Floating-point operations of a step for each thread. On two cores that nothing else used, a second
# thread changed the seconds of a Levenberg step by a factor of 1.05 at 1e7 operations, 0.94 at 9e7,
# 0.77 at 2e8, 0.64 at 2e9.
FLOPS_PER_THREAD = 1e8
# Threads wait for each other at the end of every operation, awake. Where other programs need the
# cores, each of these waits takes until the scheduler comes round: beside other
# busy programs on two cores, steps of more than 2e8 operations on two threads took 2 to 50 times as
# long as on one, smaller ones up to 100 times. The sign is that the
# thread in charge runs for a small share of the time. One thread then has to do, for so many times
# as long as it took to notice.
FAIR_SHARE = 0.8
BACK_OFF = 20.0
# Seconds in which a share can be told. One step of ten students on 5,000 rows of 30 inputs took
# 10 s on crowded cores, so that it is checked after each chunk of its rows: noticed after 0.4 s.
MIN_SECONDS = 0.1


class _Allowance(threading.local):
    """What a Python thread may use while it is at work."""

    n_threads = 0  # 0: it is not at work
    crowded_until = 0.0
    watch: tuple[float, float] | None = None  # the clocks when it was last checked for a crowd


_allowance = _Allowance()
_lock = threading.Lock()
_n_at_work = 0  # Python threads
_before = 1  # torch's threads when the first of them began
# That of NumPy and SciPy, whose problems are small: a fit on 2,000 rows of 12 inputs took 7.5 CPU
# seconds with one thread of theirs, 8.2 with two.
_blas_limit: Any = None


@contextmanager
def threads_for(flops: float = 0.0) -> Iterator[None]:
    """Let torch use the threads that steps of so many operations pay for."""
    with at_work(), _threads(_n_worthwhile(flops)):
        yield


@contextmanager
def at_work(n_threads: int | None = None) -> Iterator[None]:
    """Note how many threads torch has, or may have, in this Python thread, and give them back.

    Counts belong to Python threads; one that meets torch for the first time takes over the last
    count that any of them has set, so that the last to end its work sets the one that the first of
    them found. Within work this does nothing.
    """
    if _allowance.n_threads:
        yield
        return
    own = torch.get_num_threads()
    _begin(own)
    _allowance.n_threads = n_threads or own
    try:
        yield
    finally:
        _allowance.n_threads = 0
        _end(own)


def n_allowed() -> int:
    """The most threads that torch may use in this Python thread."""
    return _allowance.n_threads or torch.get_num_threads()


def notice_crowd() -> None:
    """Go on with one thread where several were kept waiting. To be asked within long steps."""
    if _allowance.watch is None or torch.get_num_threads() == 1:
        return
    now, busy = _clocks()
    seconds, busy_seconds = now - _allowance.watch[0], busy - _allowance.watch[1]
    if seconds < MIN_SECONDS:
        return
    _allowance.watch = now, busy
    if busy_seconds < FAIR_SHARE * seconds:
        torch.set_num_threads(1)
        _allowance.crowded_until = now + BACK_OFF * seconds


def _n_worthwhile(flops: float) -> int:
    if time.perf_counter() < _allowance.crowded_until:
        return 1
    return max(1, int(min(_allowance.n_threads, flops / FLOPS_PER_THREAD)))


def _begin(own: int) -> None:
    global _n_at_work, _before, _blas_limit
    with _lock:
        if _n_at_work == 0:
            _before, _blas_limit = own, _controller().limit(limits=1, user_api="blas")
        _n_at_work += 1


def _end(own: int) -> None:
    global _n_at_work
    with _lock:
        _n_at_work -= 1
        torch.set_num_threads(own if _n_at_work else _before)
        if _n_at_work == 0:
            _blas_limit.restore_original_limits()


@cache
def _controller() -> ThreadpoolController:
    """Looks for libraries once, which takes milliseconds."""
    return ThreadpoolController()


@contextmanager
def _threads(n: int) -> Iterator[None]:
    outer, outer_watch = torch.get_num_threads(), _allowance.watch
    torch.set_num_threads(n)
    _allowance.watch = _clocks() if n > 1 else None
    try:
        yield
    finally:
        notice_crowd()
        torch.set_num_threads(outer)
        _allowance.watch = outer_watch


def _clocks() -> tuple[float, float]:
    """Seconds that went by, and those that this Python thread ran."""
    return time.perf_counter(), time.thread_time()
