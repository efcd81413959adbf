/* What was written is opened again and compared: codes to the value, floats as the file's type rounds them.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/status.h"
#include "export/parts.h"

static dq_status differs(const char *what)
{
    return dq_fail(DQ_E_INTERNAL, "the file was written and read again: %s differ", what);
}

static dq_status compare_codes(const dq_export_plan *p, dq_model *back, int64_t layer, dq_role role)
{
    dq_host_codes a = {0}, b = {0};
    dq_codes codes = {0};
    dq_status status;
    DQ_GO(dq_export_read_codes(p, layer, role, &a));
    DQ_GO(dq_model_read_codes(back, layer, role, &codes));
    DQ_GO(dq_codes_to_host(p->env, &codes, &b));
    size_t params = (size_t)(a.out * a.groups);
    if (a.out != b.out || a.in != b.in || a.groups != b.groups || a.bits != b.bits)
        status = differs("sizes");
    else if (memcmp(a.codes, b.codes, (size_t)(a.out * a.in)) != 0)
        status = differs("codes");
    else if (memcmp(a.scale, b.scale, params * sizeof *a.scale) != 0 || memcmp(a.zero, b.zero, params) != 0)
        status = differs("scales or zero points");
    else if (!a.group_index != !b.group_index ||
             (a.group_index && memcmp(a.group_index, b.group_index, (size_t)a.in * sizeof *a.group_index) != 0))
        status = differs("group indices");
done:
    dq_codes_free(&codes);
    dq_host_codes_free(&a);
    dq_host_codes_free(&b);
    return status;
}

/* Largest difference between a stored weight and the model's, against the largest weight. */
static double allowed(const dq_export_plan *p)
{
    if (p->spec->kind == DQ_EXPORT_DIFFULEX) return 0.3; /* half a step of 15, or one at the ends */
    if (p->spec->kind == DQ_EXPORT_GGUF && dq_gguf_block_is_quantized(p->spec->block)) return 0.2;
    dq_dtype dtype = p->dtype;
    if (p->spec->kind == DQ_EXPORT_GGUF)
        dtype = p->spec->block == DQ_GGUF_OUT_F32 ? DQ_F32 : p->spec->block == DQ_GGUF_OUT_F16 ? DQ_F16 : DQ_BF16;
    return dtype == DQ_F32 ? 0.0 : dtype == DQ_F16 ? 0x1p-11 : 0x1p-8;
}

static dq_status compare_floats(const dq_export_plan *p, dq_model *back, int64_t layer, dq_role role)
{
    dq_export_plan other = *p;
    float *a = NULL, *b = NULL, *bias_a = NULL, *bias_b = NULL;
    int64_t rows, cols;
    double most = 0.0, worst = 0.0;
    dq_status status;
    other.model = back;
    dq_arch_shape(dq_model_arch(p->model), role, &rows, &cols);
    DQ_GO(dq_export_linear_f32(p, layer, role, &a, &bias_a));
    DQ_GO(dq_export_linear_f32(&other, layer, role, &b, &bias_b));
    for (int64_t i = 0; i < rows * cols; i++) {
        most = fmax(most, fabs((double)a[i]));
        worst = fmax(worst, fabs((double)a[i] - (double)b[i]));
    }
    if (worst > allowed(p) * most)
        status = dq_fail(DQ_E_INTERNAL, "the file was written and read again: weights differ by %g of %g", worst, most);
done:
    dq_free(a);
    dq_free(b);
    dq_free(bias_a);
    dq_free(bias_b);
    return status;
}

dq_status dq_export_verify(const dq_export_plan *p, const char *path)
{
    dq_model *back = NULL;
    char name[DQ_TENSOR_NAME];
    const dq_arch *a = dq_model_arch(p->model);
    dq_status status = dq_model_open_path(dq_model_device(p->model), path, &back);
    for (int64_t layer = 0; status == DQ_OK && layer < a->layers; layer++)
        for (int n = 0; status == DQ_OK && n < dq_arch_linears(a); n++) {
            dq_role role = dq_arch_linear(a, n);
            bool codes = p->spec->kind == DQ_EXPORT_CODES && dq_model_has_codes(p->model, layer, role);
            status = codes ? compare_codes(p, back, layer, role) : compare_floats(p, back, layer, role);
            dq_arch_module_name(a, role, layer, name, sizeof name);
            dq_error_in_tensor(status, name);
        }
    dq_model_release(back);
    return status;
}
