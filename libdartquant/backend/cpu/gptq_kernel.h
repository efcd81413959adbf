/* One column block of GPTQ (arXiv 2210.17323) for a few rows: rows lie in vector lanes, columns are visited in order.
 * fp64 inside, every operation and its order as in the reference, so codes and errors are the same bits. Part of
 * quant_kernels.h. SPDX-License-Identifier: Apache-2.0 */

/* Lanes of rows worked on together, and columns whose accumulators fit in registers beside them. */
enum { GPTQ_ROWS = 2 * VD, GPTQ_COLS = V_REGISTERS >= 32 ? 8 : 4 };
_Static_assert((int)GPTQ_ROWS <= (int)DQ_GPTQ_ROWS_MAX, "scratch of gptq_rows");

typedef struct gptq_lanes {
    vd scale[2], zero[2];
} gptq_lanes;

static void load_group(const dq_gptq_job *job, int64_t r0, int64_t rows, int32_t group, gptq_lanes *lanes)
{
    double s[GPTQ_ROWS], z[GPTQ_ROWS];
    for (int64_t r = 0; r < GPTQ_ROWS; r++) {
        bool real = r < rows; /* lanes without a row compute on a harmless grid */
        s[r] = real ? dq_view_f32(job->scale, r0 + r)[group] : 1.0;
        z[r] = real ? dq_view_f32(job->zero, r0 + r)[group] : 0.0;
    }
    for (int i = 0; i < 2; i++) {
        lanes->scale[i] = vd_load(s + i * VD);
        lanes->zero[i] = vd_load(z + i * VD);
    }
}

/* Columns [j0, j0 + count) of the block: what earlier columns owe them, then one column after the other. count is a
 * constant after inlining. w, e: [columns][GPTQ_ROWS]; codes alike. */
VEC_INLINE void gptq_columns(const dq_gptq_job *job, int64_t r0, int64_t rows, int64_t j0, const int count, double *w,
                             double *e, uint8_t *codes, gptq_lanes *lanes, int32_t *group)
{
    int64_t cols = job->cols;
    vd acc[GPTQ_COLS][2], top = vd_set1(job->top);
    _Pragma("GCC unroll 8") for (int c = 0; c < count; c++)
    {
        acc[c][0] = vd_load(w + (j0 + c) * GPTQ_ROWS);
        acc[c][1] = vd_load(w + (j0 + c) * GPTQ_ROWS + VD);
    }
    const double *u = job->u + j0;
    for (int64_t i = 0; i < j0; i++, u += cols) {
        vd e0 = vd_load(e + i * GPTQ_ROWS), e1 = vd_load(e + i * GPTQ_ROWS + VD);
        _Pragma("GCC unroll 8") for (int c = 0; c < count; c++)
        {
            vd f = vd_set1(u[c]);
            acc[c][0] = acc[c][0] - e0 * f;
            acc[c][1] = acc[c][1] - e1 * f;
        }
    }
    _Pragma("GCC unroll 8") for (int c = 0; c < count; c++, u += cols)
    {
        int64_t j = j0 + c;
        if (job->index[j] != *group) load_group(job, r0, rows, *group = job->index[j], lanes);
        _Pragma("GCC unroll 2") for (int k = 0; k < 2; k++)
        {
            vd code = vd_rint(acc[c][k] / lanes->scale[k]) + lanes->zero[k];
            code = vd_min(vd_max(code, vd_zero()), top);
            vd q = lanes->scale[k] * (code - lanes->zero[k]);
            vd error = (acc[c][k] - q) / vd_set1(u[c]);
            vd_store_u8(codes + j * GPTQ_ROWS + k * VD, code);
            vd_store(w + j * GPTQ_ROWS + k * VD, q);
            vd_store(e + j * GPTQ_ROWS + k * VD, error);
            _Pragma("GCC unroll 8") for (int d = c + 1; d < count; d++) acc[d][k] = acc[d][k] - error * vd_set1(u[d]);
        }
    }
}

/* Rows [r0, r0 + rows), any number. scratch: DQ_GPTQ_SCRATCH(cols) bytes. */
static void gptq_rows(const dq_gptq_job *job, int64_t r0, int64_t rows, void *scratch)
{
    int64_t cols = job->cols;
    double *w = scratch, *e = w + cols * GPTQ_ROWS;
    uint8_t *codes = (uint8_t *)(void *)(e + cols * GPTQ_ROWS);
    for (int64_t end = r0 + rows; r0 < end; r0 += GPTQ_ROWS) {
        int64_t n = end - r0 < GPTQ_ROWS ? end - r0 : GPTQ_ROWS;
        if (n < GPTQ_ROWS) memset(w, 0, (size_t)(cols * GPTQ_ROWS) * sizeof *w);
        for (int64_t r = 0; r < n; r++) {
            const float *row = dq_view_f32(job->w, r0 + r);
            for (int64_t c = 0; c < cols; c++) w[c * GPTQ_ROWS + r] = row[c];
        }
        gptq_lanes lanes = {{vd_zero(), vd_zero()}, {vd_zero(), vd_zero()}};
        int32_t group = -1;
        int64_t j = 0;
        for (; j + GPTQ_COLS <= cols; j += GPTQ_COLS)
            gptq_columns(job, r0, n, j, GPTQ_COLS, w, e, codes, &lanes, &group);
        for (; j < cols; j++) gptq_columns(job, r0, n, j, 1, w, e, codes, &lanes, &group);
        for (int64_t r = 0; r < n; r++) {
            float *row = dq_view_f32(job->w, r0 + r), *err = dq_view_f32(job->err, r0 + r);
            uint8_t *out = dq_view_u8(job->codes, r0 + r);
            for (int64_t c = 0; c < cols; c++) {
                row[c] = (float)w[c * GPTQ_ROWS + r];
                err[c] = (float)e[c * GPTQ_ROWS + r];
                out[c] = codes[c * GPTQ_ROWS + r];
            }
        }
    }
}
