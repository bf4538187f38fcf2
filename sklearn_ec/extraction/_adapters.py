"""Models as queries: functions from inputs to answers that are linear in the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import special

from sklearn_ec.probabilities import targets_from_proba

from ._queries import Query

# Takes answers back to the outputs of the last layer.
INVERSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda answers: answers,
    "logistic": special.logit,
    "tanh": np.arctanh,
    "proba": targets_from_proba,
}
ONNX_TYPES = {
    "tensor(double)": np.float64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


def as_query(model: Any, *, output: str = "auto", batch_size: int = 4096) -> Query:
    """A function from inputs to the outputs of a model's last layer.

    Parameters
    ----------
    model : callable, fitted scikit-learn model, torch.nn.Module or onnxruntime.InferenceSession
        A callable maps an array of shape (n, n_features) to (n,) or (n, n_outputs). Classifiers of
        scikit-learn are asked for ``predict_proba``, other models of it for ``predict``. Modules
        run in evaluation mode, without gradients, in their own type and on their own device. Of a
        session, the first input and the first output are used.
    output : {"auto", "identity", "logistic", "tanh", "proba"}, default="auto"
        What the model does to the outputs of its last layer, which is undone: nothing, a logistic
        or a hyperbolic function of each, or probabilities of classes (see
        :func:`~sklearn_ec.probabilities.targets_from_proba`). ``"auto"`` is ``"proba"`` for
        classifiers of scikit-learn, else ``"identity"``.
    batch_size : int, default=4096
        Number of inputs that the model sees at a time. Callables see all at once.

    Returns
    -------
    callable
        Maps an array of shape (n, n_features) to one of shape (n,) or (n, n_outputs).

    Raises
    ------
    TypeError
        If there is no way to ask the model.
    ValueError
        If ``output`` is unknown.

    Notes
    -----
    Answers in float32 behind a logistic function, a hyperbolic one or probabilities lose digits
    unevenly: a network is found all the same, but hardly certified. Ask for logits there.

    Examples
    --------
    >>> import torch
    >>> from sklearn_ec.extraction import as_query
    >>> query = as_query(torch.nn.Linear(3, 2), output="identity")
    >>> query([[0.0, 1.0, 2.0]]).shape
    (1, 2)
    """
    if output != "auto" and output not in INVERSES:
        raise ValueError(f"Unknown output {output!r}: choose 'auto' or one of {sorted(INVERSES)}.")
    ask, own_output = _asker(model, batch_size)
    inverse = INVERSES[own_output if output == "auto" else output]

    def query(X: Any) -> np.ndarray:
        return inverse(ask(np.asarray(X)))

    return query


def _asker(model: Any, batch_size: int) -> tuple[Callable[[np.ndarray], Any], str]:
    """A function that asks a model, and what the model does to its outputs."""
    if isinstance(model, torch.nn.Module):
        return _batched(lambda X: _run_module(model, X), batch_size), "identity"
    if hasattr(model, "get_inputs") and hasattr(model, "run"):
        return _session_asker(model, batch_size), "identity"
    if callable(model):
        return model, "identity"
    if hasattr(model, "predict_proba"):
        return _batched(model.predict_proba, batch_size), "proba"
    if hasattr(model, "predict"):
        return _batched(model.predict, batch_size), "identity"
    raise TypeError(
        f"A {type(model).__name__} cannot be asked: give a function from inputs to outputs, a "
        "fitted scikit-learn model, a torch.nn.Module or an onnxruntime.InferenceSession."
    )


def _batched(ask: Callable[[np.ndarray], Any], size: int) -> Callable[[np.ndarray], np.ndarray]:
    def ask_in_batches(X: np.ndarray) -> np.ndarray:
        batches = [X[start : start + size] for start in range(0, len(X), size)]
        return np.concatenate([np.asarray(ask(batch)) for batch in batches])

    return ask_in_batches


def _run_module(module: torch.nn.Module, X: np.ndarray) -> np.ndarray:
    """Outputs of a module, which is left in the mode that it was in."""
    parameter = next(module.parameters(), torch.empty(0))
    inputs = torch.from_numpy(np.array(X)).to(parameter.device, parameter.dtype)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return module(inputs).cpu().numpy()
    finally:
        module.train(was_training)


def _session_asker(session: Any, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Asks an onnxruntime session; where its graph fixes the number of rows, so many at a time."""
    given, *_ = session.get_inputs()
    if given.type not in ONNX_TYPES:
        raise TypeError(f"The session reads {given.type}, not an array of floating-point numbers.")
    n_rows = given.shape[0] if given.shape and isinstance(given.shape[0], int) else None

    def run(X: np.ndarray) -> np.ndarray:
        n_missing = (n_rows or len(X)) - len(X)
        padded = np.concatenate([X, np.repeat(X[-1:], n_missing, axis=0)])
        answers = session.run(None, {given.name: padded.astype(ONNX_TYPES[given.type])})[0]
        return answers[: len(X)]

    return _batched(run, n_rows or batch_size)
