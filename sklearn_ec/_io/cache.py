"""Results that outlive the process, found again by the content of what they were made from.

Nothing here knows what is stored. Keys are digests of canonical copies: neither memory layout nor
the type of a number matters, and no key depends on the process.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import time
import warnings
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.utils.validation import check_memory

# Part of every key: raise it with every change that makes earlier results wrong or unreadable.
CACHE_VERSION = 29
# A training is saved after an epoch, at most once in so many seconds.
CHECKPOINT_SECONDS = 1.0
# Large arrays are hashed so many numbers at a time.
BLOCK_ENTRIES = 2**17


def digest(value: Any) -> str:
    """Hash of the content of arrays, numbers, strings, records and containers of these.

    Objects are represented by what their method ``identity`` returns.
    """
    algorithm = hashlib.blake2b(digest_size=16)
    _feed(algorithm.update, value)
    return algorithm.hexdigest()


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    if isinstance(value, np.ndarray):
        update(f"array{value.shape}".encode())
        entries = np.ascontiguousarray(value, dtype=np.float64).ravel()
        for start in range(0, len(entries), BLOCK_ENTRIES):
            block = entries[start : start + BLOCK_ENTRIES] + 0.0  # -0.0 is 0.0
            update(block.tobytes())
    elif value is None or isinstance(value, (str, bool, np.bool_)):
        update(f"{type(value).__name__[:4]}:{value};".encode())
    elif isinstance(value, Integral):
        update(f"number:{int(value)};".encode())
    elif isinstance(value, Real):
        number = float(value)
        update(f"number:{int(number) if number.is_integer() else number.hex()};".encode())
    elif isinstance(value, (list, tuple)):
        update(f"sequence{len(value)}:".encode())
        for item in value:
            _feed(update, item)
    else:
        _feed(update, sorted(_parts(value).items()))


def _parts(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if hasattr(value, "identity"):
        return value.identity()
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} cannot be part of a key.")


def computed(key: str, compute: Callable[[], Any]) -> Any:
    """What joblib remembers under a key. Any change of this function would empty the caches."""
    return compute()


class Store:
    """Remembers results in a ``joblib.Memory``; long computations are done once, and continued."""

    def __init__(self, memory: Any):
        self.memory = check_memory(memory)

    def recall(self, key: str, compute: Callable[[], Any]) -> tuple[Any, bool]:
        """The result under a key, and whether it had to be computed. An exception is no result."""
        fresh = []

        def compute_now() -> bytes:
            fresh.append(True)
            return pickle.dumps(compute())  # bytes, since arrays might come back as maps of a file

        remember = self.memory.cache(computed, ignore=["compute"])
        return pickle.loads(remember(key, compute_now)), bool(fresh)

    def recall_once(
        self, key: str, compute: Callable[[FileCheckpoint | None], Any]
    ) -> tuple[Any, bool]:
        """As :meth:`recall`, while others that want the same wait for it.

        ``compute`` is given a checkpoint, that of an earlier attempt where one did not end. Memory
        objects without a local folder have neither locks nor checkpoints.
        """
        folder = self._folder()
        if folder is None:
            return self.recall(key, lambda: compute(None))
        from filelock import FileLock

        lock = folder / f"{key}.lock"
        checkpoint = FileCheckpoint(folder / f"{key}.checkpoint")
        with FileLock(lock):
            result = self.recall(key, lambda: compute(checkpoint))
            checkpoint.remove()
        return result

    def _folder(self) -> Path | None:
        """Where locks and checkpoints are; emptied with the rest by ``Memory.clear``."""
        location = getattr(getattr(self.memory, "store_backend", None), "location", None)
        if location is None or not os.path.isdir(location):
            return None
        folder = Path(location, "sklearn_ec", "unfinished")
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def open_store(memory: Any) -> Store | None:
    """The store of a folder or ``joblib.Memory``; None where nothing shall be remembered."""
    if isinstance(memory, os.PathLike):
        memory = os.fspath(memory)
    if memory is None or (isinstance(memory, joblib.Memory) and memory.location is None):
        return None
    return Store(memory)


class FileCheckpoint:
    """One file that holds the latest state of a computation, replaced atomically."""

    def __init__(self, path: Path):
        self.path = path
        self._last_save = -np.inf

    def load(self) -> Any:
        """What was saved last, None if nothing was."""
        try:
            return pickle.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except Exception as error:
            warnings.warn(
                f"The checkpoint {self.path} cannot be read ({error}): training starts anew.",
                stacklevel=2,
            )
            return None

    def is_due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._last_save >= CHECKPOINT_SECONDS

    def save(self, state: Any) -> None:
        """Replace what was saved before, at once or not at all."""
        self._temporary.write_bytes(pickle.dumps(state))
        os.replace(self._temporary, self.path)
        self._last_save = time.monotonic()

    def remove(self) -> None:
        self._temporary.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    @property
    def _temporary(self) -> Path:
        return self.path.with_suffix(".temporary")
