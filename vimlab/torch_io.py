"""Reads the tensors of a file written by `torch.save` or `torch.jit.save`, without torch: the zip formats and the older plain one.

Such a file is a pickle, which may run code when it is loaded. Here nothing but dicts, numbers, text and tensors can be made.
"""

import math
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vimlab.config import UserError

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class TorchFileError(UserError):
    """A file that holds no plain tensors written by torch.save; the message names it and says what to do."""


def read(path: str | os.PathLike, keep: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """The tensors of a state dict (or of the entry `state_dict` of a dict) whose names `keep` accepts, as host arrays.

    Those of a TorchScript archive have the names that the module's state dict has; its code is not looked at.

    Raises:
      TorchFileError: another format, a damaged file, or one that holds objects other than tensors in dicts.
    """
    try:
        with open(path, "rb") as file:
            zipped = zipfile.is_zipfile(file)
            file.seek(0)
            return _read_zip(file, keep) if zipped else _read_legacy(file, path, keep)
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {error}") from None
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
    ) as error:
        raise TorchFileError(f"{path} is not a whole file of torch.save ({error}); fetch it again or save it again") from error


class _Tensor:
    """Where a tensor's numbers lie: (dtype, storage key, count), offset, shape, strides; read after the pickle ends."""

    def __init__(self, *args: Any):
        self.place = args[0].place if args and isinstance(args[0], _Tensor) else args[:4]

    def __setstate__(self, state: tuple) -> None:  # How versions before 0.4 pickled tensors (4) and parameters (5).
        self.place = state[0].place if len(state) == 5 else tuple(state)[:4]

    def array(self, bytes_of: Callable[[str], Any]) -> np.ndarray:
        (dtype, key, count), offset, shape, strides = self.place
        values = np.frombuffer(bytes_of(key), dtype, count)
        last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if math.prod(shape) and not (0 <= offset <= last < count and min(strides, default=0) >= 0):
            raise TorchFileError("a tensor lies outside its storage; the file is damaged")
        return np.lib.stride_tricks.as_strided(values[offset:], shape, [s * dtype.itemsize for s in strides], writeable=False)


class _Script:
    """A module of a TorchScript archive: its tensors and submodules are the attributes that the pickle sets."""

    def tensors(self, prefix: str = "") -> dict[str, _Tensor]:
        found = {}
        for name, value in vars(self).items():
            if isinstance(value, _Script):
                found |= value.tensors(f"{prefix}{name}.")
            elif isinstance(value, _Tensor):
                found[prefix + name] = value
        return found


class _Unpickler(pickle.Unpickler):
    GLOBALS = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
        ("torch._utils", "_rebuild_tensor"): _Tensor,
        ("torch._utils", "_rebuild_parameter"): _Tensor,
        ("torch.nn.parameter", "Parameter"): _Tensor,
        ("torch", "FloatTensor"): _Tensor,
        ("torch", "Size"): tuple,
    } | {("torch", name): dtype for name, dtype in STORAGES.items()}

    def __init__(self, file: Any):
        super().__init__(file, encoding="latin1")  # Python 2 wrote byte strings.

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Script
        if (module, name) not in self.GLOBALS:
            raise TorchFileError(f"holds {module}.{name}, and only tensors are read; save the module's state_dict() alone")
        return self.GLOBALS[module, name]

    def persistent_load(self, pid: tuple) -> tuple[np.dtype, str, int]:
        _, dtype, key, _, count = pid[:5]
        return dtype, str(key), count


def _read_zip(file: Any, keep: Callable[[str], bool]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        (root,) = [n.removesuffix("data.pkl") for n in archive.namelist() if n.endswith("/data.pkl")]
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise TorchFileError("was written by a big-endian machine; save it again on another")
        with archive.open(f"{root}data.pkl") as pickled:
            found = _Unpickler(pickled).load()
        return _arrays(found, keep, lambda key: archive.read(f"{root}data/{key}"))


def _read_legacy(file: Any, path: str | os.PathLike, keep: Callable[[str], bool]) -> dict[str, np.ndarray]:
    if _Unpickler(file).load() != LEGACY_MAGIC:
        raise TorchFileError("is no file of torch.save")
    _protocol, _system, found, keys = (_Unpickler(file).load() for _ in range(4))
    sizes = {key: dtype.itemsize * count for t in _tensors(found).values() for dtype, key, count in [t.place[0]]}
    data, position, places = np.memmap(path, np.uint8, "r"), file.tell(), {}
    for key in map(str, keys):  # Each storage follows its count of values, 8 bytes.
        places[key] = slice(position + 8, position + 8 + sizes[key])
        position = places[key].stop
    if position > data.size:
        raise TorchFileError(f"ends {position - data.size} bytes too early; fetch it again")
    return _arrays(found, keep, lambda key: data[places[key]])


def _tensors(found: Any) -> dict[str, _Tensor]:
    found = found.tensors() if isinstance(found, _Script) else found
    found = found.get("state_dict", found) if isinstance(found, Mapping) else {}
    tensors = {str(name): t for name, t in found.items() if isinstance(t, _Tensor)}
    if not tensors:
        raise TorchFileError("holds no tensors by name; save a state_dict")
    return tensors


def _arrays(found: Any, keep: Callable[[str], bool], bytes_of: Callable[[str], Any]) -> dict[str, np.ndarray]:
    return {name: t.array(bytes_of) for name, t in _tensors(found).items() if keep(name)}
