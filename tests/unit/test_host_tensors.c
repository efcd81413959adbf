/* The host's own tensors in and out, through the public header alone. SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "host_model.h"

#define TINY "tests/data/tiny"
#define EVAL "seqlen=32 limit=3"

static dq_model *open_lent(dq_context *ctx, host_model *m)
{
    dq_tensor_source source = host_model_source(m);
    dq_model *model = NULL;
    OK(dq_model_open_source(ctx, m->manifest ? m->manifest : m->config, &source, &model));
    return model;
}

/* Lent weights, read or mapped, give the numbers of the opened folder to the last bit; free comes once, at the end. */
static void lent_equals_opened(void **state)
{
    (void)state;
    for (int mapped = 0; mapped < 2; mapped++) {
        dq_context *ctx = host_context(2);
        dq_config *config = host_config(EVAL);
        dq_dataset *set = host_ids(ctx, 200);
        dq_model *file = NULL;
        host_model host;
        host_model_load(&host, TINY);
        host.mapped = mapped;
        OK(dq_model_open(ctx, TINY, &file));
        dq_model *lent = open_lent(ctx, &host), *fused = NULL;
        assert_true(host_perplexity(lent, config, set) == host_perplexity(file, config, set));
        assert_true(mapped ? host.reads == 0 : host.reads > 0);
        OK(dq_model_fuse_norms(lent, config, &fused));
        dq_model_free(lent);
        assert_int_equal(host.freed, 0); /* the derived model reads it still */
        dq_model_free(fused);
        assert_int_equal(host.freed, 1);
        dq_model_free(file);
        dq_dataset_free(set);
        dq_config_free(config);
        dq_context_free(ctx);
        assert_int_equal(host.freed, 1);
        host_model_clear(&host);
    }
}

/* Weights the host holds in fp64 are read as such. */
static void dtypes(void **state)
{
    (void)state;
    dq_context *ctx = host_context(1);
    dq_config *config = host_config(EVAL);
    dq_dataset *set = host_ids(ctx, 200);
    host_model host;
    host_model_load(&host, TINY);
    dq_model *plain = open_lent(ctx, &host);
    double before = host_perplexity(plain, config, set), after[2];
    dq_model_free(plain);
    for (int64_t i = 0; i < host.count; i++) {
        host_tensor *t = &host.tensors[i];
        assert_int_equal(t->dtype, DQ_BF16);
        uint64_t n = t->bytes / 2;
        double *wide = malloc((size_t)n * sizeof *wide);
        for (uint64_t e = 0; e < n; e++) {
            uint32_t bits = (uint32_t)(t->data[2 * e] | t->data[2 * e + 1] << 8) << 16; /* bf16 = upper half of fp32 */
            float f;
            memcpy(&f, &bits, sizeof f);
            wide[e] = f;
        }
        free(t->data);
        t->data = (uint8_t *)wide;
        t->bytes = n * 8;
        t->dtype = DQ_F64;
    }
    for (int mapped = 0; mapped < 2; mapped++) {
        host.mapped = mapped;
        dq_model *model = open_lent(ctx, &host);
        after[mapped] = host_perplexity(model, config, set);
        dq_model_free(model);
    }
    assert_true(before == after[0] && before == after[1]);
    host_model_clear(&host);
    dq_dataset_free(set);
    dq_config_free(config);
    dq_context_free(ctx);
}

static void bad_tables(void **state)
{
    (void)state;
    dq_context *ctx = host_context(1);
    dq_model *model = NULL;
    host_model host;
    host_model_load(&host, TINY);
    dq_tensor_source s = host_model_source(&host);
    s.struct_size = 8;
    assert_int_equal(dq_model_open_source(ctx, host.config, &s, &model), DQ_E_INVALID);
    assert_non_null(strstr(dq_error_text(), "struct_size"));
    s = host_model_source(&host);
    s.abi = 99;
    assert_int_equal(dq_model_open_source(ctx, host.config, &s, &model), DQ_E_INVALID);
    s = host_model_source(&host);
    s.describe = NULL;
    assert_int_equal(dq_model_open_source(ctx, host.config, &s, &model), DQ_E_INVALID);
    s = host_model_source(&host);
    s.read = NULL; /* and map gives NULL */
    assert_int_equal(dq_model_open_source(ctx, host.config, &s, &model), DQ_E_INVALID);
    s = host_model_source(&host);
    assert_int_equal(dq_model_open_source(ctx, "{", &s, &model), DQ_E_FORMAT);
    assert_int_equal(dq_model_open_source(ctx, "{\"model_type\":\"nonsense\"}", &s, &model), DQ_E_UNSUPPORTED);
    host.tensors[0].dtype = DQ_BLOCK;
    assert_int_equal(dq_model_open_source(ctx, host.config, &s, &model), DQ_E_UNSUPPORTED);
    host.tensors[0].dtype = DQ_BF16;
    char kept[160];
    memcpy(kept, host.tensors[0].name, sizeof kept);
    snprintf(host.tensors[0].name, sizeof kept, "%s", host.tensors[1].name);
    assert_int_equal(dq_model_open_source(ctx, host.config, &s, &model), DQ_E_INVALID);
    snprintf(host.tensors[0].name, sizeof kept, "elsewhere");
    assert_int_equal(dq_model_open_source(ctx, host.config, &s, &model), DQ_E_MISMATCH);
    assert_int_equal(dq_model_open_source(NULL, host.config, &s, &model), DQ_E_INVALID);
    assert_int_equal(dq_model_open_source(ctx, host.config, NULL, &model), DQ_E_INVALID);
    assert_null(model);
    assert_int_equal(host.freed, 0);
    host_model_clear(&host);
    dq_context_free(ctx);
}

/* A read that fails in the middle of a job is that job's error, with the host's status and the tensor's name. */
static void failing_reads(void **state)
{
    (void)state;
    dq_context *ctx = host_context(2);
    dq_config *config = host_config(EVAL);
    dq_dataset *set = host_ids(ctx, 200);
    dq_evaluator *e = NULL;
    host_model host;
    host_model_load(&host, TINY);
    dq_model *model = open_lent(ctx, &host);
    OK(dq_evaluator_new(model, config, &e));
    OK(dq_evaluator_bind(e, set));
    host.fail_read = 6;
    assert_int_equal(dq_evaluator_run(e, NULL, NULL, NULL), DQ_E_IO);
    assert_non_null(strstr(dq_error_text(), "read returned -100"));
    assert_true(dq_error_tensor()[0] != '\0');
    OK(dq_evaluator_run(e, NULL, NULL, NULL)); /* and the next attempt succeeds */
    dq_evaluator_free(e);
    dq_model_free(model);
    dq_dataset_free(set);
    dq_config_free(config);
    host_model_clear(&host);
    dq_context_free(ctx);
}

/* A quantized model goes to the host and comes back: the same perplexity to the last bit. Whole tensors and pieces are the
 * same content. */
static void through_a_sink(void **state)
{
    (void)state;
    dq_context *ctx = host_context(2);
    dq_config *config = host_config(EVAL " w_bits=4 w_rtn=true w_groupsize=16 a_bits=8 k_bits=4 v_bits=4");
    dq_dataset *set = host_ids(ctx, 200);
    dq_model *model = NULL, *fused = NULL, *rotated = NULL, *quantized = NULL;
    dq_rotation *rotation = NULL;
    dq_quantizer *q = NULL;
    host_model whole = {0}, pieces = {0}, direct = {0};
    OK(dq_model_open(ctx, TINY, &model));
    OK(dq_model_fuse_norms(model, config, &fused));
    OK(dq_rotation_new(fused, config, &rotation));
    OK(dq_model_rotate(fused, rotation, &rotated));
    OK(dq_quantizer_new(rotated, config, &q));
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    OK(dq_quantizer_take_model(q, &quantized));
    dq_quantizer_free(q);

    dq_tensor_sink sink = host_model_sink(&whole, 0);
    OK(dq_model_save_to(quantized, &sink, NULL, NULL, NULL));
    sink = host_model_sink(&pieces, 1);
    OK(dq_model_save_to(quantized, &sink, NULL, NULL, NULL));
    host_model_assert_same(&whole, &pieces);
    assert_string_equal(whole.manifest, pieces.manifest);
    assert_int_equal(whole.finished, 1);

    /* the job itself can stream to the host */
    sink = host_model_sink(&direct, 1);
    OK(dq_quantizer_new(rotated, config, &q));
    OK(dq_quantizer_set_sink(q, &sink));
    OK(dq_quantizer_run(q, NULL, NULL, NULL));
    dq_model *none = NULL;
    assert_int_equal(dq_quantizer_take_model(q, &none), DQ_E_STATE);
    dq_quantizer_free(q);
    host_model_assert_same(&direct, &whole);

    host_model *all[] = {&whole, &pieces, &direct};
    double expected = host_perplexity(quantized, config, set);
    for (int i = 0; i < 3; i++) {
        dq_model *back = open_lent(ctx, all[i]);
        assert_true(host_perplexity(back, config, set) == expected);
        dq_model_free(back);
    }
    whole.tensors[0].data[0] ^= 1; /* not what the manifest was made for */
    dq_tensor_source source = host_model_source(&whole);
    assert_int_equal(dq_model_open_source(ctx, whole.manifest, &source, &none), DQ_E_MISMATCH);
    assert_null(none);
    for (int i = 0; i < 3; i++) host_model_clear(all[i]);
    dq_model_free(quantized);
    dq_model_free(rotated);
    dq_model_free(fused);
    dq_model_free(model);
    dq_rotation_free(rotation);
    dq_dataset_free(set);
    dq_config_free(config);
    dq_context_free(ctx);
}

static void sink_errors(void **state)
{
    (void)state;
    dq_context *ctx = host_context(1);
    dq_config *config = host_config("w_bits=4 w_rtn=true");
    dq_model *model = NULL;
    dq_quantizer *q = NULL;
    host_model host = {0};
    OK(dq_model_open(ctx, TINY, &model));
    dq_tensor_sink sink = host_model_sink(&host, 0);
    host.fail_add = 3;
    assert_int_equal(dq_model_save_to(model, &sink, NULL, NULL, NULL), DQ_E_IO); /* 77 is no status of ours */
    assert_non_null(strstr(dq_error_text(), "add returned 77"));
    assert_int_equal(host.finished, 0);
    host_model_clear(&host);
    sink.abi = 2;
    assert_int_equal(dq_model_save_to(model, &sink, NULL, NULL, NULL), DQ_E_INVALID);
    sink = host_model_sink(&host, 1);
    sink.append = NULL;
    assert_int_equal(dq_model_save_to(model, &sink, NULL, NULL, NULL), DQ_E_INVALID);
    sink = host_model_sink(&host, 0);
    OK(dq_quantizer_new(model, config, &q));
    OK(dq_quantizer_set_sink(q, &sink));
    host.fail_add = 20;
    assert_int_equal(dq_quantizer_run(q, NULL, NULL, NULL), DQ_E_IO);
    assert_int_equal(dq_quantizer_set_sink(q, &sink), DQ_E_STATE);
    dq_quantizer_free(q);
    OK(dq_config_set(config, "save_qmodel_path", "nowhere"));
    OK(dq_quantizer_new(model, config, &q));
    assert_int_equal(dq_quantizer_set_sink(q, &sink), DQ_E_STATE);
    dq_quantizer_free(q);
    host_model_clear(&host);
    dq_model_free(model);
    dq_config_free(config);
    dq_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(lent_equals_opened, host_no_leaks),
        cmocka_unit_test_teardown(dtypes, host_no_leaks),
        cmocka_unit_test_teardown(bad_tables, host_no_leaks),
        cmocka_unit_test_teardown(failing_reads, host_no_leaks),
        cmocka_unit_test_teardown(through_a_sink, host_no_leaks),
        cmocka_unit_test_teardown(sink_errors, host_no_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
