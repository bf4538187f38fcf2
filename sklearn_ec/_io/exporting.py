"""The methods of the estimator by which a network leaves it: exports and files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .export import to_mlp_regressor, to_sequential
from .onnx import to_onnx
from .persistence import load_estimator, save_estimator

if TYPE_CHECKING:
    from sklearn.neural_network import MLPRegressor
    from torch.nn import Sequential  # noqa: TID251
    from typing_extensions import Self


class ExportMixin:
    """Export and save a fitted estimator that has ``weights_``, ``biases_`` and ``activation_``."""

    weights_: list[np.ndarray]
    biases_: list[np.ndarray]
    activation_: str

    def to_torch(self) -> Sequential:
        """Return the reconstructed network as a torch module.

        Returns
        -------
        torch.nn.Sequential
            Linear layers in float64 with the activation between them, on the CPU. Outputs have
            shape (n_samples, n_outputs).

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_ec import ExpandClusterRegressor
        >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
        >>> model = ExpandClusterRegressor(
        ...     hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
        ... ).fit(X, np.tanh(X @ [1.0, -0.5] + 0.3))
        >>> model.to_torch()
        Sequential(
          (0): Linear(in_features=2, out_features=1, bias=True)
          (1): Tanh()
          (2): Linear(in_features=1, out_features=1, bias=True)
        )
        """
        check_is_fitted(self)
        return to_sequential(self.weights_, self.biases_, self.activation_)

    def to_mlp_regressor(self) -> MLPRegressor:
        """Return the reconstructed network as a fitted ``MLPRegressor``.

        Returns
        -------
        sklearn.neural_network.MLPRegressor
            A regressor with the same predictions. ``partial_fit`` trains it on, from these weights.

        Raises
        ------
        ValueError
            If ``MLPRegressor`` lacks the activation: it has logistic, tanh and relu.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_ec import ExpandClusterRegressor
        >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
        >>> model = ExpandClusterRegressor(
        ...     hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
        ... ).fit(X, np.tanh(X @ [1.0, -0.5] + 0.3))
        >>> np.allclose(model.to_mlp_regressor().predict(X), model.predict(X))
        True
        """
        check_is_fitted(self)
        mlp = to_mlp_regressor(self.weights_, self.biases_, self.activation_)
        if hasattr(self, "feature_names_in_"):
            mlp.feature_names_in_ = self.feature_names_in_
        return mlp

    def to_onnx(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Return the reconstructed network as an ONNX model, and write it to a file.

        Parameters
        ----------
        path : str or path-like, default=None
            File to write, usually ``*.onnx``; None writes none.

        Returns
        -------
        onnx.ModelProto
            A model in float64 with the input ``X`` of shape (n_samples, n_features) and the output
            ``y`` of shape (n_samples, n_outputs), for any number of samples (opset 17). It consists
            of operators that onnxruntime implements in float64.

        Raises
        ------
        ImportError
            If onnx is missing: ``pip install sklearn_ec[export]``.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn_ec import ExpandClusterRegressor
        >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
        >>> model = ExpandClusterRegressor(
        ...     hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
        ... ).fit(X, np.tanh(X @ [1.0, -0.5] + 0.3))
        >>> onnx_model = model.to_onnx()
        >>> [node.op_type for node in onnx_model.graph.node]
        ['Gemm', 'Tanh', 'Gemm']
        """
        check_is_fitted(self)
        model = to_onnx(self.weights_, self.biases_, self.activation_)
        if path is not None:
            Path(path).write_bytes(model.SerializeToString())
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to a file, without pickle.

        The file is in the safetensors format: arrays as tensors, all else as JSON in its header,
        with a format version and a checksum. It holds the parameters and the learned attributes,
        but neither training rows nor students, so that a loaded estimator cannot ``recluster`` and
        has no ``standard_errors()``. It is written to a temporary file first, then moved to its
        place.

        Parameters
        ----------
        path : str or path-like
            File to write, usually ``*.safetensors``.

        Raises
        ------
        ImportError
            If safetensors is missing: ``pip install sklearn_ec[export]``.
        TypeError
            If a parameter or attribute is of a type that the file cannot hold.

        See Also
        --------
        ExpandClusterRegressor.load : The way back.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> from sklearn_ec import ExpandClusterRegressor
        >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
        >>> model = ExpandClusterRegressor(
        ...     hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
        ... ).fit(X, np.tanh(X @ [1.0, -0.5] + 0.3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/network.safetensors")
        ...     os.listdir(folder)
        ['network.safetensors']
        """
        check_is_fitted(self)
        save_estimator(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a fitted estimator from a file that ``save`` wrote. No code from it is run.

        Parameters
        ----------
        path : str or path-like
            The file.

        Returns
        -------
        ExpandClusterRegressor
            An estimator with the parameters and learned attributes of the saved one. It predicts,
            plots and exports; ``recluster`` needs the students, which are not saved.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ImportError
            If safetensors is missing: ``pip install sklearn_ec[export]``.
        ValueError
            If the file is damaged, of another origin or of a later format version.

        See Also
        --------
        ExpandClusterRegressor.save : Write the file.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from sklearn_ec import ExpandClusterRegressor
        >>> X = np.random.default_rng(0).uniform(-2, 2, size=(200, 2))
        >>> model = ExpandClusterRegressor(
        ...     hidden_layer_sizes=1, activation="tanh", n_students=3, random_state=0
        ... ).fit(X, np.tanh(X @ [1.0, -0.5] + 0.3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(f"{folder}/network.safetensors")
        ...     loaded = ExpandClusterRegressor.load(f"{folder}/network.safetensors")
        >>> loaded.recovered_, bool((loaded.predict(X) == model.predict(X)).all())
        (True, True)
        """
        return load_estimator(cls, path)
