/* SPDX-License-Identifier: Apache-2.0 */
#include "io/decode.h"

#include "base/dtype.h"
#include "base/half.h"
#include "base/status.h"

static void decode_f16(const uint8_t *src, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) out[i] = dq_f16_to_f32(dq_load_u16(src + 2 * i));
}

static void decode_bf16(const uint8_t *src, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) out[i] = dq_bf16_to_f32(dq_load_u16(src + 2 * i));
}

static void decode_f64(const uint8_t *src, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        double v;
        memcpy(&v, src + 8 * i, sizeof v);
        out[i] = (float)v;
    }
}

/* E4M3 of "FP8 Formats for Deep Learning" (arXiv 2209.05433): bias 7, no infinities, S.1111.111 is NaN. */
static float e4m3_to_f32(uint8_t b)
{
    uint32_t sign = (uint32_t)(b & 0x80u) << 24;
    uint32_t exponent = (b >> 3) & 15u, mantissa = b & 7u;
    if (exponent == 15 && mantissa == 7) return dq_f32_from_bits(sign | 0x7fc00000u);
    if (exponent == 0) return dq_f32_from_bits(sign | dq_f32_bits((float)mantissa * 0x1p-9f));
    return dq_f32_from_bits(sign | (exponent + 120) << 23 | mantissa << 20);
}

bool dq_decode_float(dq_dtype dtype, const uint8_t *src, size_t n, float *out)
{
    switch (dtype) {
        case DQ_F32:
            if (n) memcpy(out, src, n * sizeof *out);
            return true;
        case DQ_F16: decode_f16(src, n, out); return true;
        case DQ_BF16: decode_bf16(src, n, out); return true;
        case DQ_F64: decode_f64(src, n, out); return true;
        case DQ_F8_E4M3:
            for (size_t i = 0; i < n; i++) out[i] = e4m3_to_f32(src[i]);
            return true;
        case DQ_F8_E5M2: /* the upper byte of a half */
            for (size_t i = 0; i < n; i++) out[i] = dq_f16_to_f32((uint16_t)(src[i] << 8));
            return true;
        default: return false;
    }
}

dq_status dq_refuse_decode(const dq_tensor_info *tensor)
{
    dq_status status = dq_fail(DQ_E_UNSUPPORTED, "type %s cannot be read as floating point", tensor->type_name);
    return dq_error_in_tensor(dq_error_in_file(status, tensor->file), tensor->name);
}

dq_status dq_sink_check(const char *name, dq_dtype dtype, int ndim, const int64_t *shape, uint64_t bytes,
                        dq_tensor_info *info)
{
    size_t total = dq_dtype_size(dtype);
    int64_t span = 1; /* without zeros, so that rows * cols never overflows */
    if (total == 0)
        return dq_error_in_tensor(dq_fail(DQ_E_UNSUPPORTED, "type %s cannot be stored", dq_dtype_name(dtype)), name);
    if (ndim < 0 || ndim > DQ_MAX_DIMS)
        return dq_error_in_tensor(dq_fail(DQ_E_INVALID, "%d dimensions, 0..%d can be stored", ndim, DQ_MAX_DIMS), name);
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0 || !dq_mul_ok(total, (size_t)shape[i], &total) ||
            (shape[i] > 0 && __builtin_mul_overflow(span, shape[i], &span)))
            return dq_error_in_tensor(dq_fail(DQ_E_INVALID, "dimension %d is %lld", i, (long long)shape[i]), name);
        info->shape[i] = shape[i];
    }
    if (total != bytes)
        return dq_error_in_tensor(
            dq_fail(DQ_E_INVALID, "%llu bytes given, shape and type need %zu", (unsigned long long)bytes, total), name);
    info->dtype = dtype;
    info->ndim = ndim;
    info->bytes = bytes;
    return DQ_OK;
}
