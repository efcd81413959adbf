/* Loss of rotated rows and its gradient in the rotation: rows pass in tiles, product, loss, product, so that the rotated
 * batch is never stored whole. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "backend/cuda/kernel.h"
#include "backend/cuda/quant_core.h"

/* Rotated values that exist at a time. */
enum { TILE_BYTES = 256 << 20 };

/* |x|^-2 of each row, 0 for empty ones. One warp a row. */
template <class T> __global__ void relative_kernel(cu_mat<const T> x, double *per)
{
    int64_t r = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / CU_WARP, lane = threadIdx.x % CU_WARP;
    if (r >= x.rows) return;
    double sum = 0;
    for (int64_t c = lane; c < x.cols; c += CU_WARP) {
        double value = cu_load(x.row(r) + c);
        sum += value * value;
    }
    sum = cu_warp_sum(sum);
    if (lane == 0) per[r] = sum == 0 ? 0.0 : 1.0 / sum;
}

/* Sums of powers of o - mean over one piece. */
typedef struct moments {
    double mean, s2, s3, s4;
} moments;

__device__ static moments moments_of(const float *o, int64_t n, int64_t lane)
{
    moments m = {0, 0, 0, 0};
    for (int64_t i = lane; i < n; i += CU_WARP) m.mean += o[i];
    m.mean = cu_warp_sum(m.mean) / (double)n;
    for (int64_t i = lane; i < n; i += CU_WARP) {
        double d = o[i] - m.mean, d2 = d * d;
        m.s2 += d2;
        m.s3 += d2 * d;
        m.s4 += d2 * d2;
    }
    m.s2 = cu_warp_sum(m.s2);
    m.s3 = cu_warp_sum(m.s3);
    m.s4 = cu_warp_sum(m.s4);
    return m;
}

typedef struct loss_args {
    dq_rotation_loss_desc d;
    int64_t piece; /* columns that share statistics */
    cu_mat<float> o;
    const float *weight; /* of the tile's rows, or NULL */
    const double *per;   /* or NULL */
    double *pieces;      /* [rows, pieces]: loss of each, without weight */
    bool gradient;
} loss_args;

__device__ static float whip_slope(float o)
{
    float e = expf(-fabsf(o));
    return o > 0 ? -e : o < 0 ? e : 0 * o;
}

/* Where the range comes from: the first of the largest and of the smallest values. Symmetric: of the largest magnitude,
 * twice. */
typedef struct range_ends {
    double high, low;
    int64_t high_at, low_at;
} range_ends;

__device__ static range_ends find_ends(const float *o, int64_t n, int64_t lane, int symmetric)
{
    range_ends e = {-INFINITY, INFINITY, n, n};
    for (int64_t i = lane; i < n; i += CU_WARP) {
        if (o[i] > e.high) {
            e.high = o[i];
            e.high_at = i;
        }
        if (o[i] < e.low) {
            e.low = o[i];
            e.low_at = i;
        }
    }
    for (int step = CU_WARP / 2; step > 0; step /= 2) {
        double high = __shfl_xor_sync(CU_ALL, e.high, step), low = __shfl_xor_sync(CU_ALL, e.low, step);
        int64_t high_at = __shfl_xor_sync(CU_ALL, e.high_at, step), low_at = __shfl_xor_sync(CU_ALL, e.low_at, step);
        if (high > e.high || (high == e.high && high_at < e.high_at)) {
            e.high = high;
            e.high_at = high_at;
        }
        if (low < e.low || (low == e.low && low_at < e.low_at)) {
            e.low = low;
            e.low_at = low_at;
        }
    }
    if (e.high_at >= n || e.low_at >= n) { /* nothing but NaN */
        e.high_at = e.low_at = 0;
        e.high = e.low = o[0];
    }
    if (symmetric && fabs(e.low) > fabs(e.high)) {
        e.high = e.low;
        e.high_at = e.low_at;
    } else if (symmetric) {
        e.low = e.high;
        e.low_at = e.high_at;
    }
    return e;
}

/* DQ_LOSS_RANGE: the grid of a range, and what its ends' slopes get on top. */
typedef struct range_grid {
    double top, bottom, fixed, high_slope, low_slope;
} range_grid;

__device__ static range_grid grid_of_range(const dq_rotation_loss_desc &d, const float *o, int64_t n, int64_t lane,
                                           const range_ends &e)
{
    double levels = d.symmetric ? (1 << (d.bits - 1)) - 1 : (1 << d.bits) - 1, clip = d.clip, above = 0, below = 0;
    double width = d.symmetric ? fabs(e.high) : e.high - e.low, step = clip * width / levels;
    range_grid g;
    g.top = clip * (d.symmetric ? width : e.high);
    g.bottom = d.symmetric ? -(levels + 1) * step : clip * e.low;
    g.fixed = (double)n * step * step / 12;
    for (int64_t i = lane; i < n; i += CU_WARP) {
        above += fmax(0.0, (double)o[i] - g.top);
        below += fmin(0.0, (double)o[i] - g.bottom);
    }
    above = cu_warp_sum(above);
    below = cu_warp_sum(below);
    double wider = (double)n * step * clip / (6 * levels);
    if (d.symmetric) {
        double s = wider - 2 * clip * above + 2 * clip * (levels + 1) / levels * below;
        g.high_slope = e.high < 0 ? -s : s;
        g.low_slope = 0;
    } else {
        g.high_slope = wider - 2 * clip * above;
        g.low_slope = -wider - 2 * clip * below;
    }
    return g;
}

/* One warp a piece of a row: its loss, and the slope in place of the values. */
__global__ void loss_kernel(loss_args a)
{
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / CU_WARP, lane = threadIdx.x % CU_WARP;
    int64_t pieces = a.o.cols / a.piece, n = a.piece, r = at / pieces;
    if (r >= a.o.rows) return;
    float *o = a.o.row(r) + at % pieces * n;
    double sum = 0, w = (a.weight ? (double)a.weight[r] : 1.0) * (a.per ? a.per[r] : 1.0);
    moments m = {0, 0, 0, 0};
    cu_fake_grid grid = {1, 0, 0, 0, true};
    int kind = a.d.kind;
    if (kind == DQ_LOSS_KURTOSIS || kind == DQ_LOSS_VARIANCE) m = moments_of(o, n, lane);
    range_ends ends = {0, 0, -1, -1};
    range_grid range = {0, 0, 0, 0, 0};
    if (kind == DQ_LOSS_RANGE || kind == DQ_LOSS_SNAP) ends = find_ends(o, n, lane, a.d.symmetric);
    if (kind == DQ_LOSS_RANGE) range = grid_of_range(a.d, o, n, lane, ends);
    if (kind == DQ_LOSS_QUANT || kind == DQ_LOSS_SNAP) {
        dq_fake_quant_desc f = {a.d.bits, a.d.symmetric, n, a.d.clip, 0};
        float lo = o[0], hi = o[0];
        for (int64_t i = lane; i < n; i += CU_WARP) {
            lo = fminf(lo, o[i]);
            hi = fmaxf(hi, o[i]);
        }
        __syncwarp(); /* all have read o[0] before its lane writes the slope there */
        grid = cu_make_fake_grid(f, cu_warp_min(lo), cu_warp_max(hi));
    }
    for (int64_t i = lane; i < n; i += CU_WARP) {
        double value = o[i], slope, d = value - m.mean;
        if (kind == DQ_LOSS_WHIP) {
            sum += (double)expf(-fabsf(o[i]));
            slope = whip_slope(o[i]);
        } else if (kind == DQ_LOSS_KURTOSIS) {
            slope =
                m.s2 == 0 ? 0.0 : 4.0 * (double)n / (m.s2 * m.s2) * (d * d * d - m.s3 / (double)n - m.s4 / m.s2 * d);
        } else if (kind == DQ_LOSS_VARIANCE) {
            slope = 2.0 * d / (double)n;
        } else if (kind == DQ_LOSS_RANGE) {
            double high = value - range.top, low = value - range.bottom;
            high = high <= 0 ? 0 : high; /* NaN stays */
            low = low >= 0 ? 0 : low;
            sum += high * high + low * low;
            slope = 2.0 * (high + low);
            if (i == ends.high_at) slope += range.high_slope;
            if (i == ends.low_at) slope += range.low_slope;
        } else {
            bool kept = kind == DQ_LOSS_SNAP && (i == ends.high_at || i == ends.low_at);
            double error = kept ? 0.0 : value - (double)cu_fake_value(grid, o[i]);
            sum += error * error;
            slope = 2.0 * error;
        }
        if (a.gradient) o[i] = (float)(a.d.scale * w * (slope + a.d.shift * value)); /* what bf16 products round */
    }
    sum = cu_warp_sum(sum);
    if (kind == DQ_LOSS_RANGE) sum += range.fixed;
    if (kind == DQ_LOSS_KURTOSIS) sum = m.s2 == 0 ? 0.0 : (double)n * m.s4 / (m.s2 * m.s2);
    if (kind == DQ_LOSS_VARIANCE) sum = m.s2 / (double)n;
    if (lane == 0) a.pieces[at] = sum;
}

/* total += sum of the tile's weighted row losses; one block, so the order is fixed. */
__global__ void total_kernel(const double *pieces, int64_t rows, int64_t count, const float *weight, const double *per,
                             float *row_loss, double *total)
{
    __shared__ double slots[CU_THREADS / CU_WARP];
    double sum = 0;
    for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) {
        double loss = 0;
        for (int64_t i = 0; i < count; i++) loss += pieces[r * count + i];
        if (per) loss *= per[r];
        if (row_loss) row_loss[r] = (float)loss;
        sum += weight ? (double)weight[r] * loss : loss;
    }
    sum = cu_block_sum(sum, slots);
    if (threadIdx.x == 0) *total += sum;
}

typedef struct loss_pass {
    const dq_rotation_loss_desc *d;
    const dq_view *x, *weight, *r, *grad, *row_loss;
    int64_t piece, tile;
    dq_cuda_block rotated, pieces, per;
} loss_pass;

static dq_status measure_rows(dq_cuda_device *dev, const loss_pass *p, const dq_view *x)
{
    if (!p->d->relative) return DQ_OK;
    unsigned grid = (unsigned)cu_div_up(x->rows * CU_WARP, CU_THREADS);
    double *per = (double *)p->per.address;
    if (x->dtype == DQ_F32)
        CU_LAUNCH(dev, relative_kernel<float>, grid, CU_THREADS, 0, cu_view<const float>(x), per);
    else if (x->dtype == DQ_BF16)
        CU_LAUNCH(dev, relative_kernel<cu_bf16>, grid, CU_THREADS, 0, cu_view<const cu_bf16>(x), per);
    else
        CU_LAUNCH(dev, relative_kernel<cu_f16>, grid, CU_THREADS, 0, cu_view<const cu_f16>(x), per);
    return dq_cuda_launched(dev, "rotation_loss");
}

static dq_status pass_tile(dq_cuda_device *dev, loss_pass *p, int64_t first, int64_t rows)
{
    const dq_rotation_loss_desc *d = p->d;
    int64_t n = d->n, width = p->x->cols, share = d->heads / d->groups, pieces = width / p->piece;
    dq_view x = cu_part(p->x, first, rows, 0, width), o = {&p->rotated, 0, rows, width, width, DQ_F32, 0};
    const float *weight = p->weight ? (const float *)cu_at(p->weight) + first : NULL;
    const double *per = d->relative ? (const double *)p->per.address : NULL;
    for (int64_t h = 0; h < d->heads; h++) {
        dq_view xh = cu_part(&x, 0, rows, h * n, n), oh = cu_part(&o, 0, rows, h * n, n),
                rg = cu_part(p->r, h / share * n, n, 0, n);
        CU_TRY(dq_cuda_gemm(dev, 0, 0, 1.0, &xh, &rg, 0.0, &oh, d->math));
    }
    CU_TRY(measure_rows(dev, p, &x));
    loss_args a = {*d, p->piece, cu_view<float>(&o), weight, per, (double *)p->pieces.address, p->grad != NULL};
    CU_LAUNCH(dev, loss_kernel, (unsigned)cu_div_up(rows * pieces * CU_WARP, CU_THREADS), CU_THREADS, 0, a);
    CU_LAUNCH(dev, total_kernel, 1, CU_THREADS, 0, (const double *)p->pieces.address, rows, pieces, weight, per,
              p->row_loss ? (float *)cu_at(p->row_loss) + first : NULL, (double *)dev->result);
    CU_TRY(dq_cuda_launched(dev, "rotation_loss"));
    for (int64_t h = 0; p->grad && h < d->heads; h++) {
        dq_view xh = cu_part(&x, 0, rows, h * n, n), sh = cu_part(&o, 0, rows, h * n, n),
                gg = cu_part(p->grad, h / share * n, n, 0, n);
        double beta = first == 0 && h % share == 0 ? d->beta : 1.0;
        CU_TRY(dq_cuda_gemm(dev, 1, 0, 1.0, &xh, &sh, beta, &gg, d->math));
    }
    return DQ_OK;
}

static dq_status run_pass(dq_cuda_device *dev, loss_pass *p, double *loss)
{
    int64_t width = p->x->cols, rows = p->x->rows;
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)(p->tile * width) * 4, "rotated rows", &p->rotated));
    CU_TRY(dq_cuda_scratch(dev, (uint64_t)(p->tile * (width / p->piece)) * 8, "row losses", &p->pieces));
    if (p->d->relative) CU_TRY(dq_cuda_scratch(dev, (uint64_t)p->tile * 8, "row norms", &p->per));
    CU_TRY(dq_cuda_check(dev, cudaMemsetAsync(dev->result, 0, sizeof *loss, dev->stream), "rotation_loss"));
    for (int64_t first = 0; first < rows; first += p->tile)
        CU_TRY(pass_tile(dev, p, first, rows - first < p->tile ? rows - first : p->tile));
    CU_TRY(dq_cuda_fetch(dev, dev->result, loss, sizeof *loss));
    *loss *= p->d->scale;
    return DQ_OK;
}

DQ_CUDA_SLOT dq_cuda_rotation_loss(void *device, const dq_rotation_loss_desc *d, const dq_view *x,
                                   const dq_view *weight, const dq_view *r, const dq_view *grad,
                                   const dq_view *row_loss, double *loss)
{
    CU_ENTER(device);
    loss_pass p = {};
    p.d = d;
    p.x = x;
    p.weight = weight;
    p.r = r;
    p.grad = grad;
    p.row_loss = row_loss;
    p.piece = d->kind == DQ_LOSS_WHIP ? d->n : d->group;
    p.tile = TILE_BYTES / 4 / x->cols < 1 ? 1 : TILE_BYTES / 4 / x->cols;
    if (p.tile > x->rows) p.tile = x->rows;
    if (x->rows == 0) { /* an empty sum */
        *loss = 0;
        dq_view none = *x;
        none.cols = d->n;
        for (int64_t g = 0; grad && g < d->groups; g++) {
            dq_view gg = cu_part(grad, g * d->n, d->n, 0, d->n);
            CU_TRY(dq_cuda_gemm(dev, 1, 0, 1.0, &none, &none, d->beta, &gg, d->math));
        }
        return DQ_OK;
    }
    dq_status status = run_pass(dev, &p, loss);
    dq_cuda_release(dev, &p.rotated);
    dq_cuda_release(dev, &p.pieces);
    dq_cuda_release(dev, &p.per);
    return status;
}
