"""Fitted estimators as safetensors files: arrays as tensors, all else as JSON in the header.

Reading such a file runs no code from it. A value is written as the JSON value that it is (None,
bool, int, str, finite float, list) or as an object with a single key that starts with ``$`` and
says what it is. Arrays go by the path to them, as in ``dendrogram_[0].linkage``. A checksum over
the header's JSON and all tensors finds damaged files.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sklearn_ec._certify.certificate import Certificate
from sklearn_ec._core.records import Dendrogram
from sklearn_ec._version import __version__

from .optional_imports import import_optional

METADATA_KEY = "sklearn_ec"
FORMAT_VERSION = 1
RECORDS = {record.__name__: record for record in (Certificate, Dendrogram)}
# The private attributes of a fitted estimator that predictions need.
PRIVATE_ATTRIBUTES = ("_single_output",)

T = TypeVar("T")
Tensors = dict[str, np.ndarray]


def is_saved(attribute: str) -> bool:
    """Whether an attribute is part of the fitted state; training rows and students are not."""
    learned = attribute.endswith("_") and not attribute.startswith("_")
    return learned or attribute in PRIVATE_ATTRIBUTES


def save_estimator(estimator: Any, path: str | os.PathLike) -> None:
    """Write parameters and learned attributes, all at once or not at all."""
    library = import_optional("safetensors.numpy", "export")
    learned = {name: value for name, value in vars(estimator).items() if is_saved(name)}
    tensors: Tensors = {}
    document = {
        "format_version": FORMAT_VERSION,
        "sklearn_ec_version": __version__,
        "parameters": _encode_items(estimator.get_params(deep=False), "", tensors),
        "attributes": _encode_items(learned, "", tensors),
    }
    document["checksum"] = _checksum(document, tensors)
    # One entry, since safetensors writes several of them in any order.
    metadata = {METADATA_KEY: json.dumps(document, allow_nan=False)}
    _write(Path(path), library.save(tensors, metadata))


def load_estimator(cls: type[T], path: str | os.PathLike) -> T:
    """The fitted estimator in a file."""
    parameters, attributes = load_state(path)
    try:
        estimator = cls(**parameters)
        estimator._validate_params()  # type: ignore[attr-defined]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds unusable parameters: {error}") from error
    for name, value in attributes.items():
        setattr(estimator, name, value)
    return estimator


def load_state(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """The parameters and the learned attributes in a file."""
    metadata, tensors = _read(path)
    try:
        document = _checked_document(metadata, tensors)
        decode = Decoder(tensors)
        parameters = {name: decode(value) for name, value in document["parameters"].items()}
        attributes = {name: decode(value) for name, value in document["attributes"].items()}
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error!r}.") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    unknown = [name for name in attributes if not is_saved(name)]
    if unknown:
        raise ValueError(f"{path} holds attributes that are not learned: {', '.join(unknown)}.")
    return parameters, attributes


def encode(value: Any, path: str, tensors: Tensors) -> Any:
    """A value as JSON; arrays in it are added to ``tensors``."""
    if isinstance(value, np.ndarray):
        return _encode_array(value, path, tensors)
    if isinstance(value, np.generic):
        return _encode_scalar(value, path)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if type(value) is list:
        return _encode_sequence(value, path, tensors)
    if type(value) is tuple:
        return {"$tuple": _encode_sequence(value, path, tensors)}
    if type(value) is dict:
        return {
            "$dict": [
                [encode(key, path, tensors), encode(item, f"{path}[{key!r}]", tensors)]
                for key, item in value.items()
            ]
        }
    if isinstance(value, np.random.RandomState):
        return {"$random_state": _encode_random_state(value, path, tensors)}
    if is_dataclass(value) and RECORDS.get(type(value).__name__) is type(value):
        items = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"$record": [type(value).__name__, _encode_items(items, f"{path}.", tensors)]}
    raise TypeError(f"{path} is a {type(value).__name__}, which save cannot write.")


def _encode_items(items: dict[str, Any], prefix: str, tensors: Tensors) -> dict[str, Any]:
    return {name: encode(item, f"{prefix}{name}", tensors) for name, item in items.items()}


def _encode_sequence(values: list | tuple, path: str, tensors: Tensors) -> list:
    return [encode(value, f"{path}[{index}]", tensors) for index, value in enumerate(values)]


def _encode_random_state(random_state: np.random.RandomState, path: str, tensors: Tensors) -> Any:
    state = random_state.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise TypeError(f"{path} is a RandomState that save cannot write: give an int instead.")
    return encode(state, path, tensors)


def _encode_array(array: np.ndarray, path: str, tensors: Tensors) -> Any:
    if array.dtype.kind in "OU":
        if not all(isinstance(item, str) for item in array.flat):
            raise TypeError(f"{path} is an array of objects, which save cannot write.")
        return {"$strings": [array.dtype.str, array.shape, array.ravel().tolist()]}
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{path} is an array of {array.dtype}, which save cannot write.")
    tensors[path] = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return {"$array": path}


def _encode_scalar(scalar: np.generic, path: str) -> Any:
    if scalar.dtype.kind == "U":
        return str(scalar)
    if scalar.dtype.kind not in "biuf" or scalar.dtype.itemsize > 8:
        raise TypeError(f"{path} is a {type(scalar).__name__}, which save cannot write.")
    return {"$scalar": [scalar.dtype.name, encode(scalar.item(), path, {})]}


class Decoder:
    """Undoes :func:`encode`, given the tensors of the file."""

    def __init__(self, tensors: Tensors):
        self.tensors = tensors
        self.readers: dict[str, Callable[[Any], Any]] = {
            "$array": lambda name: tensors[name],
            "$dict": lambda items: {self(key): self(item) for key, item in items},
            "$float": float,
            "$random_state": self._random_state,
            "$record": self._record,
            "$scalar": self._scalar,
            "$strings": self._strings,
            "$tuple": lambda values: tuple(map(self, values)),
        }

    def __call__(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self(item) for item in value]
        if not isinstance(value, dict):
            return value
        [(kind, content)] = value.items()
        return self.readers[kind](content)

    def _random_state(self, state: Any) -> np.random.RandomState:
        random_state = np.random.RandomState()
        random_state.set_state(self(state))
        return random_state

    def _record(self, content: Any) -> Any:
        name, items = content
        return RECORDS[name](**{key: self(item) for key, item in items.items()})

    def _scalar(self, content: Any) -> np.generic:
        name, value = content
        dtype = np.dtype(name)
        if dtype.kind not in "biuf":
            raise ValueError(f"a scalar of type {name} is not expected.")
        return dtype.type(self(value))

    def _strings(self, content: Any) -> np.ndarray:
        dtype, shape, values = content
        if np.dtype(dtype).kind not in "OU":
            raise ValueError(f"an array of strings of type {dtype} is not expected.")
        return np.array(values, dtype=dtype).reshape(shape)


def _write(path: Path, content: bytes) -> None:
    """Replace a file at once, so that nobody ever sees half of it."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: str | os.PathLike) -> tuple[dict[str, str], Tensors]:
    library = import_optional("safetensors", "export")
    with open(path, "rb"):  # what is wrong with the path itself comes first
        pass
    try:
        with library.safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except library.SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file, or a truncated one: {error}."
        ) from error


def _checked_document(metadata: dict[str, str], tensors: Tensors) -> dict[str, Any]:
    """What the header says, if its version and checksum are right."""
    if METADATA_KEY not in metadata:
        raise ValueError("it is a safetensors file that sklearn_ec did not write")
    document = json.loads(metadata[METADATA_KEY])
    if document["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"its format version is {document['format_version']}, written by sklearn_ec "
            f"{document['sklearn_ec_version']}, and sklearn_ec {__version__} reads up to "
            f"{FORMAT_VERSION}: upgrade sklearn_ec"
        )
    if document.pop("checksum") != _checksum(document, tensors):
        raise ValueError("it is damaged, its checksum does not match its contents")
    return document


def _checksum(document: dict[str, Any], tensors: Tensors) -> str:
    digest = hashlib.sha256(json.dumps(document).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
