"""An ONNX file -> a ModelProto that is what it says: text is text, and every tensor holds the numbers that it claims.

Nothing is allocated on a file's word alone. Data in other files is read from the model's own folder and no other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import TensorProto
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from intvit.errors import IntvitError, reading, shortened
from intvit.files import inside, regular

METADATA_KEY = "intvit"
MOST_BYTES = 2**31 - 1
"""Of a protobuf file, and of the data beside it."""
MOST_AXES = 32
"""Of a tensor: NumPy 1 had no more."""
NAMES, LONGEST_NAME = ("name", "input", "output", "op_type", "domain"), 1000
"""Fields that later stand in messages and in other files."""
_PACKED: dict[int, int] = {TensorProto.UINT4: 4, TensorProto.INT4: 4}
_PACKED |= {getattr(TensorProto, name): 4 for name in ("FLOAT4E2M1",) if hasattr(TensorProto, name)}
_PACKED |= {getattr(TensorProto, name): 2 for name in ("UINT2", "INT2") if hasattr(TensorProto, name)}
"""Types of which several share a byte, or a number of `int32_data`."""


def load_model(path: str | Path, *, check: bool = True) -> onnx.ModelProto:
    """Read an ONNX file; IntvitError if it is not one. Without `check`, whoever runs it judges the graph."""
    path = regular(path)
    if path.stat().st_size > MOST_BYTES:
        raise IntvitError(f"{path}: must be a valid ONNX model, not one above 2 GB")
    with reading(path, "a valid ONNX model"):
        model = onnx.ModelProto()
        model.ParseFromString(path.read_bytes())
        if not model.graph.node:
            raise ValueError("without nodes")
        left = MOST_BYTES

        def tensor(found: TensorProto) -> None:
            nonlocal left
            if found.data_location == TensorProto.EXTERNAL:
                left -= _bring_in(found, path.parent, left)
            _check_tensor(found)

        _walk(model, tensor)
        if check:
            onnx.checker.check_model(model)
    try:
        model_metadata(model)
    except IntvitError as error:
        raise IntvitError(f"{path}: {error}") from None
    return model


def _walk(message: Message, tensor: Callable[[TensorProto], None]) -> None:
    """Call `tensor` on all tensors below `message`; ValueError for text that is none."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_STRING:
            for text in [value] if isinstance(value, (str, bytes)) else value:
                _check_text(field.name, text)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for part in [value] if isinstance(value, Message) else value:
                if isinstance(part, onnx.SparseTensorProto):
                    raise ValueError("sparse tensors")
                if isinstance(part, onnx.AttributeProto) and not _is_held(part):
                    raise ValueError(f"the attribute {part.name} without the value that its type says")
                if isinstance(part, TensorProto):
                    tensor(part)
                else:
                    _walk(part, tensor)


def _is_held(attribute: onnx.AttributeProto) -> bool:
    """Whether a tensor or a graph is there, if the attribute is said to be one: absent numbers are 0."""
    fields = {onnx.AttributeProto.TENSOR: "t", onnx.AttributeProto.GRAPH: "g"}
    return attribute.type not in fields or attribute.HasField(fields[attribute.type])


def _check_text(field: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{field} of bytes that are no UTF-8")
    if field in NAMES and (not text.isprintable() or len(text) > LONGEST_NAME):
        raise ValueError(f"the {field} {text[:40]!r}, as names must be printable, of {LONGEST_NAME} characters at most")


def _n_bytes(tensor: TensorProto) -> int:
    """Bytes that the raw data of `tensor` has; ValueError if its type or shape is none."""
    if any(n < 0 for n in tensor.dims) or len(tensor.dims) > MOST_AXES:
        raise ValueError(f"{tensor.name}: shape {shortened(list(tensor.dims))}")
    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError):
        raise ValueError(f"{tensor.name}: data type {tensor.data_type}") from None
    n_bits = math.prod(tensor.dims) * _PACKED.get(tensor.data_type, 8 * itemsize)
    if n_bits > 8 * MOST_BYTES:
        raise ValueError(f"{tensor.name}: shape {list(tensor.dims)}, above 2 GB")
    return -(-n_bits // 8)


def _check_tensor(tensor: TensorProto) -> None:
    """ValueError unless the data are as many as the shape says."""
    _check_text("name", tensor.name)
    if tensor.HasField("segment"):
        raise ValueError(f"{tensor.name}: a segment")
    expected, count = _n_bytes(tensor), math.prod(tensor.dims)
    where = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    fields = {field.name: len(value) for field, value in tensor.ListFields() if field.name.endswith("_data")}
    fields.pop("external_data", None)
    if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
        if fields != {"raw_data": expected}:
            raise ValueError(f"{tensor.name}: {fields} where raw_data must have {expected} bytes")
        return
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        count *= 2
    elif tensor.data_type in _PACKED:
        count = expected
    if fields != ({where: count} if count else {}):
        raise ValueError(f"{tensor.name}: {fields} where {where} must have {count} numbers")


def _bring_in(tensor: TensorProto, folder: Path, most: int) -> int:
    """Replace a reference to another file by its data; returns their bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, offset = Path(entries.get("location", "")), int(entries.get("offset", 0))
    n_bytes = _n_bytes(tensor)
    if not location.parts or location.is_absolute() or tensor.data_type == TensorProto.STRING:
        raise ValueError(f"{tensor.name}: data at {str(location)!r}")
    source = inside(folder, folder / location)
    if not source.is_file():
        raise ValueError(f"{tensor.name}: data at {str(location)!r}, which is no file")
    size = source.stat().st_size
    if not 0 <= offset <= size or int(entries.get("length", n_bytes)) != n_bytes or offset + n_bytes > size:
        raise ValueError(f"{tensor.name}: data of another length than its {n_bytes} bytes in {str(location)!r}")
    if n_bytes > most:
        raise ValueError("data above 2 GB")
    with source.open("rb") as file:
        file.seek(offset)
        tensor.raw_data = file.read(n_bytes)
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT
    return n_bytes


# ------------------------------------------------------------------------------------------ metadata

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _Trained(BaseModel):
    """The widths of a network that was trained in integers: keys of a recipe, and the width of GELU's sigmoid."""

    model_config = ConfigDict(strict=True, extra="forbid")
    bits: Annotated[int, Field(ge=4, le=8)]
    residual_bits: Annotated[int, Field(ge=8, le=16)] | None = None
    softmax_bits: Annotated[int, Field(ge=4, le=16)] | None = None
    gelu_bits: Annotated[int, Field(ge=2, le=8)] | None = None


class _Metadata(BaseModel):
    """What other parts rely on; further keys are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow")
    architecture: str | None = None
    img_size: Annotated[list[_Count], Field(min_length=2, max_length=2)] | None = None
    layer_norm_eps: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    mean: _Number | Annotated[list[_Number], Field(min_length=1)] | None = None
    std: _Positive | Annotated[list[_Positive], Field(min_length=1)] | None = None
    resize: _Count | None = None
    ranges: dict[str, Annotated[list[_Number], Field(min_length=2, max_length=2)]] | None = None
    trained: _Trained | None = None

    @model_validator(mode="after")
    def _ordered(self) -> _Metadata:
        for name, (low, high) in (self.ranges or {}).items():
            if low > high:
                raise ValueError(f"range of {name[:60]!r} must be ordered")
        return self


def model_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """The model's own metadata; IntvitError if what stands there is none."""
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if not texts:
        return {}
    if len(texts) > 1:
        raise IntvitError(f"metadata {METADATA_KEY!r}: must be there once, not {len(texts)} times")
    with reading(f"metadata {METADATA_KEY!r}", "a JSON object"):
        found = json.loads(texts[0], parse_constant=_finite, parse_float=_finite)
        if not isinstance(found, dict):
            raise ValueError(type(found).__name__)
    try:
        _Metadata.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part)[:60] for part in first["loc"]) or "ranges"
        raise IntvitError(
            f"metadata {METADATA_KEY!r}: {key}: {first['msg']}, not {str(first['input'])[:60]!r}"
        ) from None
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text}")
    return value


def set_metadata(model: onnx.ModelProto, **values: Any) -> None:
    """Add to the model's own metadata."""
    merged = {**model_metadata(model), **values}
    for entry in list(model.metadata_props):
        if entry.key == METADATA_KEY:
            model.metadata_props.remove(entry)
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(merged, sort_keys=True))
