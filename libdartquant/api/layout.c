/* Freezes the layout of every open struct that crosses the border: members are only ever appended, in multiples of eight
 * bytes. A change here breaks programs that are already compiled (c.f. DQ_ABI_VERSION).
 * SPDX-License-Identifier: Apache-2.0 */
#include "dartquant.h"

#if defined(__LP64__)
#define AT(type, member, offset) _Static_assert(offsetof(type, member) == (offset), #type "." #member " moved")
#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "size of " #type)

AT(dq_option_info, struct_size, 0);
AT(dq_option_info, type, 4);
AT(dq_option_info, name, 8);
AT(dq_option_info, area, 16);
AT(dq_option_info, help, 24);
AT(dq_option_info, unit, 32);
AT(dq_option_info, default_value, 40);
AT(dq_option_info, choices, 48);
AT(dq_option_info, min, 56);
AT(dq_option_info, max, 64);
SIZE(dq_option_info, 72);

AT(dq_preset_info, struct_size, 0);
AT(dq_preset_info, name, 8);
AT(dq_preset_info, description, 16);
AT(dq_preset_info, settings, 24);
SIZE(dq_preset_info, 32);

AT(dq_tensor_desc, struct_size, 0);
AT(dq_tensor_desc, dtype, 4);
AT(dq_tensor_desc, name, 8);
AT(dq_tensor_desc, type_name, 16);
AT(dq_tensor_desc, file, 24);
AT(dq_tensor_desc, ndim, 32);
AT(dq_tensor_desc, shape, 40);
AT(dq_tensor_desc, bytes, 104);
AT(dq_tensor_desc, offset, 112);
SIZE(dq_tensor_desc, 120);

AT(dq_progress_event, struct_size, 0);
AT(dq_progress_event, stage, 8);
AT(dq_progress_event, index, 16);
AT(dq_progress_event, total, 24);
AT(dq_progress_event, metric, 32);
AT(dq_progress_event, elapsed, 40);
AT(dq_progress_event, orthogonality_error, 48);
SIZE(dq_progress_event, 56);

AT(dq_services, struct_size, 0);
AT(dq_services, abi, 4);
AT(dq_services, allocator, 8);
AT(dq_services, runner, 32);
AT(dq_services, log, 56);
AT(dq_services, log_user, 64);
SIZE(dq_services, 72);
AT(dq_tensor_source, struct_size, 0);
AT(dq_tensor_source, abi, 4);
AT(dq_tensor_source, user, 8);
AT(dq_tensor_source, count, 16);
AT(dq_tensor_source, describe, 24);
AT(dq_tensor_source, read, 32);
AT(dq_tensor_source, map, 40);
AT(dq_tensor_source, release, 48);
AT(dq_tensor_source, free, 56);
SIZE(dq_tensor_source, 64);

AT(dq_tensor_sink, struct_size, 0);
AT(dq_tensor_sink, abi, 4);
AT(dq_tensor_sink, user, 8);
AT(dq_tensor_sink, add, 16);
AT(dq_tensor_sink, set_metadata, 24);
AT(dq_tensor_sink, finish, 32);
AT(dq_tensor_sink, begin, 40);
AT(dq_tensor_sink, append, 48);
SIZE(dq_tensor_sink, 56);
SIZE(dq_allocator, 24);
SIZE(dq_runner, 24);
#endif

/* The enumerators hosts compile in. */
_Static_assert(DQ_OPTION_INT == 0 && DQ_OPTION_CHOICE == 4, "kinds of options");
_Static_assert(DQ_ENCODE_ADD_SPECIAL == 1 && DQ_ENCODE_PARSE_SPECIAL == 2 && DQ_DECODE_SKIP_SPECIAL == 1, "flags");
_Static_assert(DQ_F32 == 0 && DQ_DTYPE_OTHER == 16, "element types");
_Static_assert(DQ_E_INVALID == -1 && DQ_E_IO == -100 && DQ_E_NONFINITE == -200 && DQ_E_TEXT == -300 &&
                   DQ_E_BACKEND == -400,
               "status codes");
