/* eval, quant: a device with memory of its own multiplies weights that were rounded once. A far device here is the CPU whose
 * memory the host pretends not to reach, so that numbers must be those of the near one.
 * SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#include "base/status.h"
#include "eval/perplexity.h"
#include "formats/host_codes.h"
#include "io/formats.h"
#include "models.h"
#include "quant/quantize.h"

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        if ((call) != DQ_OK) fail_msg("%s: %s", #call, dq_error_text());                                               \
    } while (0)

enum { SEQLEN = 32, WINDOWS = 6 };

static dq_backend plain;
static int narrowed, widened;       /* matrices that became bf16; 16 bits that became F32 */
static int products, wide_products; /* under bf16 math; with an F32 weight */

static dq_status count_convert(void *dev, const dq_view *x, const dq_view *y)
{
    narrowed += x->dtype != DQ_BF16 && y->dtype == DQ_BF16;
    widened += x->dtype != DQ_F32 && y->dtype == DQ_F32 && x->rows > 1;
    return plain.convert(dev, x, y);
}
static dq_status count_gemm(void *dev, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a,
                            const dq_view *b, double beta, const dq_view *c, int32_t math)
{
    bool forward = math == DQ_MATH_BF16 && trans_b && a->dtype == DQ_F32;
    products += forward;
    wide_products += forward && b->dtype == DQ_F32;
    return plain.gemm(dev, trans_a, trans_b, alpha, a, b, beta, c, math);
}
static dq_status count_head(void *dev, const dq_view *x, const dq_view *w, const dq_view *targets, int64_t first,
                            const dq_view *state, int32_t math)
{
    products++;
    wide_products += w->dtype == DQ_F32;
    return plain.head_nll(dev, x, w, targets, first, state, math);
}

static void open_cpu(fixture *f, bool far)
{
    plain = *dq_builtin_backend("cpu");
    dq_backend table = plain;
    table.convert = count_convert;
    table.gemm = count_gemm;
    table.head_nll = count_head;
    if (far) table.host_pointer = NULL;
    OK(dq_env_init(&f->env, NULL, 2));
    OK(dq_device_open_table(&f->env, &table, "", DQ_POLICY_FORBID, &f->dev));
    narrowed = widened = products = wide_products = 0;
}

static void fill_ids(int32_t *ids)
{
    for (int i = 0; i < WINDOWS * SEQLEN; i++) ids[i] = (i * i * 7 + i * 13 + 5) % 90;
}

static double perplexity(const char *model, bool far, int math)
{
    fixture f;
    int32_t ids[WINDOWS * SEQLEN];
    dq_perplexity p;
    fill_ids(ids);
    open_cpu(&f, far);
    dq_model *m = open_tiny(&f, model);
    OK(dq_perplexity_run(m, ids, WINDOWS * SEQLEN, SEQLEN, 0, math, NULL, &p));
    double ppl = p.ppl;
    dq_free(p.window_nll);
    dq_model_release(m);
    fixture_close(&f);
    return ppl;
}

static int linears_of(const char *model)
{
    fixture f;
    fixture_open(&f, "cpu", 1);
    dq_model *m = open_tiny(&f, model);
    int linears = (int)dq_model_arch(m)->layers * DQ_BLOCK_LINEARS;
    dq_model_release(m);
    fixture_close(&f);
    return linears;
}

/* However many windows there are, a weight is rounded once, and one that is stored in bf16 never; none is F32 in between. */
static void perplexity_of_rounded_weights(void **state)
{
    static const struct {
        const char *model; /* stored in F32, F16, BF16 */
        bool rounds;
    } cases[] = {{"mha", true}, {"qwen2", true}, {"gqa", false}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *model = cases[i].model;
        int factors = linears_of(model) + 1; /* and the head's one tile */
        double near = perplexity(model, false, DQ_MATH_BF16);
        assert_int_equal(narrowed, 0);
        assert_int_equal(wide_products, products);
        double far = perplexity(model, true, DQ_MATH_BF16);
        assert_true(far == near);
        assert_int_equal(narrowed, cases[i].rounds ? factors : 0);
        assert_true(widened <= 1); /* the embedding */
        assert_int_equal(products, factors * WINDOWS);
        assert_int_equal(wide_products, 0);
        assert_true(perplexity(model, true, DQ_MATH_F32) == perplexity(model, false, DQ_MATH_F32));
        assert_int_equal(narrowed, 0);
    }
}

static double gptq_error(bool far)
{
    fixture f;
    int32_t ids[WINDOWS * SEQLEN];
    dq_scheme scheme = plain_scheme();
    dq_quantize_job *job;
    dq_sink *sink;
    bool finished = false;
    double sum = 0;
    scheme.w.method = DQ_WEIGHT_GPTQ;
    scheme.w.bits = 4;
    scheme.w.group = 16;
    scheme.w.percdamp = 0.01;
    fill_ids(ids);
    open_cpu(&f, far);
    dq_model *m = open_tiny(&f, "gqa");
    OK(dq_memory_sink(&f.env, &sink));
    OK(dq_quantize_job_new(m, &scheme, ids, WINDOWS, SEQLEN, DQ_MATH_BF16, sink, &job));
    while (!finished) OK(dq_quantize_job_step(job, NULL, &finished));
    const dq_quantize_report *report = dq_quantize_job_report(job);
    for (int64_t i = 0; i < report->count; i++) sum += report->linears[i].error * (double)(i + 1);
    dq_quantize_job_free(job);
    sink->ops->free(sink);
    dq_model_release(m);
    fixture_close(&f);
    return sum;
}

static void gptq_of_rounded_weights(void **state)
{
    (void)state;
    double near = gptq_error(false);
    assert_true(wide_products == products && products > 0);
    double far = gptq_error(true);
    assert_true(far == near);
    assert_int_equal(wide_products, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(perplexity_of_rounded_weights),
                                       cmocka_unit_test(gptq_of_rounded_weights)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
