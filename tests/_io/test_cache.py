"""Keys by content, results that outlive the process, checkpoints."""

import os
import pickle
import threading
from dataclasses import dataclass

import joblib
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from sklearn_ec._io import cache
from sklearn_ec._io.cache import FileCheckpoint, digest, open_store

A = np.arange(12.0).reshape(3, 4)


@dataclass(frozen=True)
class Record:
    name: str
    values: np.ndarray


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path)


@pytest.fixture
def checkpoint(tmp_path):
    return FileCheckpoint(tmp_path / "state")


@pytest.mark.parametrize(
    ("value", "same"),
    [
        (4, 4.0),
        (4, np.int64(4)),
        (0.5, np.float64(0.5)),
        (True, np.bool_(True)),
        ((1, 2), [1, 2]),
        (A, np.asfortranarray(A)),
        (A, np.repeat(A, 2, axis=1)[:, ::2]),
        (A, A.astype(int)),
        (A[:, 0][:, None], A[:, 0].reshape(-1, 1)),
        (np.zeros(2), -np.zeros(2)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (Record("r", A), Record("r", A.copy(order="F"))),
    ],
)
def test_equal_content_has_one_key(value, same):
    assert digest(value) == digest(same)


@pytest.mark.parametrize(
    ("value", "other"),
    [
        (4, 5),
        (4, "4"),
        (1, True),
        (None, "None"),
        (0.1, 0.1 + 1e-16),
        ([1, [2, 3]], [1, 2, 3]),
        (A, A.T),
        (A, A.ravel()),
        (A, np.nextafter(A, 1)),
        (Record("r", A), Record("s", A)),
        ({"a": 1}, {"b": 1}),
    ],
)
def test_other_content_has_another_key(value, other):
    assert digest(value) != digest(other)


def test_keys_are_the_same_in_every_process():
    assert digest(["students", 1, 0.5, A, None]) == "a924a5d70d57b89eacb09fb39f63185c"


def test_tensors_cannot_be_keys():
    with pytest.raises(TypeError, match="Tensor cannot be part of a key"):
        digest([torch.zeros(2)])


def test_a_result_is_computed_once(store):
    assert store.recall("a", lambda: [1]) == ([1], True)
    assert store.recall("a", lambda: [2]) == ([1], False)
    assert store.recall("b", lambda: [2]) == ([2], True)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_is_no_result(store, error):
    def fail(checkpoint):
        raise error

    with pytest.raises(error):
        store.recall_once("a", fail)
    assert store.recall_once("a", lambda checkpoint: 1) == (1, True)


def test_those_who_want_the_same_wait_for_it(tmp_path):
    """Without locks, all would compute it at the same time."""
    barrier, results = threading.Barrier(4), []

    def want():
        store = open_store(tmp_path)
        barrier.wait()
        results.append(store.recall_once("a", lambda checkpoint: threading.get_ident()))

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({value for value, _ in results}) == 1
    assert sorted(is_new for _, is_new in results) == [False, False, False, True]


def test_a_computation_goes_on_from_its_checkpoint(store):
    def compute(checkpoint, fails):
        state = checkpoint.load() or 0
        checkpoint.save(state + 1)
        if fails:
            raise ValueError
        return state

    for _ in range(2):
        with pytest.raises(ValueError):  # noqa: PT011
            store.recall_once("a", lambda checkpoint: compute(checkpoint, fails=True))
    assert store.recall_once("b", lambda checkpoint: compute(checkpoint, fails=False)) == (0, True)
    assert store.recall_once("a", lambda checkpoint: compute(checkpoint, fails=False)) == (2, True)
    assert not list(store._folder().glob("*.checkpoint"))


def test_loaded_arrays_are_no_maps_of_files(tmp_path):
    store = open_store(joblib.Memory(tmp_path, mmap_mode="r", verbose=0))
    for _ in range(2):
        loaded, _ = store.recall("a", lambda: A.copy())
        assert type(loaded) is np.ndarray
        assert loaded.flags.writeable
        assert_array_equal(loaded, A)


def test_memory_may_be_none_a_path_or_an_object(tmp_path):
    assert open_store(None) is None
    assert open_store(joblib.Memory(None)) is None
    for memory in (tmp_path, str(tmp_path), joblib.Memory(tmp_path, verbose=0)):
        assert open_store(memory).recall_once("a", lambda checkpoint: 1)[0] == 1
    with pytest.raises(ValueError, match="memory"):
        open_store(3)


def test_a_memory_without_a_folder_has_neither_locks_nor_checkpoints():
    class InProcess:
        def __init__(self):
            self.results = {}

        def cache(self, function, ignore):
            assert ignore == ["compute"]

            def remember(key, compute):
                if key not in self.results:
                    self.results[key] = function(key, compute)
                return self.results[key]

            return remember

    store = open_store(InProcess())
    assert store.recall_once("a", lambda checkpoint: checkpoint) == (None, True)
    assert store.recall_once("a", lambda checkpoint: checkpoint) == (None, False)


def test_clearing_the_memory_removes_everything(tmp_path):
    memory = joblib.Memory(tmp_path, verbose=0)
    open_store(memory).recall_once("a", lambda checkpoint: 1)
    memory.clear(warn=False)
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".gitignore"
    ]


def test_checkpoints_are_replaced_at_once_or_not_at_all(checkpoint, monkeypatch):
    assert checkpoint.load() is None
    checkpoint.save({"a": 1})

    def fail(*args):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="killed"):
            checkpoint.save({"a": 2})
    assert checkpoint.load() == {"a": 1}
    checkpoint.save({"a": 3})
    assert checkpoint.load() == {"a": 3}
    checkpoint.remove()
    checkpoint.remove()
    assert not list(checkpoint.path.parent.iterdir())


def test_an_unreadable_checkpoint_is_left_aside(checkpoint):
    checkpoint.path.write_bytes(pickle.dumps([1, 2])[:-1])
    with pytest.warns(UserWarning, match="cannot be read .* starts anew"):
        assert checkpoint.load() is None


def test_checkpoints_are_due_once_in_a_while(checkpoint, monkeypatch):
    assert checkpoint.is_due()
    checkpoint.save(1)
    assert not checkpoint.is_due()
    monkeypatch.setattr(cache, "CHECKPOINT_SECONDS", 0.0)
    assert checkpoint.is_due()
