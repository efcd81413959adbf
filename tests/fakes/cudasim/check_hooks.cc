/* cudasim's checker: the calls that -fsanitize=thread puts before loads and stores, and -fsanitize=alignment,bounds where an
 * address or an index is wrong. They are the compilers' own names (libtsan's and libubsan's interface); nothing of those
 * libraries is linked. SPDX-License-Identifier: Apache-2.0 */
#include "check_state.h"

using namespace cusim::check;

#define CODE __builtin_return_address(0)
#define HOOK(name, size, how)                                                                                          \
    extern "C" void name(void *at)                                                                                     \
    {                                                                                                                  \
        if (inside) access((uintptr_t)at, size, how, CODE);                                                            \
    }
#define HOOKS(size)                                                                                                    \
    HOOK(__tsan_read##size, size, READ)                                                                                \
    HOOK(__tsan_write##size, size, WRITE)                                                                              \
    HOOK(__tsan_volatile_read##size, size, READ)                                                                       \
    HOOK(__tsan_volatile_write##size, size, WRITE)                                                                     \
    HOOK(__tsan_unaligned_read##size, size, READ)                                                                      \
    HOOK(__tsan_unaligned_write##size, size, WRITE)
/* clang-format off */
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
HOOK(__tsan_vptr_read, 8, READ)
/* clang-format on */

extern "C" void __tsan_vptr_update(void *at, void *)
{
    if (inside) access((uintptr_t)at, 8, WRITE, CODE);
}
extern "C" void __tsan_read_range(void *at, unsigned long bytes)
{
    if (inside) access((uintptr_t)at, bytes, READ, CODE);
}
extern "C" void __tsan_write_range(void *at, unsigned long bytes)
{
    if (inside) access((uintptr_t)at, bytes, WRITE, CODE);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}

/* What clang makes of memcpy, memmove and memset. */
extern "C" void *__tsan_memcpy(void *to, const void *from, size_t bytes)
{
    if (inside && bytes) {
        access((uintptr_t)from, bytes, READ, CODE);
        access((uintptr_t)to, bytes, WRITE, CODE);
    }
    return memcpy(to, from, bytes);
}
extern "C" void *__tsan_memmove(void *to, const void *from, size_t bytes)
{
    if (inside && bytes) {
        access((uintptr_t)from, bytes, READ, CODE);
        access((uintptr_t)to, bytes, WRITE, CODE);
    }
    return memmove(to, from, bytes);
}
extern "C" void *__tsan_memset(void *to, int value, size_t bytes)
{
    if (inside && bytes) access((uintptr_t)to, bytes, WRITE, CODE);
    return memset(to, value, bytes);
}

/* ---- alignment and indices: the leading members of the structures that compilers pass ---- */

namespace
{
struct source {
    const char *file;
    uint32_t line, column;
};
struct type {
    uint16_t kind, info;
    char name[1];
};
struct mismatch {
    source at;
    const type *of;
    unsigned char log_alignment, access;
};
struct bad_index {
    source at;
    const type *array, *index;
};
} // namespace

extern "C" void __ubsan_handle_type_mismatch_v1(mismatch *m, uintptr_t at)
{
    if (!inside) return;
    report("misaligned access", CODE, NULL,
           format("%s needs an address that %d divides, this is %s (%s:%u)", m->of->name, 1 << m->log_alignment,
                  place_of(at).c_str(), m->at.file, m->at.line));
}
extern "C" void __ubsan_handle_out_of_bounds(bad_index *b, uintptr_t index)
{
    if (!inside) return;
    report("out of bounds", CODE, NULL,
           format("index %lld of %s (%s:%u)", (long long)index, b->array->name, b->at.file, b->at.line));
}
