/* Lower triangles of x^T x through cuBLAS, which has no such product for 16 bits. The triangle is cut into squares: one of
 * half its order, two of a quarter ... and those on the diagonal, of which half is for nothing. Squares of one size are one
 * call, and where they are too few to fill a card, the rows are cut in parts, which are summed in a fixed order: how, depends on
 * the shape alone. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/gemm.h"

/* Fewer rows are not worth splitting. */
enum { SPLIT_ROWS = 16 };

/* ---- which squares, which parts: microseconds on an H100 or H200, whose cuBLAS gives a multiprocessor 128 x 256 elements ---- */

enum {
    TILE_ROWS = 128,
    TILE_COLS = 256,
    SMS = 132,
    LEAST_EDGE = 128,
    GRAIN = 64,
    LEAST_DEPTH = 1024,
    MOST_PARTS = 256
};

static const double per_row = 0.0117;   /* of a tile */
static const double per_launch = 3;     /* and the first and last moments of a tile */
static const double per_element = 1e-6; /* four bytes */

static double time_of(int64_t edge, int64_t count, int64_t depth)
{
    int64_t tiles = cu_div_up(edge, TILE_ROWS) * cu_div_up(edge, TILE_COLS) * count;
    return (double)cu_div_up(tiles, SMS) * (per_row * (double)depth + per_launch) + per_launch;
}

/* Squares of one size: all in a call, or one after the other and each in parts. */
typedef struct way {
    int64_t parts; /* 1: all at once */
    double time;
} way;

static way best_way(const dq_cuda_device *dev, int64_t edge, int64_t count, int64_t depth, bool diagonal)
{
    double area = (double)edge * (double)edge;
    way best = {1, time_of(edge, count, depth) + (diagonal ? per_launch + 3 * per_element * area * (double)count : 0)};
    if (dev->syrk_parts > 0) best.parts = dev->syrk_parts < depth ? dev->syrk_parts : depth;
    for (int64_t parts = 2; parts <= MOST_PARTS && dev->syrk_parts == 0; parts *= 2) {
        if (depth / parts < LEAST_DEPTH) break;
        double one = time_of(edge, parts, depth / parts) + per_launch + (2 * (double)parts + 2) * per_element * area;
        if ((double)count * one < best.time) best = {parts, (double)count * one};
    }
    return best;
}

/* Edge of the squares on the diagonal. */
static int64_t best_edge(const dq_cuda_device *dev, int64_t n, int64_t depth)
{
    int64_t best = n;
    double least = INFINITY;
    if (dev->syrk_block > 0) return n < dev->syrk_block ? n : dev->syrk_block;
    for (int level = 0; level < 16; level++) {
        int64_t edge = level == 0 ? n : cu_div_up(cu_div_up(n, (int64_t)1 << level), GRAIN) * GRAIN;
        if (level > 0 && (edge < LEAST_EDGE || edge >= n)) break;
        double time = best_way(dev, edge, cu_div_up(n, edge), depth, true).time;
        for (int64_t side = edge; side < n; side *= 2)
            time += best_way(dev, side, (n + side) / (2 * side), depth, false).time;
        if (time < least) {
            least = time;
            best = edge;
        }
    }
    return best;
}

/* ---- sums of parts ---- */

typedef struct sum_args {
    const float *part; /* [parts][squares][rows][cols] */
    int64_t parts, squares, rows, cols;
    float *h; /* the first square; each next one lies `step` rows and columns further on */
    int64_t stride, step;
    double beta;
    bool lower;
} sum_args;

__global__ void sum_kernel(sum_args a)
{
    int64_t whole = a.squares * a.rows * a.cols;
    CU_EACH(at, c, a.squares * a.rows, a.cols)
    {
        int64_t square = at / a.rows, r = at % a.rows;
        if (a.lower && c > r) continue;
        float *to = a.h + (r + square * a.step) * a.stride + c + square * a.step;
        double sum = 0;
        for (int64_t p = 0; p < a.parts; p++) sum += (double)a.part[p * whole + at * a.cols + c];
        *to = (float)(a.beta == 0 ? sum : a.beta * (double)*to + sum);
    }
}

/* ---- products ---- */

/* The operands of a lower triangle: h = beta h + alpha left^T right. */
typedef struct lower {
    const char *left, *right;
    dq_dtype dtype;
    int64_t rows, stride;
    const float *numbers; /* alpha, beta, 1, 0 */
    double beta;
    float *h;
    int64_t h_stride;
} lower;

/* `count` rectangles whose corners lie `step` apart along the diagonal. */
typedef struct squares {
    int64_t row, col, rows, cols, step, count;
    bool diagonal;
} squares;

/* `count` products of `depth` rows; `move`: how far the operands of the next one are, `next`: its result. */
static dq_status product(dq_cuda_device *dev, const lower *l, const squares *s, int64_t first, int64_t depth,
                         const float *beta, float *c, int64_t c_stride, int64_t count, int64_t move, int64_t next)
{
    int64_t size = cu_element_size(l->dtype);
    const char *left = l->left + (first * l->stride + s->row) * size;
    const char *right = l->right + (first * l->stride + s->col) * size;
    cudaDataType_t type = dq_cuda_blas_type(l->dtype);
    cublasStatus_t status =
        cublasGemmStridedBatchedEx_64(dev->blas, CUBLAS_OP_N, CUBLAS_OP_T, s->cols, s->rows, depth, l->numbers, right,
                                      type, l->stride, move, left, type, l->stride, move, beta, c, CUDA_R_32F, c_stride,
                                      next, count, dq_cuda_compute_type(dev, l->dtype), CUBLAS_GEMM_DEFAULT);
    return dq_cuda_check_blas(dev, status, "syrk");
}

static dq_status add_up(dq_cuda_device *dev, const lower *l, const squares *s, const float *part, int64_t parts,
                        int64_t count)
{
    sum_args a = {part,        parts,   count,   s->rows,    s->cols, l->h + s->row * l->h_stride + s->col,
                  l->h_stride, s->step, l->beta, s->diagonal};
    dq_view shape = {NULL, 0, count * s->rows, s->cols, s->cols, DQ_F32, 0};
    CU_LAUNCH(dev, sum_kernel, cu_grid_rows(&shape), CU_THREADS, 0, a);
    return dq_cuda_launched(dev, "syrk");
}

/* All in one call: straight to their places, or, on the diagonal, through scratch, so that nothing above it is touched. */
static dq_status together(dq_cuda_device *dev, const lower *l, const squares *s)
{
    int64_t area = s->rows * s->cols;
    float *h = l->h + s->row * l->h_stride + s->col;
    if (!s->diagonal)
        return product(dev, l, s, 0, l->rows, l->numbers + 1, h, l->h_stride, s->count, s->step,
                       s->step * (l->h_stride + 1));
    dq_cuda_block scratch = {};
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)(s->count * area) * 4, "syrk", &scratch));
    float *part = (float *)scratch.address;
    dq_status status = product(dev, l, s, 0, l->rows, l->numbers + 3, part, s->cols, s->count, s->step, area);
    if (status == DQ_OK) status = add_up(dev, l, s, part, 1, s->count);
    dq_cuda_release(dev, &scratch);
    return status;
}

/* One after the other, each in parts; rows that are left over are one more. */
static dq_status in_parts(dq_cuda_device *dev, const lower *l, const squares *s, int64_t parts)
{
    int64_t area = s->rows * s->cols, depth = l->rows / parts, left = l->rows - depth * parts;
    dq_cuda_block scratch = {};
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)((parts + (left > 0)) * area) * 4, "syrk", &scratch));
    float *part = (float *)scratch.address;
    dq_status status = DQ_OK;
    for (int64_t i = 0; i < s->count && status == DQ_OK; i++) {
        squares one = *s;
        one.row += i * s->step;
        one.col += i * s->step;
        status = product(dev, l, &one, 0, depth, l->numbers + 3, part, s->cols, parts, depth * l->stride, area);
        if (status == DQ_OK && left > 0)
            status = product(dev, l, &one, depth * parts, left, l->numbers + 3, part + parts * area, s->cols, 1, 0, 0);
        if (status == DQ_OK) status = add_up(dev, l, &one, part, parts + (left > 0), 1);
    }
    dq_cuda_release(dev, &scratch);
    return status;
}

static dq_status all_squares(dq_cuda_device *dev, const lower *l, const squares *s)
{
    if (s->count == 0 || s->rows == 0) return DQ_OK;
    int64_t parts = best_way(dev, s->cols, s->count, l->rows, s->diagonal).parts;
    return parts > 1 ? in_parts(dev, l, s, parts) : together(dev, l, s);
}

static dq_status numbers_on_card(dq_cuda_device *dev, bool on)
{
    return dq_cuda_check_blas(
        dev, cublasSetPointerMode(dev->blas, on ? CUBLAS_POINTER_MODE_DEVICE : CUBLAS_POINTER_MODE_HOST), "syrk");
}

/* Of each size the whole ones, then what is left at the end. */
static dq_status cut_triangle(dq_cuda_device *dev, const lower *l, int64_t n)
{
    int64_t edge = best_edge(dev, n, l->rows), done = n / edge * edge;
    squares whole = {0, 0, edge, edge, edge, n / edge, true}, rest = {done, done, n - done, n - done, 0, 1, true};
    CU_TRY(all_squares(dev, l, &whole));
    CU_TRY(all_squares(dev, l, &rest));
    for (int64_t side = edge; side < n; side *= 2) {
        int64_t pairs = n / (2 * side), col = pairs * 2 * side, row = col + side;
        squares below = {side, 0, side, side, 2 * side, pairs, false};
        squares last = {row, col, n > row ? n - row : 0, side, 0, 1, false};
        CU_TRY(all_squares(dev, l, &below));
        CU_TRY(all_squares(dev, l, &last));
    }
    return DQ_OK;
}

dq_status dq_cuda_lower_product(dq_cuda_device *dev, const void *left, const void *right, dq_dtype dtype, int64_t rows,
                                int64_t n, int64_t stride, const float *numbers, bool on_card, double beta,
                                const dq_view *h)
{
    lower l = {(const char *)left, (const char *)right, dtype, rows, stride, numbers, beta, (float *)cu_at(h),
               h->stride};
    dq_status status = numbers_on_card(dev, on_card);
    if (status == DQ_OK) status = cut_triangle(dev, &l, n);
    dq_status back = on_card ? numbers_on_card(dev, false) : DQ_OK;
    return status != DQ_OK ? status : back;
}

/* ---- the slot ---- */

__global__ void scale_lower_kernel(double beta, cu_mat<float> h)
{
    CU_EACH(r, c, h.rows, h.cols)
    {
        if (c <= r) h.row(r)[c] = beta == 0 ? 0.0f : (float)(beta * (double)h.row(r)[c]);
    }
}

DQ_CUDA_SLOT dq_cuda_syrk(void *device, double alpha, const dq_view *x, double beta, const dq_view *h)
{
    CU_ENTER(device);
    if (x->rows == 0) {
        CU_LAUNCH(dev, scale_lower_kernel, cu_grid_rows(h), CU_THREADS, 0, beta, cu_view<float>(h));
        return dq_cuda_launched(dev, "syrk");
    }
    if (x->dtype == DQ_F32 && dev->syrk_split && x->rows >= SPLIT_ROWS)
        return dq_cuda_syrk_split(dev, alpha, x, beta, h);
    float numbers[4] = {(float)alpha, (float)beta, 1, 0};
    return dq_cuda_lower_product(dev, cu_at(x), cu_at(x), x->dtype, x->rows, x->cols, x->stride, numbers, false, beta,
                                 h);
}
