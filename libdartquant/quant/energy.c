/* The error GPTQ minimises: tr(D H D^T) = sum over calibration inputs of |D x|^2. Only the lower triangle of H is there; what
 * a device needs of the other one is made on it, so that the host waits for a single number.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "quant/parts.h"

enum { BLOCK = 256 };

/* [n, n]: `on` along the diagonal, `below` below it, 0 above. */
static dq_status triangle(dq_device *dev, int64_t n, float on, float below, dq_tensor *out)
{
    float *host = dq_calloc(dq_device_env(dev), (size_t)(n * n), sizeof *host);
    if (!host) return DQ_E_NOMEM;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < i; j++) host[i * n + j] = below;
        host[i * n + i] = on;
    }
    dq_status status = dq_tensor_from_host(dev, DQ_F32, n, n, host, out);
    dq_free(host);
    return status;
}

/* out = mask * x element by element, cut to the size of x; the mask has no negative numbers. */
static dq_status masked(const dq_tensor *mask, const dq_tensor *x, dq_tensor *out)
{
    dq_tensor cut = dq_tensor_slice(mask, 0, x->view.rows, 0, x->view.cols);
    return dq_op_activation(DQ_ACT_RELU, &cut, x, out);
}

typedef struct mirror {
    dq_tensor eye, lower, strict, part; /* [width, width] */
} mirror;

/* The transpose of a block is its product with the identity, which is exact in fp32. */
static dq_status mirror_block(mirror *m, dq_tensor *h, int64_t r0, int64_t rows, int64_t c0, int64_t cols)
{
    dq_tensor from = dq_tensor_slice(h, r0, rows, c0, cols), to = dq_tensor_slice(h, c0, cols, r0, rows);
    dq_tensor eye = dq_tensor_slice(&m->eye, 0, rows, 0, rows), part = dq_tensor_slice(&m->part, 0, rows, 0, rows);
    if (r0 != c0) return dq_op_gemm(true, false, 1.0, &from, &eye, 0.0, &to, DQ_MATH_F32);
    DQ_TRY(masked(&m->strict, &from, &part));
    DQ_TRY(masked(&m->lower, &from, &to));
    return dq_op_gemm(true, false, 1.0, &part, &eye, 1.0, &to, DQ_MATH_F32);
}

dq_status dq_hessian_mirror(dq_tensor *h)
{
    dq_status status;
    int64_t n = h->view.rows, width = n < BLOCK ? n : BLOCK;
    mirror m = {0};
    DQ_GO(triangle(h->dev, width, 1, 0, &m.eye));
    DQ_GO(triangle(h->dev, width, 1, 1, &m.lower));
    DQ_GO(triangle(h->dev, width, 0, 1, &m.strict));
    DQ_GO(dq_tensor_alloc(h->dev, DQ_F32, width, width, &m.part));
    for (int64_t r0 = 0; r0 < n; r0 += width)
        for (int64_t c0 = 0; c0 <= r0; c0 += width)
            DQ_GO(mirror_block(&m, h, r0, n - r0 < width ? n - r0 : width, c0, n - c0 < width ? n - c0 : width));
done:
    dq_tensor_free(&m.eye);
    dq_tensor_free(&m.lower);
    dq_tensor_free(&m.strict);
    dq_tensor_free(&m.part);
    return status;
}

typedef struct energy {
    const dq_tensor *d, *h;
    dq_tensor doubled, block; /* the lower triangle counts twice; a block of h times that */
    int math;
} energy;

/* p = columns [c0, c0 + cols) of D times the lower triangle, what is off the diagonal counted for its mirror image too. */
static dq_status columns_of(energy *e, int64_t c0, int64_t cols, dq_tensor *p)
{
    int64_t rows = e->d->view.rows, below = c0 + cols, left = e->d->view.cols - below;
    dq_tensor here = dq_tensor_slice(e->d, 0, rows, c0, cols), diagonal = dq_tensor_slice(e->h, c0, cols, c0, cols);
    dq_tensor block = dq_tensor_slice(&e->block, 0, cols, 0, cols);
    DQ_TRY(masked(&e->doubled, &diagonal, &block));
    DQ_TRY(dq_op_gemm(false, false, 1.0, &here, &block, 0.0, p, e->math));
    if (left == 0) return DQ_OK;
    dq_tensor rest = dq_tensor_slice(e->d, 0, rows, below, left);
    dq_tensor lower = dq_tensor_slice(e->h, below, left, c0, cols);
    return dq_op_gemm(false, false, 2.0, &rest, &lower, 1.0, p, e->math);
}

dq_status dq_hessian_energy(const dq_tensor *d, const dq_tensor *h, int math, dq_tensor *product, double *out)
{
    dq_status status;
    int64_t rows = d->view.rows, n = d->view.cols, width = n < BLOCK ? n : BLOCK;
    energy e = {.d = d, .h = h, .math = math};
    DQ_GO(triangle(d->dev, width, 1, 2, &e.doubled));
    DQ_GO(dq_tensor_alloc(d->dev, DQ_F32, width, width, &e.block));
    for (int64_t c0 = 0; c0 < n; c0 += width) {
        int64_t cols = n - c0 < width ? n - c0 : width;
        dq_tensor p = dq_tensor_slice(product, 0, rows, c0, cols);
        DQ_GO(columns_of(&e, c0, cols, &p));
    }
    status = dq_op_dot(product, d, out);
done:
    dq_tensor_free(&e.doubled);
    dq_tensor_free(&e.block);
    return status;
}
