"""Rotate, quantize and measure language models.

    import dartquant
    model = dartquant.Model.open("folder-or.gguf")
    small = model.quantize(preset="w4a4kv4", cal_file="text.txt")
    print(small.perplexity(file="other.txt").ppl)
    small.save("model-w4a4kv4")

A thin layer over libdartquant: objects own C handles, exceptions carry the library's error record, Ctrl-C stops jobs
cleanly. SPDX-License-Identifier: Apache-2.0
"""
from ._core import Cancel, Progress
from ._ffi import LibraryError, lib, library_path
from ._version import __version__
from .config import Config, Option, Preset, options, presets
from .context import Context, default_context
from .dataset import Dataset
from .errors import (BackendError, CancelledError, DartQuantError, DeviceError, DeviceLostError, DeviceMemoryError,
                     FileError, FormatError, InternalError, InvalidError, IOError_, MismatchError, NoMemoryError,
                     NonFiniteError, NotFoundError, NumberError, NumericError, StateError, TextError, TruncatedError,
                     UnsupportedError)
from .generation import Generation, Generator, Token
from .jobs import (HostPerplexity, Perplexity, PerplexityJob, QuantizeJob, Reference, Step, checkpoint_exists,
                   checkpoint_remove)
from .memory import Exported
from .model import Model, WeightError
from .ops import Hessian, QuantizedWeight
from .rotation import Rotation
from .tensors import TensorInfo, Tensors
from .tokenizer import Tokenizer

library_version: str = lib.dq_version_string().decode()
"""Version of the loaded library."""

__all__ = [
    "BackendError", "Cancel", "CancelledError", "Config", "Context", "DartQuantError", "Dataset", "DeviceError",
    "DeviceLostError", "DeviceMemoryError", "Exported", "FileError", "FormatError", "Hessian", "HostPerplexity", "IOError_", "InternalError", "InvalidError",
    "LibraryError", "MismatchError", "Model", "NoMemoryError", "NonFiniteError", "NotFoundError", "NumberError",
    "Generation", "Generator", "NumericError", "Option", "Perplexity", "PerplexityJob", "Preset", "Progress", "QuantizeJob", "QuantizedWeight", "Reference", "Rotation",
    "StateError", "Step", "TensorInfo", "Tensors", "TextError", "Token", "Tokenizer", "TruncatedError", "UnsupportedError", "WeightError",
    "__version__", "checkpoint_exists", "checkpoint_remove", "default_context", "library_path", "library_version", "options", "presets",
]
