/* Stored numbers to fp32, and what the concrete sources share. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_DECODE_H
#define DQ_IO_DECODE_H

#include <string.h>

#include "base/source.h"
#include "io/file.h"

/* n little-endian numbers (any alignment) to fp32; false when the type is not floating point. F64 is rounded. */
bool dq_decode_float(dq_dtype dtype, const uint8_t *src, size_t n, float *out);
/* The refusal that belongs to `false`. */
dq_status dq_refuse_decode(const dq_tensor_info *tensor);

/* What every sink checks of a tensor; fills dtype, shape and bytes of *info. */
dq_status dq_sink_check(const char *name, dq_dtype dtype, int ndim, const int64_t *shape, uint64_t bytes,
                        dq_tensor_info *info);

static inline uint16_t dq_load_u16(const uint8_t *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint32_t dq_load_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline uint64_t dq_load_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the file formats are little-endian and read as they lie");

/* Openers of a mapped file, which dq_*_open and the fuzz targets share. They take the map over when they succeed;
 * `path` is only used for messages and infos. */
dq_status dq_safetensors_open_map(dq_env *env, const char *path, dq_map *map, dq_source **out);
dq_status dq_gguf_open_map(dq_env *env, const char *path, dq_map *map, dq_source **out);
dq_status dq_pt_open_map(dq_env *env, const char *path, dq_map *map, dq_source **out);

/* Decodes `blocks` blocks of a GGUF type; NULL when the type is not supported. */
typedef void (*dq_gguf_block_fn)(const uint8_t *src, size_t blocks, float *out);
dq_gguf_block_fn dq_gguf_block_decoder(uint32_t type);
/* The 6-bit scale and minimum of sub-block j from the 12 packed bytes of Q4_K and Q5_K. */
void dq_gguf_scale_min(const uint8_t *s, int j, float *scale, float *min);

/* How a block of that type is taken apart: x = scale * (code - 2^(bits-1)), or scale * code + minimum, each operation rounded
 * to fp32, gives the decoder's bits. */
typedef struct dq_block_form {
    const char *name;
    int elements, bytes; /* of a block */
    int bits, group;     /* of its codes; columns that share a scale */
    bool minimum;
    /* One block: codes[elements], scale[elements / group], minimum too where there are any. */
    void (*split)(const uint8_t *src, uint8_t *codes, float *scale, float *minimum);
} dq_block_form;
const dq_block_form *dq_gguf_block_form(const char *type_name); /* NULL = not one of these */

#endif
