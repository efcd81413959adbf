"""C types, structs and callback types of the public headers.

Field order and names are those of the headers; tests/test_parity.py compares both with a C compiler.
SPDX-License-Identifier: Apache-2.0
"""
from __future__ import annotations

import ctypes as C

I8, I16, I32, I64 = C.c_int8, C.c_int16, C.c_int32, C.c_int64
U8, U16, U32, U64 = C.c_uint8, C.c_uint16, C.c_uint32, C.c_uint64
INT, SIZE, F32, F64 = C.c_int, C.c_size_t, C.c_float, C.c_double
STR, VOID, HANDLE = C.c_char_p, C.c_void_p, C.c_void_p
PTR = C.POINTER

MAX_DIMS = 8


class OptionInfo(C.Structure):
    """dq_option_info"""

    _fields_ = [("struct_size", U32), ("type", I32), ("name", STR), ("area", STR), ("help", STR), ("unit", STR),
                ("default_value", STR), ("choices", STR), ("min", F64), ("max", F64)]


class PresetInfo(C.Structure):
    """dq_preset_info"""

    _fields_ = [("struct_size", U32), ("reserved", U32), ("name", STR), ("description", STR), ("settings", STR)]


class ProgressEvent(C.Structure):
    """dq_progress_event"""

    _fields_ = [("struct_size", U32), ("reserved", U32), ("stage", STR), ("index", U64), ("total", U64),
                ("metric", F64), ("elapsed", F64), ("orthogonality_error", F64)]


class TensorDesc(C.Structure):
    """dq_tensor_desc"""

    _fields_ = [("struct_size", U32), ("dtype", I32), ("name", STR), ("type_name", STR), ("file", STR),
                ("ndim", I32), ("reserved", I32), ("shape", I64 * MAX_DIMS), ("bytes", U64), ("offset", U64)]


PROGRESS_FN = C.CFUNCTYPE(I32, VOID, PTR(ProgressEvent))
LOG_FN = C.CFUNCTYPE(None, VOID, I32, STR)
TASK_FN = C.CFUNCTYPE(None, VOID, I64, INT)


class Allocator(C.Structure):
    """dq_allocator"""

    _fields_ = [("alloc", C.CFUNCTYPE(VOID, VOID, SIZE)), ("free", C.CFUNCTYPE(None, VOID, VOID, SIZE)),
                ("user", VOID)]


class Runner(C.Structure):
    """dq_runner"""

    _fields_ = [("run", C.CFUNCTYPE(None, VOID, I64, TASK_FN, VOID)), ("user", VOID), ("threads", I32),
                ("reserved", I32)]


class Services(C.Structure):
    """dq_services"""

    _fields_ = [("struct_size", U32), ("abi", U32), ("allocator", Allocator), ("runner", Runner), ("log", LOG_FN),
                ("log_user", VOID)]


class DeviceCounters(C.Structure):
    """dq_device_counters"""

    _fields_ = [("struct_size", U32), ("reserved", U32), ("ops", U64), ("fallbacks", U64), ("uploads", U64),
                ("downloads", U64), ("upload_bytes", U64), ("download_bytes", U64)]


SOURCE_DESCRIBE = C.CFUNCTYPE(I32, VOID, I64, PTR(TensorDesc))
SOURCE_READ = C.CFUNCTYPE(I32, VOID, I64, U64, U64, VOID)
SOURCE_MAP = C.CFUNCTYPE(I32, VOID, I64, PTR(VOID))
SOURCE_RELEASE = C.CFUNCTYPE(None, VOID, I64)
SOURCE_FREE = C.CFUNCTYPE(None, VOID)
SINK_ADD = C.CFUNCTYPE(I32, VOID, STR, I32, I32, PTR(I64), VOID, U64)
SINK_METADATA = C.CFUNCTYPE(I32, VOID, STR, STR)
SINK_FINISH = C.CFUNCTYPE(I32, VOID)
SINK_BEGIN = C.CFUNCTYPE(I32, VOID, STR, I32, I32, PTR(I64), U64)
SINK_APPEND = C.CFUNCTYPE(I32, VOID, VOID, U64)
LOSS_EVALUATE = C.CFUNCTYPE(I32, VOID, PTR(F32), I64, I64, PTR(F32), PTR(F64))


class TensorSource(C.Structure):
    """dq_tensor_source"""

    _fields_ = [("struct_size", U32), ("abi", U32), ("user", VOID), ("count", I64), ("describe", SOURCE_DESCRIBE),
                ("read", SOURCE_READ), ("map", SOURCE_MAP), ("release", SOURCE_RELEASE), ("free", SOURCE_FREE)]


class TensorSink(C.Structure):
    """dq_tensor_sink"""

    _fields_ = [("struct_size", U32), ("abi", U32), ("user", VOID), ("add", SINK_ADD), ("set_metadata", SINK_METADATA),
                ("finish", SINK_FINISH), ("begin", SINK_BEGIN), ("append", SINK_APPEND)]


class RotationLoss(C.Structure):
    """dq_rotation_loss"""

    _fields_ = [("struct_size", U32), ("abi", U32), ("user", VOID), ("name", STR), ("evaluate", LOSS_EVALUATE),
                ("curvature", F64)]


class TokenEvent(C.Structure):
    """dq_token_event"""

    _fields_ = [("struct_size", U32), ("finish", I32), ("sequence", I64), ("index", I64), ("text", STR), ("bytes", U64),
                ("id", I32), ("reserved", I32)]


TOKEN_FN = C.CFUNCTYPE(I32, VOID, PTR(TokenEvent))


# C name -> class, and the size that generation 1 of the binary interface froze (64-bit).
STRUCTS = {
    "dq_option_info": (OptionInfo, 72),
    "dq_preset_info": (PresetInfo, 32),
    "dq_progress_event": (ProgressEvent, 56),
    "dq_tensor_desc": (TensorDesc, 120),
    "dq_allocator": (Allocator, 24),
    "dq_runner": (Runner, 24),
    "dq_services": (Services, 72),
    "dq_device_counters": (DeviceCounters, 56),
    "dq_tensor_source": (TensorSource, 64),
    "dq_tensor_sink": (TensorSink, 56),
    "dq_rotation_loss": (RotationLoss, 40),
    "dq_token_event": (TokenEvent, 48),
}
CALLBACKS = {"dq_progress_fn": PROGRESS_FN, "dq_log_fn": LOG_FN, "dq_token_fn": TOKEN_FN}
