/* See golden.h. SPDX-License-Identifier: Apache-2.0 */
#include "golden.h"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/dtype.h"

static dq_dtype dtype_of(const char *name)
{
    for (dq_dtype t = 0; t < DQ_BLOCK; t++)
        if (strcmp(dq_dtype_name(t), name) == 0) return t;
    fail_msg("unknown element type %s", name);
    return DQ_DTYPE_OTHER;
}

golden golden_load(const char *name)
{
    char path[128], line[128], type[16];
    golden g = {.count = 0};
    snprintf(path, sizeof path, "tests/data/ops/%s.bin", name);
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("cannot open %s (run tests from the root of the repository)", path);
    while (fgets(line, sizeof line, file) && line[0] != '\n') {
        long long rows, cols;
        golden_array *a = &g.arrays[g.count++];
        assert_true(g.count <= GOLDEN_MAX);
        assert_int_equal(sscanf(line, "%31s %15s %lld %lld", a->name, type, &rows, &cols), 4);
        *a = (golden_array){.dtype = dtype_of(type), .rows = rows, .cols = cols};
        sscanf(line, "%31s", a->name);
    }
    for (int i = 0; i < g.count; i++) {
        golden_array *a = &g.arrays[i];
        size_t bytes = (size_t)(a->rows * a->cols) * dq_dtype_size(a->dtype);
        a->data = malloc(bytes + 1);
        assert_int_equal(fread(a->data, 1, bytes, file), bytes);
    }
    assert_int_equal(fgetc(file), EOF);
    fclose(file);
    return g;
}

const golden_array *golden_find(const golden *g, const char *name)
{
    for (int i = 0; i < g->count; i++)
        if (strcmp(g->arrays[i].name, name) == 0) return &g->arrays[i];
    fail_msg("the golden file has no array %s", name);
    return NULL;
}

void golden_free(golden *g)
{
    for (int i = 0; i < g->count; i++) free(g->arrays[i].data);
    g->count = 0;
}
