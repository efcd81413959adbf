"""Loads libdartquant and declares every function it exports.

TABLE is the whole interface in one place; tests/test_parity.py holds it against the C headers and the linker's list of
exported symbols. SPDX-License-Identifier: Apache-2.0
"""
from __future__ import annotations

import ctypes
import os
import pathlib
from typing import Any, Iterator

from ._ctypes import (F32, F64, HANDLE, I32, I64, PROGRESS_FN, PTR, SIZE, STR, STRUCTS, TOKEN_FN, U8, U32, U64, VOID,
                      DeviceCounters, OptionInfo, PresetInfo, RotationLoss, Services, TensorDesc, TensorSink,
                      TensorSource)
from ._version import __version__

ABI_VERSION = 1  # DQ_ABI_VERSION of the headers this table was written for
VERSION_NUMBER = sum(int(p) * w for p, w in zip(__version__.split("."), (10000, 100, 1)))

# name: (result, [arguments]). HANDLE is a pointer to an opaque object, PTR(HANDLE) where one is returned.
TABLE: dict[str, tuple[Any, list[Any]]] = {
    # benchmark.h
    "dq_benchmark_ops": (I32, [HANDLE, F64, HANDLE, PROGRESS_FN, VOID, PTR(STR)]),
    # calibrator.h
    "dq_calibrator_new": (I32, [HANDLE, HANDLE, PTR(HANDLE)]),
    "dq_calibrator_bind": (I32, [HANDLE, HANDLE]),
    "dq_calibrator_bind_folder": (I32, [HANDLE, STR]),
    "dq_model_capture": (I32, [HANDLE, HANDLE, HANDLE, STR, HANDLE, PROGRESS_FN, VOID]),
    "dq_calibrator_new_rows": (I32, [HANDLE, HANDLE, I64, I32, I32, PTR(HANDLE)]),
    "dq_calibrator_add_rows": (I32, [HANDLE, I32, VOID, I64, I64, I32]),
    "dq_calibrator_set_initial": (I32, [HANDLE, PTR(F64), SIZE]),
    "dq_calibrator_free": (None, [HANDLE]),
    "dq_calibrator_set_loss": (I32, [HANDLE, PTR(RotationLoss)]),
    "dq_calibrator_step": (I32, [HANDLE, HANDLE, PROGRESS_FN, VOID, PTR(I32)]),
    "dq_calibrator_run": (I32, [HANDLE, HANDLE, PROGRESS_FN, VOID]),
    "dq_calibrator_checkpoint": (I32, [HANDLE, STR]),
    "dq_calibrator_restore": (I32, [HANDLE, STR]),
    "dq_calibrator_take_rotation": (I32, [HANDLE, PTR(HANDLE)]),
    "dq_calibrator_copy_rotation": (I32, [HANDLE, PTR(F64), SIZE]),
    "dq_calibrator_report": (I32, [HANDLE, PTR(STR)]),
    "dq_calibrator_get_float": (I32, [HANDLE, STR, PTR(F64)]),
    # checkpoint.h
    "dq_quantizer_checkpoint": (I32, [HANDLE, STR]),
    "dq_quantizer_restore": (I32, [HANDLE, STR]),
    "dq_evaluator_checkpoint": (I32, [HANDLE, STR]),
    "dq_evaluator_restore": (I32, [HANDLE, STR]),
    "dq_checkpoint_exists": (I32, [HANDLE, STR, PTR(I32)]),
    "dq_checkpoint_remove": (I32, [HANDLE, STR]),
    # config.h
    "dq_config_new": (I32, [PTR(HANDLE)]),
    "dq_config_free": (None, [HANDLE]),
    "dq_config_copy": (I32, [HANDLE, PTR(HANDLE)]),
    "dq_config_set": (I32, [HANDLE, STR, STR]),
    "dq_config_set_int": (I32, [HANDLE, STR, I64]),
    "dq_config_set_float": (I32, [HANDLE, STR, F64]),
    "dq_config_get": (I32, [HANDLE, STR, PTR(STR)]),
    "dq_config_get_int": (I32, [HANDLE, STR, PTR(I64)]),
    "dq_config_get_float": (I32, [HANDLE, STR, PTR(F64)]),
    "dq_config_is_set": (I32, [HANDLE, STR, PTR(I32)]),
    "dq_option_count": (I32, []),
    "dq_option_get": (I32, [I32, PTR(OptionInfo)]),
    "dq_option_find": (I32, [STR, PTR(I32)]),
    "dq_config_apply_preset": (I32, [HANDLE, STR]),
    "dq_preset_count": (I32, []),
    "dq_preset_get": (I32, [I32, PTR(PresetInfo)]),
    # context.h
    "dq_context_new": (I32, [HANDLE, PTR(Services), PTR(HANDLE)]),
    "dq_context_new_with_backend": (I32, [HANDLE, PTR(Services), HANDLE, STR, PTR(HANDLE)]),
    "dq_backend_builtin": (I32, [STR, PTR(HANDLE)]),
    "dq_context_free": (None, [HANDLE]),
    "dq_context_device_name": (STR, [HANDLE]),
    "dq_context_device_json": (STR, [HANDLE]),
    "dq_context_memory_now": (U64, [HANDLE]),
    "dq_context_memory_peak": (U64, [HANDLE]),
    "dq_context_fallback_count": (U64, [HANDLE]),
    "dq_context_counters": (I32, [HANDLE, PTR(DeviceCounters)]),
    # dataset.h
    "dq_dataset_from_recipe": (I32, [HANDLE, STR, STR, I32, I64, PTR(HANDLE)]),
    "dq_dataset_from_file": (I32, [HANDLE, STR, PTR(HANDLE)]),
    "dq_dataset_from_text": (I32, [HANDLE, STR, SIZE, STR, PTR(HANDLE)]),
    "dq_dataset_from_ids": (I32, [HANDLE, PTR(I32), SIZE, STR, PTR(HANDLE)]),
    "dq_dataset_from_ids_file": (I32, [HANDLE, STR, PTR(HANDLE)]),
    "dq_dataset_free": (None, [HANDLE]),
    "dq_dataset_name": (STR, [HANDLE]),
    "dq_dataset_protocol": (STR, [HANDLE]),
    "dq_dataset_count": (I64, [HANDLE]),
    "dq_dataset_copy_ids": (I32, [HANDLE, I64, I64, PTR(I32)]),
    "dq_dataset_sample": (I32, [HANDLE, U64, I64, I64, PTR(I32), SIZE]),
    # error.h
    "dq_error_last": (I32, []),
    "dq_error_text": (STR, []),
    "dq_error_file": (STR, []),
    "dq_error_tensor": (STR, []),
    "dq_error_byte": (I64, []),
    "dq_error_backend": (STR, []),
    "dq_error_vendor_code": (I64, []),
    "dq_status_name": (STR, [I32]),
    # evaluator.h
    "dq_evaluator_new": (I32, [HANDLE, HANDLE, PTR(HANDLE)]),
    "dq_evaluator_free": (None, [HANDLE]),
    "dq_evaluator_bind": (I32, [HANDLE, HANDLE]),
    "dq_evaluator_step": (I32, [HANDLE, HANDLE, PROGRESS_FN, VOID, PTR(I32)]),
    "dq_evaluator_run": (I32, [HANDLE, HANDLE, PROGRESS_FN, VOID]),
    "dq_evaluator_new_host": (I32, [HANDLE, I64, HANDLE, PTR(HANDLE)]),
    "dq_evaluator_copy_ids": (I32, [HANDLE, I64, PTR(I32), SIZE]),
    "dq_evaluator_add_logits": (I32, [HANDLE, I64, PTR(F32), SIZE, PTR(I32)]),
    "dq_evaluator_get_float": (I32, [HANDLE, STR, PTR(F64)]),
    "dq_evaluator_get_int": (I32, [HANDLE, STR, PTR(I64)]),
    "dq_evaluator_copy_windows": (I32, [HANDLE, PTR(F64), SIZE]),
    "dq_evaluator_report": (I32, [HANDLE, PTR(STR)]),
    # generator.h
    "dq_generator_new": (I32, [HANDLE, HANDLE, HANDLE, PTR(HANDLE)]),
    "dq_generator_free": (None, [HANDLE]),
    "dq_generator_configure": (I32, [HANDLE, HANDLE]),
    "dq_generator_add": (I32, [HANDLE, PTR(I32), SIZE, PTR(I64)]),
    "dq_generator_add_stop": (I32, [HANDLE, STR]),
    "dq_generator_add_stop_id": (I32, [HANDLE, I32]),
    "dq_generator_step": (I32, [HANDLE, HANDLE, TOKEN_FN, VOID, PTR(I32)]),
    "dq_generator_run": (I32, [HANDLE, HANDLE, TOKEN_FN, VOID]),
    "dq_generator_reset": (I32, [HANDLE]),
    "dq_generator_copy_ids": (I32, [HANDLE, I64, PTR(I32), SIZE, PTR(SIZE)]),
    "dq_generator_text": (I32, [HANDLE, I64, PTR(STR)]),
    "dq_generator_finish_reason": (I32, [HANDLE, I64, PTR(I32)]),
    "dq_generator_get_float": (I32, [HANDLE, STR, PTR(F64)]),
    "dq_generator_get_int": (I32, [HANDLE, STR, PTR(I64)]),
    # model.h
    "dq_model_open": (I32, [HANDLE, STR, PTR(HANDLE)]),
    "dq_model_free": (None, [HANDLE]),
    "dq_model_describe": (I32, [HANDLE, PTR(STR)]),
    "dq_model_get_int": (I32, [HANDLE, STR, PTR(I64)]),
    "dq_model_get_float": (I32, [HANDLE, STR, PTR(F64)]),
    "dq_model_vocab_size": (I64, [HANDLE]),
    "dq_model_tensor_count": (I64, [HANDLE]),
    "dq_model_tensor_info": (I32, [HANDLE, I64, PTR(TensorDesc)]),
    "dq_model_fuse_norms": (I32, [HANDLE, HANDLE, PTR(HANDLE)]),
    "dq_model_rotate": (I32, [HANDLE, HANDLE, PTR(HANDLE)]),
    "dq_model_codes_shape": (I32, [HANDLE, I64, STR, PTR(I64), PTR(I64), PTR(I64), PTR(I32)]),
    "dq_model_copy_codes": (I32, [HANDLE, I64, STR, PTR(U8), PTR(F32), PTR(F32), PTR(I32)]),
    "dq_model_weight_error": (I32, [HANDLE, HANDLE, I64, STR, PTR(F64), PTR(I32)]),
    "dq_model_save": (I32, [HANDLE, STR, HANDLE, HANDLE, PROGRESS_FN, VOID]),
    "dq_model_export": (I32, [HANDLE, STR, STR, HANDLE, HANDLE, PROGRESS_FN, VOID]),
    "dq_model_logits": (I32, [HANDLE, PTR(I32), I64, HANDLE, PTR(F32), SIZE]),
    # progress.h
    "dq_cancel_new": (I32, [PTR(HANDLE)]),
    "dq_cancel_free": (None, [HANDLE]),
    "dq_cancel_set": (None, [HANDLE]),
    "dq_cancel_clear": (None, [HANDLE]),
    # quantizer.h
    "dq_quantizer_new": (I32, [HANDLE, HANDLE, PTR(HANDLE)]),
    "dq_quantizer_free": (None, [HANDLE]),
    "dq_quantizer_needs_data": (I32, [HANDLE, PTR(I32)]),
    "dq_quantizer_bind": (I32, [HANDLE, HANDLE]),
    "dq_quantizer_step": (I32, [HANDLE, HANDLE, PROGRESS_FN, VOID, PTR(I32)]),
    "dq_quantizer_run": (I32, [HANDLE, HANDLE, PROGRESS_FN, VOID]),
    "dq_quantizer_take_model": (I32, [HANDLE, PTR(HANDLE)]),
    "dq_quantizer_report": (I32, [HANDLE, PTR(STR)]),
    "dq_quantizer_get_float": (I32, [HANDLE, STR, PTR(F64)]),
    # reference.h
    "dq_evaluator_keep_reference": (I32, [HANDLE, I32]),
    "dq_evaluator_take_reference": (I32, [HANDLE, PTR(HANDLE)]),
    "dq_evaluator_set_reference": (I32, [HANDLE, HANDLE]),
    "dq_reference_free": (None, [HANDLE]),
    "dq_reference_save": (I32, [HANDLE, STR]),
    "dq_reference_open": (I32, [HANDLE, STR, PTR(HANDLE)]),
    "dq_reference_report": (I32, [HANDLE, PTR(STR)]),
    # rotation.h
    "dq_rotation_new": (I32, [HANDLE, HANDLE, PTR(HANDLE)]),
    "dq_rotation_free": (None, [HANDLE]),
    "dq_rotation_save": (I32, [HANDLE, STR]),
    "dq_rotation_describe": (I32, [HANDLE, PTR(STR)]),
    "dq_rotation_error": (I32, [HANDLE, PTR(F64)]),
    "dq_rotation_copy": (I32, [HANDLE, I64, PTR(F64), SIZE]),
    # source.h
    "dq_model_open_source": (I32, [HANDLE, STR, PTR(TensorSource), PTR(HANDLE)]),
    "dq_model_save_to": (I32, [HANDLE, PTR(TensorSink), HANDLE, PROGRESS_FN, VOID]),
    "dq_quantizer_set_sink": (I32, [HANDLE, PTR(TensorSink)]),
    # tensor_ops.h
    "dq_hessian_new": (I32, [HANDLE, I64, PTR(HANDLE)]),
    "dq_hessian_free": (None, [HANDLE]),
    "dq_hessian_add": (I32, [HANDLE, VOID, I64, I64, I32]),
    "dq_hessian_rows": (I64, [HANDLE]),
    "dq_hessian_copy": (I32, [HANDLE, PTR(F32), SIZE]),
    "dq_hessian_set": (I32, [HANDLE, PTR(F32), I64]),
    "dq_quantize_groups": (I32, [HANDLE, I64, PTR(I64)]),
    "dq_quantize_weight": (I32, [HANDLE, HANDLE, PTR(F32), I64, I64, HANDLE, PTR(U8), PTR(F32), PTR(F32), PTR(I32),
                                 PTR(F64), PTR(F64)]),
    "dq_dequantize_weight": (I32, [HANDLE, PTR(U8), PTR(F32), PTR(F32), PTR(I32), I64, I64, I64, PTR(F32)]),
    "dq_fake_quantize": (I32, [HANDLE, PTR(F32), I64, I64, I32, I64, I32, F64]),
    "dq_kv_quantize_rows": (I32, [HANDLE, PTR(F32), I64, I64, I32, I64, I32, F64, PTR(U8), PTR(F32), PTR(F32)]),
    "dq_kv_dequantize_rows": (I32, [HANDLE, PTR(U8), PTR(F32), PTR(F32), I64, I64, I64, PTR(F32)]),
    "dq_make_levels": (I32, [HANDLE, I32, I32, PTR(F32)]),
    "dq_measure_columns": (I32, [HANDLE, PTR(F32), I64, I64, F64, I32, I64, PTR(F32)]),
    "dq_fake_quantize_levels": (I32, [HANDLE, PTR(F32), I64, I64, PTR(F32), I32, PTR(F32), F64, I32, I32, I64, F64, F64]),
    "dq_apply_hadamard": (I32, [HANDLE, I64, PTR(F32), I64, I64, I32]),
    "dq_fold_rotation": (I32, [HANDLE, PTR(F32), PTR(F32), I64, I64, PTR(F64), I64, I32]),
    "dq_score_logits": (I32, [HANDLE, PTR(F32), I64, I64, I64, PTR(I32), PTR(F64), PTR(I32)]),
    # tensors.h
    "dq_tensors_open": (I32, [HANDLE, STR, PTR(HANDLE)]),
    "dq_tensors_free": (None, [HANDLE]),
    "dq_tensors_format": (STR, [HANDLE]),
    "dq_tensors_count": (I64, [HANDLE]),
    "dq_tensors_info": (I32, [HANDLE, I64, PTR(TensorDesc)]),
    "dq_tensors_find": (I32, [HANDLE, STR, PTR(I64)]),
    "dq_tensors_read_f32": (I32, [HANDLE, I64, I64, I64, PTR(F32), SIZE]),
    # tokenizer.h
    "dq_tokenizer_open": (I32, [HANDLE, STR, PTR(HANDLE)]),
    "dq_tokenizer_free": (None, [HANDLE]),
    "dq_tokenizer_vocab_size": (I64, [HANDLE]),
    "dq_tokenizer_bos": (I32, [HANDLE]),
    "dq_tokenizer_eos": (I32, [HANDLE]),
    "dq_tokenizer_algorithm": (STR, [HANDLE]),
    "dq_tokenizer_encode": (I32, [HANDLE, STR, SIZE, U32, PTR(I32), SIZE, PTR(SIZE)]),
    "dq_tokenizer_decode": (I32, [HANDLE, PTR(I32), SIZE, U32, STR, SIZE, PTR(SIZE)]),
    "dq_tokenizer_get_chat_template": (I32, [HANDLE, STR, PTR(STR)]),
    "dq_tokenizer_render_chat": (I32, [HANDLE, STR, STR, STR, U32, STR, SIZE, PTR(SIZE)]),
    # version.h
    "dq_version_string": (STR, []),
    "dq_version_number": (I32, []),
    "dq_abi_version": (I32, []),
}


class LibraryError(ImportError):
    """libdartquant was not found, is too old, or was built for another interface."""


def _candidates() -> Iterator[str]:
    here = pathlib.Path(__file__).resolve().parent
    yield from (str(p) for p in sorted(here.glob("libdartquant.so*")))
    if os.environ.get("DARTQUANT_LIBRARY"):
        yield os.environ["DARTQUANT_LIBRARY"]
        return  # whoever names a library wants that one or an error
    if len(here.parents) > 2:
        built = here.parents[2] / "build" / "libdartquant.so"
        if (here.parents[2] / "include" / "dartquant.h").exists() and built.exists():
            yield str(built)
    yield "libdartquant.so.%d" % ABI_VERSION


def _load() -> tuple[ctypes.CDLL, str]:
    reasons = []
    for path in _candidates():
        try:
            return ctypes.CDLL(path), path
        except OSError as error:
            reasons.append(str(error))
    raise LibraryError(
        "libdartquant was not found; build it with `make`, install it, or set DARTQUANT_LIBRARY to the file:\n  "
        + "\n  ".join(reasons))


def _declare(library: ctypes.CDLL, path: str) -> None:
    for name, (result, arguments) in TABLE.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise LibraryError("%s has no %s: it is older than this package (%s)" % (path, name, __version__)) from None
        function.restype, function.argtypes = result, arguments


def _check(library: ctypes.CDLL, path: str) -> None:
    """Refuses a library that this package would misread."""
    abi, number = library.dq_abi_version(), library.dq_version_number()
    if abi != ABI_VERSION:
        raise LibraryError("%s has binary interface %d, this package needs %d" % (path, abi, ABI_VERSION))
    if number < VERSION_NUMBER:
        raise LibraryError("%s is version %s, this package needs %s or later"
                           % (path, library.dq_version_string().decode(), __version__))
    for name, (struct, size) in STRUCTS.items():
        if ctypes.sizeof(struct) != size:
            raise LibraryError("%s takes %d bytes here, the library's layout has %d" % (name, ctypes.sizeof(struct), size))
    # A filled row shows that both sides mean the same struct.
    info = OptionInfo(struct_size=ctypes.sizeof(OptionInfo))
    index = I32(-1)
    found = (library.dq_option_find(b"w_bits", ctypes.byref(index)) == 0
             and library.dq_option_get(index, ctypes.byref(info)) == 0)
    if not found or (info.name, info.min, info.max) != (b"w_bits", 2.0, 16.0):
        raise LibraryError("%s describes its options in a layout this package does not know" % path)


lib, library_path = _load()
_declare(lib, library_path)
_check(lib, library_path)
