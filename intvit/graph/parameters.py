"""The method of a node whose kind has methods, its parameter value, and how a node states that."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from intvit.errors import IntvitError
from intvit.graph import operators
from intvit.graph.ir import Array, Node
from intvit.kernels import registry
from intvit.kernels.method import Method


def node_method(node: Node) -> Method:
    try:
        return registry.get(node.op, node.attrs["method"], node.attrs["version"])
    except IntvitError as error:
        raise IntvitError(f"{node.name}: {error}") from None


def method_params(node: Node) -> Any:
    """The parameter value that the method's `lower` made; IntvitError outside the ranges of the parameter class."""
    method = node_method(node)
    scalars = {field.name for field in dataclasses.fields(method.params) if field.type in (int, "int")}
    if set(node.attrs["params"]) != scalars:
        raise IntvitError(f"{node.name}: parameters must be {sorted(scalars)}, not {sorted(node.attrs['params'])}")
    values = dict(node.attrs["params"])
    for key, value in values.items():
        if type(value) is not int:
            raise IntvitError(f"{node.name}: {key} must be an integer, not {value!r:.60}")
    kind = operators.get(node.op)
    masked = kind is not None and kind.masked
    constants = {key: array for key, array in node.arrays.items() if not (masked and key == "mask")}
    for key, array in constants.items():
        if array.ndim != 1:
            raise IntvitError(f"{node.name}: {key} must be a vector, not of shape {array.shape}")
    values |= {key: tuple(array.tolist()) for key, array in constants.items()}
    try:
        return method.params(**values)
    except TypeError as error:
        raise IntvitError(f"{node.name}: parameters must be those of {method.id}: {error}") from None
    except IntvitError as error:
        raise IntvitError(f"{node.name}: {error}") from None


def stated_params(params: Any) -> tuple[dict[str, int], dict[str, Array]]:
    """What `method_params` reads back: the numbers for `attrs["params"]`, and the vectors as constant arrays."""
    values = dataclasses.asdict(params)
    vectors = {key: np.array(value, np.int64) for key, value in values.items() if isinstance(value, tuple)}
    return {key: value for key, value in values.items() if key not in vectors}, vectors
