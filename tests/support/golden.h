/* Reads the files of tests/data/ops (see tests/golden/make_ops.py): named matrices behind a text header.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_GOLDEN_H
#define DQ_TESTS_GOLDEN_H

#include "dartquant/types.h"

enum { GOLDEN_MAX = 48 };

typedef struct golden_array {
    char name[32];
    dq_dtype dtype;
    int64_t rows, cols;
    void *data;
} golden_array;

typedef struct golden {
    int count;
    golden_array arrays[GOLDEN_MAX];
} golden;

/* Fails the running cmocka test when the file or the array is missing or malformed. */
golden golden_load(const char *name);
const golden_array *golden_find(const golden *g, const char *name);
void golden_free(golden *g);

#endif
