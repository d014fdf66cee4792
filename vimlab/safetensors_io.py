"""The safetensors format in NumPy: an 8-byte header length, a JSON header, raw little-endian arrays."""

import json
import math
import os
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from vimlab.config import UserError
from vimlab.paths import beside, fetched, place

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


class SafetensorsError(UserError):
    """A file that is not, or is no longer, a safetensors file; the message names it."""


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays of any dtype of DTYPES, wide ones first so that all are aligned; the file appears whole or not at all.

    Raises:
      SafetensorsError: an array of another dtype.
    """
    header, position = {"__metadata__": dict(metadata)} if metadata else {}, 0
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in order:
        x, start = arrays[name], position
        dtype = _NAMES.get(x.dtype.newbyteorder("="))
        if dtype is None:
            raise SafetensorsError(f"array {name!r} is {x.dtype}, which safetensors cannot hold")
        position += x.nbytes
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [start, position]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with beside(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            x = np.ascontiguousarray(arrays[name], arrays[name].dtype.newbyteorder("<"))
            file.write(x.reshape(-1).view(np.uint8))


def read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns ({name: array}, metadata). The arrays are read-only views of the file, read from the disk when used.

    Raises:
      SafetensorsError: a header that is no such header, a dtype not in DTYPES, or offsets that do not fit the file.
    """
    file = fetched(place(path))
    data = np.memmap(file, np.uint8, "r") if os.path.getsize(file) else np.empty(0, np.uint8)
    length = int.from_bytes(data[:8].tobytes(), "little")
    try:
        header = json.loads(data[8 : 8 + length].tobytes()) if 8 + length <= data.size else None
        metadata = header.pop("__metadata__", {})
        body, arrays, filled = data[8 + length :], {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            dtype, shape, (start, stop) = np.dtype(DTYPES[entry["dtype"]]), entry["shape"], entry["data_offsets"]
            if start != filled or stop - start != math.prod(shape) * dtype.itemsize or stop > body.size:
                raise ValueError(f"{name} has offsets {start} to {stop}")
            arrays[name] = body[start:stop].view(dtype.newbyteorder("<")).reshape(shape)
            filled = stop
        if filled != body.size:
            raise ValueError(f"{body.size - filled} bytes belong to no array")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SafetensorsError(f"{path} is not a whole safetensors file ({error}); fetch or export it again") from error
    return arrays, metadata
