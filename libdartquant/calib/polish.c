/* Newton-Schulz steps X (3 I - X^T X) / 2 in double precision, which square the distance from the orthogonal group (Higham,
 * Functions of Matrices, 2008, section 8.3). X^T X is made and used a stripe at a time. SPDX-License-Identifier: Apache-2.0 */
#include "calib/polish.h"

#include <math.h>

#include "base/status.h"

enum { STRIPE = 256, MOST_STEPS = 20 };
#define NEAR 0.5  /* Frobenius norm of X^T X - I from which the steps converge */
#define LAST 1e-7 /* and from which one is enough */

typedef struct matrix {
    dq_device *dev;
    int64_t n, width;       /* columns of a stripe */
    dq_tensor x;            /* F64 [n, n]: rows of the result */
    dq_tensor next;         /* F64 [n, n] */
    dq_tensor gram;         /* F64 [width, n]: columns of X^T X, as rows */
    double *host;           /* the same */
    double largest, spread; /* of X^T X - I, as it was before the last step: entry, Frobenius norm */
} matrix;

/* Rows [first, first + rows) of X^T X - I; NaN stays. */
static void look_at(matrix *m, int64_t first, int64_t rows, double *squares)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < m->n; j++) {
            double e = fabs(m->host[i * m->n + j] - (j == first + i));
            if (!(e <= m->largest)) m->largest = e;
            *squares += e * e;
        }
}

/* Measures X; unless this is all that is wanted, a step follows. */
static dq_status walk(matrix *m, bool step)
{
    double squares = 0;
    m->largest = 0;
    for (int64_t c = 0; c < m->n; c += m->width) {
        int64_t cols = m->n - c < m->width ? m->n - c : m->width;
        dq_tensor gram = dq_tensor_rows(&m->gram, 0, cols);
        dq_tensor x = dq_tensor_slice(&m->x, 0, m->n, c, cols), next = dq_tensor_slice(&m->next, 0, m->n, c, cols);
        DQ_TRY(dq_op_gemm(true, false, 1, &x, &m->x, 0, &gram, DQ_MATH_F32));
        DQ_TRY(dq_tensor_download(&gram, m->host));
        look_at(m, c, cols, &squares);
        if (!step) continue;
        DQ_TRY(dq_op_convert(&x, &next));
        DQ_TRY(dq_op_gemm(false, true, -0.5, &m->x, &gram, 1.5, &next, DQ_MATH_F32));
    }
    m->spread = sqrt(squares);
    return DQ_OK;
}

static dq_status polish_one(matrix *m)
{
    bool last = false;
    for (int i = 0; i < MOST_STEPS; i++) {
        DQ_TRY(walk(m, !last));
        if (last) return DQ_OK;
        double error;
        if (!(m->spread < NEAR)) /* no rotation to fp32: the op knows a way from anywhere */
            DQ_TRY(dq_op_polar(1, DQ_MATH_F32, &m->x, &m->next, &error));
        last = m->spread < LAST;
        DQ_TRY(dq_op_convert(&m->next, &m->x));
    }
    return DQ_OK;
}

/* X = the fp32 matrix at `start`. */
static dq_status widen(matrix *m, const float *start)
{
    dq_tensor narrow = {0};
    dq_status status = dq_tensor_alloc(m->dev, DQ_F32, m->width, m->n, &narrow);
    for (int64_t r = 0; r < m->n && status == DQ_OK; r += m->width) {
        int64_t rows = m->n - r < m->width ? m->n - r : m->width;
        dq_tensor from = dq_tensor_rows(&narrow, 0, rows), to = dq_tensor_rows(&m->x, r, rows);
        status = dq_tensor_upload(&from, start + r * m->n);
        if (status == DQ_OK) status = dq_op_convert(&from, &to);
    }
    dq_tensor_free(&narrow);
    return status;
}

dq_status dq_polish(dq_device *dev, int32_t groups, int64_t n, const float *start, dq_tensor *out, double *error)
{
    matrix m = {.dev = dev, .n = n, .width = n < STRIPE ? n : STRIPE};
    dq_tensor all = {0};
    double worst = 0;
    dq_status status = DQ_E_NOMEM;
    m.host = dq_alloc(dq_device_env(dev), (size_t)(m.width * n) * sizeof *m.host);
    if (!m.host) goto done;
    DQ_GO(dq_tensor_alloc(dev, DQ_F64, groups * n, n, &all));
    DQ_GO(dq_tensor_alloc(dev, DQ_F64, n, n, &m.next));
    DQ_GO(dq_tensor_alloc(dev, DQ_F64, m.width, n, &m.gram));
    for (int32_t g = 0; g < groups; g++) {
        m.x = dq_tensor_rows(&all, g * n, n);
        DQ_GO(widen(&m, start + g * n * n));
        DQ_GO(polish_one(&m));
        if (!(m.largest <= worst)) worst = m.largest;
    }
    *error = worst;
    *out = all;
    all = (dq_tensor){0};
done:
    dq_tensor_free(&all);
    dq_tensor_free(&m.next);
    dq_tensor_free(&m.gram);
    dq_free(m.host);
    return status;
}
