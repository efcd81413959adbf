/* Writing GGUF v3: keys, then the table of tensors, then their bytes in that order. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_GGUF_WRITER_H
#define DQ_IO_GGUF_WRITER_H

#include "base/source.h"

/* The file appears under its name by commit. The first failure of a key or tensor is kept and given by begin. */
typedef struct dq_gguf_writer dq_gguf_writer;
dq_status dq_gguf_writer_open(dq_env *env, const char *path, dq_gguf_writer **out);
void dq_gguf_writer_free(dq_gguf_writer *w); /* NULL is accepted */

void dq_gguf_writer_u32(dq_gguf_writer *w, const char *key, uint32_t value);
void dq_gguf_writer_f32(dq_gguf_writer *w, const char *key, float value);
void dq_gguf_writer_bool(dq_gguf_writer *w, const char *key, bool value);
void dq_gguf_writer_string(dq_gguf_writer *w, const char *key, const char *value);
/* Arrays: the key with its length, then the elements. `type`: DQ_GGUF_* of io/gguf.h. */
void dq_gguf_writer_array(dq_gguf_writer *w, const char *key, uint32_t type, uint64_t count);
void dq_gguf_writer_element(dq_gguf_writer *w, const void *data, uint64_t bytes);
void dq_gguf_writer_element_string(dq_gguf_writer *w, const char *text, uint64_t bytes);
/* A key with its value as it stands in another file. */
dq_status dq_gguf_writer_raw_key(dq_gguf_writer *w, const void *data, uint64_t bytes);
/* All keys of a GGUF source that begin with `prefix`; nothing for other sources. */
dq_status dq_gguf_copy_keys(const dq_source *source, const char *prefix, dq_gguf_writer *w);

/* A row of the table: cols is the fastest dimension; rows 0: a vector. `type`: GGML's number. */
void dq_gguf_writer_tensor(dq_gguf_writer *w, const char *name, int64_t rows, int64_t cols, uint32_t type,
                           uint64_t bytes);
dq_status dq_gguf_writer_begin(dq_gguf_writer *w);
/* Bytes of the next tensor, in as many pieces as one likes; end pads and checks that all bytes came. */
dq_status dq_gguf_writer_data(dq_gguf_writer *w, const void *data, uint64_t bytes);
dq_status dq_gguf_writer_end_tensor(dq_gguf_writer *w);
dq_status dq_gguf_writer_commit(dq_gguf_writer *w);

#endif
