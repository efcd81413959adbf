/* Options of the weight grid and room for its results. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "base/status.h"
#include "quant/parts.h"

dq_status dq_weight_spec_check(const dq_weight_spec *spec)
{
    if (spec->bits < 2 || spec->bits > 8)
        return dq_fail(DQ_E_INVALID, "weight bits: %d, 2 to 8 are possible", spec->bits);
    if (spec->method != DQ_WEIGHT_RTN && spec->method != DQ_WEIGHT_GPTQ)
        return dq_fail(DQ_E_INVALID, "unknown weight quantization method %d", (int)spec->method);
    if (spec->group != -1 && spec->group < 1)
        return dq_fail(DQ_E_INVALID, "weight group size: %lld, -1 (whole row) or at least 1 is possible",
                       (long long)spec->group);
    if (spec->method == DQ_WEIGHT_GPTQ && !(spec->percdamp >= 0 && spec->percdamp <= 100))
        return dq_fail(DQ_E_INVALID, "percdamp: %g is not in [0, 100]", spec->percdamp);
    return DQ_OK;
}

/* Clip search as upstream's: 80 steps of 1/100, norm 2.4. */
dq_grid_desc dq_weight_grid_desc(const dq_weight_spec *spec, int64_t group)
{
    return (dq_grid_desc){.bits = spec->bits,
                          .symmetric = spec->symmetric,
                          .group = group,
                          .search_steps = spec->clip_search ? 80 : 0,
                          .search_grid = 100,
                          .search_norm = 2.4f};
}

int64_t dq_weight_group(const dq_weight_spec *spec, int64_t in)
{
    return spec->group < 1 || spec->group > in ? in : spec->group;
}

dq_status dq_codes_alloc(dq_device *dev, const dq_weight_spec *spec, int64_t out, int64_t in, dq_codes *codes)
{
    dq_status status;
    int64_t group = dq_weight_group(spec, in);
    dq_codes c = {.bits = spec->bits,
                  .out = out,
                  .in = in,
                  .groups = (in + group - 1) / group,
                  .group = group,
                  .symmetric = spec->symmetric};
    DQ_GO(dq_tensor_alloc(dev, DQ_U8, out, in, &c.codes));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, out, c.groups, &c.scale));
    DQ_GO(dq_tensor_alloc(dev, DQ_F32, out, c.groups, &c.zero));
    *codes = c;
    return DQ_OK;
done:
    dq_codes_free(&c);
    return status;
}

dq_status dq_codes_dequantize(const dq_codes *codes, dq_tensor *w)
{
    dq_grid_desc d = {.bits = codes->bits, .symmetric = codes->symmetric, .group = codes->group};
    const dq_tensor *index = dq_tensor_is_empty(&codes->group_index) ? NULL : &codes->group_index;
    return dq_op_dequantize_weight(&d, &codes->codes, &codes->scale, &codes->zero, index, w);
}
