/* libdartquant: the border between the jobs and a compute device.
 * A backend fills one dq_backend table. Everything behind it (memory, threads, kernels) is its own; the library
 * only holds opaque handles and never dereferences device memory. This header stands alone: a backend
 * includes it and nothing else of the library, and links nothing of it. docs/backends.md is the guide. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_BACKEND_H
#define DARTQUANT_BACKEND_H

#include "dartquant/types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Number for the meaning of dq_backend and dq_host (their member `abi`). */
#define DQ_BACKEND_ABI 1u

/* Who may call what, and when. "The library" is one context; two contexts open a backend twice.
 *
 * Threads. All slots of one device are called by one thread at a time, not always the same one. A backend may have
 * threads of its own; they may call host->alloc, host->free and, while a slot is executing, host->fail. host->run may
 * be called only inside a slot, by the thread that called the slot.
 *
 * Lifetimes. A view, a descriptor, and what a descriptor points to (dq_hadamard_desc.hk) are valid until the slot
 * returns: a backend that queues copies them, tables included. The source of `upload` may be changed as soon as
 * `upload` returns, the target of `download` is complete when it returns, and numbers that a slot returns through a
 * pointer (find_nonfinite, dot, gptq_factor, gptq_root, rotation_loss, polar) are there when it returns. `free` may be
 * called while queued ops use the allocation: the backend keeps the memory until they are done. `close` may be called with
 * work queued (it is dropped or finished) and after all allocations were freed. The dq_host stays valid until `close`
 * returns.
 *
 * Order. Everything happens as if in the order of the calls. A slot may return before its work is done, unless it is
 * said to wait: upload, free and the ops may be queued; download, sync, find_nonfinite, dot, gptq_factor, gptq_root,
 * rotation_loss and polar wait.
 *
 * Errors. A slot returns DQ_OK or a status of types.h below 0, best after host->fail with a sentence and the vendor's
 * code; host->fail must be called inside the slot that returns the status. What goes wrong after a slot has returned is
 * kept by the backend and returned by a later call, at the latest by the next one that waits: no result of a failed op is
 * ever handed out. A job that gets an error gives up, frees its memory and may be started afresh on the same device,
 * so an error that was returned is forgotten. DQ_E_DEVICE_LOST is for good: the library then calls `free` and `close`
 * and nothing else. DQ_E_UNSUPPORTED is the answer to this call alone, given before anything is queued or written.
 * Memory that is short is DQ_E_DEVICE_MEMORY; `alloc` first waits for queued work when that may give memory back. */

/* A row-major matrix in device memory. Element (r, c) lies at
 * offset + (r * stride + c) * size_of(dtype) bytes inside the allocation `mem`. A vector has rows == 1. */
typedef struct dq_view {
    void *mem;       /* handle returned by the backend's alloc */
    uint64_t offset; /* bytes from the start of the allocation */
    int64_t rows;
    int64_t cols;
    int64_t stride; /* elements from one row to the next, >= cols */
    dq_dtype dtype;
    int32_t reserved;
} dq_view;

/* What the library lends to a backend for its lifetime. */
typedef struct dq_host {
    uint32_t struct_size;
    uint32_t abi;
    void *self; /* pass back as first argument */
    /* 64-byte aligned memory counted in the context; NULL when refused. */
    void *(*alloc)(void *self, size_t bytes);
    void (*free)(void *self, void *ptr);
    /* Calls task(arg, i, thread) once for every i in [0, count), thread in [0, threads()). Returns when all are
     * done. Order and placement are unspecified, so each task must produce the same bits wherever it runs. Only inside
     * a slot and on the thread of the slot. */
    void (*run)(void *self, int64_t count, void (*task)(void *arg, int64_t i, int thread), void *arg);
    int (*threads)(void *self);
    /* Records the message of a failure (copied) and returns `status`. `vendor_code` is the device library's own code,
     * or 0. Only inside the slot that returns the status; of several calls in one slot the first counts. */
    dq_status (*fail)(void *self, dq_status status, int64_t vendor_code, const char *message);
} dq_host;

/* Precision of the products inside gemm, head_nll, attention, packed_linear, rotation_loss and polar. Storage of inputs and
 * outputs is given by their views; accumulation is fp32 or better (fp64 when the operands are fp64). */
enum {
    DQ_MATH_F32 = 0,  /* products in fp32 or better */
    DQ_MATH_BF16 = 1, /* operands may be rounded to bf16 (half to even), accumulation stays fp32 */
    DQ_MATH_INT8 = 2  /* for packed_linear alone, added to one of the others: see dq_packed_desc */
};

/* What a table says of its slots beyond having them (dq_backend.features). */
enum {
    /* Where products round their operands (DQ_MATH_BF16), the op before them does it, once for all of them: y of rmsnorm,
     * layernorm, activation, fake_quant, rmsnorm_quant, layernorm_quant and hadamard_quant and o of attention may be BF16, with
     * the bits that `convert` makes of the F32 result, and x of head_nll may be. Such a y is never in place. For what a slot does
     * not serve (DQ_E_UNSUPPORTED) the library calls it with F32 and `convert`: that is no fallback. Without this feature
     * a device never sees such operands. */
    DQ_FEATURE_BF16 = 1
};

/* Gated or plain activation. */
enum { DQ_ACT_SILU = 0, DQ_ACT_GELU = 1 /* erf */, DQ_ACT_GELU_TANH = 2, DQ_ACT_RELU = 3 };

/* Causal attention over `rows / seqlen` independent sequences. q: [rows, heads*head_dim], k, v: [rows,
 * kv_heads*head_dim], o like q, all F32. Query head h reads key/value head h / (heads / kv_heads). */
typedef struct dq_attention_desc {
    int64_t seqlen;
    int32_t heads;
    int32_t kv_heads;
    int32_t head_dim;
    int32_t window; /* sliding window in tokens including the current one; 0 = unlimited */
    float scale;    /* multiplies q.k, usually 1/sqrt(head_dim) */
    int32_t math;   /* DQ_MATH_* */
} dq_attention_desc;

/* Dynamic fake quantization of rows (rotation.md section 3 of the design notes; QuaRot, arXiv 2404.00456).
 * Each row is cut in contiguous groups of `group` columns. xmin, xmax are multiplied by `clip` first.
 *   symmetric:  maxq = 2^(bits-1)-1, s = max(|xmin|,|xmax|)/maxq (1 when zero), y = s*clamp(rint(x/s), -maxq-1, maxq)
 *   asymmetric: maxq = 2^bits-1, s = (xmax-xmin)/maxq, z = rint(-xmin/s) not clamped,
 *               y = s*(clamp(rint(x/s)+z, 0, maxq)-z); xmin = xmax = 0 becomes -1, +1.
 * Rounding is half to even. With zero_in_range the range is first extended to contain 0. An asymmetric group whose
 * range is empty (s == 0: xmin == xmax, not zero, zero_in_range off) is reproduced exactly; a symmetric range is never
 * empty. Arithmetic is fp32, one rounding per operation, divisions as divisions: results are the same everywhere. */
typedef struct dq_fake_quant_desc {
    int32_t bits;          /* 2..15 */
    int32_t symmetric;     /* 0 or 1 */
    int64_t group;         /* columns in a group; divides cols */
    float clip;            /* (0, 1] */
    int32_t zero_in_range; /* 0 or 1 */
} dq_fake_quant_desc;

/* Quantization to given levels, for keys and values (KVQuant, arXiv 2401.18079; what its published code leaves open is settled
 * here). Every column, or every row, has a range lo, hi. With levels l_0 <= l_1 <= ..., finite, a number x becomes
 *   z = (hi + lo) * 0.5, r = (hi - lo) * 0.5, u = (x - z) / r
 *   i = how many m_j = (l_j + l_(j+1)) * 0.5 are below u: the nearest level, of two as near the lower
 *   y = (l_i * norm_scale + norm_offset) * r + z, but z where r == 0
 * in fp32, one rounding for each operation in the order written, divisions as divisions: the same bits everywhere, up to the
 * sign of zero. A NaN stays one.
 *   Columns (per_row 0): `range` says lo and hi. Outliers are the x < lo and the x > hi.
 *   Rows (per_row 1) without outliers: lo and hi are the smallest and the largest number of the row.
 *   Rows with outliers: let a_0 <= ... <= a_(n-1) be the row in order, p = outliers * 0.5 * (n - 1), i = floor(p), f = p - i, in
 *     fp64. Then low = a_i + f (a_(i+1) - a_i) and high = a_(n-1-i) - f (a_(n-1-i) - a_(n-2-i)) in fp64, rounded to fp32; the
 *     first number alone where f == 0, where it is infinite or both are equal. Outliers are the x <= low and the x >= high. lo and
 *     hi are the smallest and the largest of the row with the median a_((n-1)/2), halved downwards, in the outliers' place.
 *   A row with a NaN becomes NaN as a whole. An infinite range gives what the formulas give.
 * Outliers stay as they are with keep_outliers; without, they take the outermost level like any number beyond the range. */
typedef struct dq_levels_quant_desc {
    int32_t per_row;       /* 0: `range` gives lo and hi of every column (keys); 1: every row has its own (values) */
    int32_t keep_outliers; /* 0 or 1 */
    double outliers;       /* per_row: share of a row in both tails together, [0, 1); columns: no meaning */
    int64_t seqlen;        /* row r has position r % seqlen unless `position` says it; at least 1 where sink asks */
    int32_t sink;          /* rows at positions below it are copied (attention sinks); 0 = none */
    float norm_scale;      /* Q-Norm; 1 and 0 = off */
    float norm_offset;
} dq_levels_quant_desc;

/* Hadamard transform of order n = k * 2^m: H = HK (x) S, S = Sylvester of size n/k in natural order, HK a k x k
 * table of +-1 (row-major). A row of the input is read as [outer][n][inner] with outer = cols / (n * inner); every
 * vector along n is replaced by v H^T * scale (out[a] = sum_b H[a][b] v[b]), or by v H when `transpose` is set. */
typedef struct dq_hadamard_desc {
    int64_t n;
    int64_t k;
    const int8_t *hk; /* host memory, k*k entries of +-1, valid during the call; NULL when k == 1 */
    int64_t inner;
    float reserved0;
    int32_t transpose;
    double scale; /* usually 1/sqrt(n) */
} dq_hadamard_desc;

/* Integer weight grid: w = scale * (code - zero), code in 0..2^bits-1, zero integral (stored as float).
 *   symmetric: zero = 2^(bits-1), scale = max(absmax, 1e-5) / (2^(bits-1)-1)
 *   asymmetric: scale = max(xmax - xmin, 1e-5) / (2^bits-1), zero = rint(-xmin/scale), xmin <= 0 <= xmax
 * in fp32, one rounding per operation. Group parameters are [out, groups]. In the clip search p = (float)(1 - i/grid);
 * the shrunk scale is p*max(absmax, 1e-5)/maxq or max(p*xmax - p*xmin, 1e-5)/maxq; the difference q(w) - w is fp32,
 * the power and the sum are fp32 or better. */
typedef struct dq_grid_desc {
    int32_t bits;      /* 2..8 */
    int32_t symmetric; /* 0 or 1 */
    int64_t group;     /* columns per group; ceil(cols/group) groups */
    /* Clip search (0 = off): for i in 0..steps-1 shrink the range by p = 1 - i/grid and keep the first p with the
     * smallest sum |q(w)-w|^norm (strictly smaller replaces). Usual: steps 80, grid 100, norm 2.4. */
    int32_t search_steps;
    int32_t search_grid;
    float search_norm;
    int32_t reserved;
} dq_grid_desc;

/* Losses of rotated activations that one row decides alone (docs/numerics.md). */
enum {
    DQ_LOSS_WHIP = 0,     /* sum exp(-|o|); derivative -sign(o) exp(-|o|), 0 at o = 0 (DartQuant, arXiv 2511.04063) */
    DQ_LOSS_KURTOSIS = 1, /* group * S4 / S2^2, Sk = sum (o - mean)^k; 0 with derivative 0 where S2 = 0 */
    DQ_LOSS_VARIANCE = 2, /* S2 / group */
    DQ_LOSS_QUANT = 3,    /* sum (o - q)^2, q = o after dq_fake_quant_desc; derivative 2 (o - q): q is held fixed */
    /* The error to be expected of that grid, from the range alone:
     *   group d^2 / 12 + sum max(0, o - t)^2 + sum min(0, o - b)^2
     * with step d, top t and bottom b: d = clip (max - min) / (2^bits - 1), t = clip max, b = clip min; symmetric, with a =
     * max |o|: d = clip a / (2^(bits-1) - 1), t = clip a, b = -2^(bits-1) d. Derivative exact; of elements that tie for
     * the range the first gets its part (symmetric: the largest before the smallest). */
    DQ_LOSS_RANGE = 4,
    DQ_LOSS_SNAP = 5 /* as QUANT, but q = o for the elements that RANGE takes the range from */
};

/* One pass of fitting rotations. A row of x [rows, heads*n] is cut in heads; o = x after the product of head h with
 * matrix h / (heads / groups) of the stack r. L(o) is the loss of a row: `kind` of every `group` consecutive columns,
 * summed. The pass gives
 *   loss = scale * sum_r w_r L(o_r)
 *   grad[g] = beta * grad[g] + sum_r sum_(heads h of g) x_rh^T (scale w_r (dL/do_rh + shift o_rh))
 * with w_r = weight[r] (1 without weights), divided by |x_r|^2 when `relative` is set (0 where x_r = 0). `shift` adds the
 * derivative of shift |o|^2 / 2, a constant under rotation, to the gradient alone: what majorise-minimise steps need. */
typedef struct dq_rotation_loss_desc {
    int32_t kind; /* DQ_LOSS_* */
    int32_t math; /* DQ_MATH_*, of both products; BF16 may also round what is multiplied by x_rh^T */
    int64_t n;
    int32_t heads;
    int32_t groups;    /* divides heads */
    int64_t group;     /* columns; divides n, or is a multiple of n and divides heads*n. No effect on WHIP */
    int32_t bits;      /* QUANT, RANGE, SNAP: 2..15 */
    int32_t symmetric; /* the same: 0 or 1 */
    float clip;        /* the same: (0, 1]; zero_in_range is off */
    int32_t relative;  /* 0 or 1 */
    double scale;
    double beta; /* 0 ignores the old content of grad */
    double shift;
} dq_rotation_loss_desc;

/* A linear whose integer weights stay packed. Stored column j has the code in byte j (bits 8), or in the lower (even j) or
 * upper half of byte j / 2 (bits 4). With g = j / group the weight is, rounded to fp32,
 *   zero U8 or none:          w[o][j] = scale[o][g] * (code - zero[o][g])
 *   zero of the scale's type: w[o][j] = scale[o][g] * code, rounded, + zero[o][g]     (blocks with a minimum: GGUF's Q4_1)
 * Narrower codes are stored in 4 or 8 bits. With DQ_MATH_INT8, and groups of a multiple of 32 columns or one group, x may be
 * rounded first, each run of 32 stored columns by itself: s = max |x| / 127, x = s * rint(x / s), half to even. */
typedef struct dq_packed_desc {
    int32_t bits;  /* 4 or 8 */
    int32_t math;  /* DQ_MATH_* */
    int64_t group; /* stored columns, a multiple of 8; ceil(columns / group) groups */
    double beta;   /* 0 ignores the old content of y */
} dq_packed_desc;

/* Kinds of storage of keys or values of past tokens, one row per token.
 *   FLOAT: F32, F16 or BF16 [slots, heads*head_dim], rounded half to even
 *   INT:   codes of 8 bits, U8 [slots, heads*head_dim], or of 4, U8 [slots, heads*head_dim/2], the lower half of a byte
 *          first; grid F32 [slots, 2*heads] holds scale and zero of head h in columns 2h and 2h+1. As the asymmetric
 *          dq_fake_quant_desc with clip 1 over one head, its range extended to contain 0: x = scale * (code - zero)
 *   FP8:   E4M3 without infinities (OCP 8-bit floating point), U8 [slots, heads*head_dim]; beyond +-448 held there */
enum { DQ_KV_FLOAT = 0, DQ_KV_INT = 1, DQ_KV_FP8 = 2 };
/* How keys or values are stored. */
typedef struct dq_kv_desc {
    int32_t kind;  /* DQ_KV_* */
    int32_t bits;  /* INT: 4 (head_dim then even) or 8; else 0 */
    int32_t heads; /* key/value heads */
    int32_t head_dim;
} dq_kv_desc;

/* Attention over cached keys and values: query row r sees the slots [span[0][r], span[0][r] + span[1][r]). */
typedef struct dq_kv_attention_desc {
    dq_kv_desc kv;
    int32_t heads; /* of the queries; query head h reads key/value head h / (heads / kv.heads) */
    float scale;
} dq_kv_attention_desc;

/* One device of a backend. */
typedef struct dq_device_info {
    uint32_t struct_size;
    uint32_t reserved;
    char name[64];         /* e.g. "cpu:avx512" */
    char description[128]; /* vendor text, library versions */
    uint64_t memory_total; /* bytes; 0 = unknown */
    uint64_t memory_free;
} dq_device_info;

/* The table. The library copies it, as much as struct_size covers: later members count as NULL or 0, and a new version of
 * this header only appends. Slots up to `sync` are mandatory. Slots may be NULL from `host_pointer` on: an op that is NULL
 * runs on the host if the context's policy allows it, and is counted. Any op may return DQ_E_UNSUPPORTED for arguments it
 * cannot serve, before touching any output; every other status is an error. An op on the host costs one `download` per
 * input and one `upload` per output, or a `sync` and no copy where `host_pointer` gives all addresses.
 *
 * Views handed to a slot lie inside one allocation, have the shapes and types said here, and start at a multiple of
 * their element size; any such offset and stride may occur. Outputs are never empty; of the inputs only those of a sum
 * without terms are (gemm of depth 0, syrk and rotation_loss of 0 rows: the product is zero). What lies in device memory
 * is not checked by the library: for an index outside its bounds the answer is DQ_E_INVALID, at once or later as for any
 * failure of queued work. Output views never overlap input views unless the same view is passed for both (x == y where
 * noted "in place"). */
typedef struct dq_backend {
    uint32_t struct_size; /* sizeof(dq_backend) of the header the backend was built with */
    uint32_t abi;         /* DQ_BACKEND_ABI */
    const char *name;     /* lower case, digits, '_' and '-'; at most 63 bytes */

    /* Makes a device. `options` is a "key=value,key=value" string or "", valid during the call; refuse unknown keys with
     * DQ_E_INVALID. *dev is not NULL on success; on failure nothing is left behind. */
    dq_status (*open)(const dq_host *host, const char *options, void **dev);
    void (*close)(void *dev);
    /* Fills *out, which comes zeroed with its struct_size set: no more than that is written. */
    dq_status (*info)(void *dev, dq_device_info *out);

    /* *mem is a handle, never NULL, also for 0 bytes. Contents are undefined. */
    dq_status (*alloc)(void *dev, uint64_t bytes, void **mem);
    void (*free)(void *dev, void *mem);
    /* `bytes` >= 1 at `offset` of the allocation. The host memory may be pageable and mapped from a file. */
    dq_status (*upload)(void *dev, void *mem, uint64_t offset, const void *src, uint64_t bytes);
    dq_status (*download)(void *dev, void *dst, void *mem, uint64_t offset, uint64_t bytes); /* waits */
    /* Waits for everything queued and returns what went wrong since the last error. */
    dq_status (*sync)(void *dev);
    /* Address of `mem` for the host, or NULL when the host cannot touch it; no slot runs while the host uses it. May
     * itself be NULL. */
    void *(*host_pointer)(void *dev, void *mem);

    /* ---- elementwise and data movement ---- */
    /* y[:] = value; floating types (rounded once), U8 and I32 (the value fits). */
    dq_status (*fill)(void *dev, double value, const dq_view *y);
    /* y = (y.dtype) x for any pair of F64 F32 F16 BF16, round half to even; also same-dtype copy of any dtype. */
    dq_status (*convert)(void *dev, const dq_view *x, const dq_view *y);
    /* y += alpha * x; F32 or F64. A row vector x [1, cols] is added to every row of y. */
    dq_status (*axpy)(void *dev, double alpha, const dq_view *x, const dq_view *y);
    /* y[r][c] = x[r][c] * v[c]; F32 or F64, v [1, cols] of the same dtype; in place allowed. */
    dq_status (*scale_cols)(void *dev, const dq_view *x, const dq_view *v, const dq_view *y);
    /* y[r][:] = x[index[r]][:]; index I32 [1, y.rows], any dtype, same dtype in x and y. */
    dq_status (*gather_rows)(void *dev, const dq_view *x, const dq_view *index, const dq_view *y);
    /* y[:][c] = x[:][index[c]]; index I32 [1, y.cols]; any dtype. */
    dq_status (*gather_cols)(void *dev, const dq_view *x, const dq_view *index, const dq_view *y);
    /* First non-finite element in row-major order as r * cols + c, or -1. F32, F64, F16, BF16. Waits. */
    dq_status (*find_nonfinite)(void *dev, const dq_view *x, int64_t *index);
    /* sum of x*y in fp64. F32 or F64. Waits. */
    dq_status (*dot)(void *dev, const dq_view *x, const dq_view *y, double *out);

    /* ---- transformer ---- */
    /* c = alpha * op(a) op(b) + beta * c with op = transpose when the flag is 1. a, b, c F32 (a, b may be BF16 or
     * F16, c then F32), or all F64. beta == 0 ignores the old content of c. */
    dq_status (*gemm)(void *dev, int32_t trans_a, int32_t trans_b, double alpha, const dq_view *a, const dq_view *b,
                      double beta, const dq_view *c, int32_t math);
    /* y = x * rsqrt(mean(x^2) + eps) * weight; weight [1, cols] or NULL for ones. F32; in place allowed. */
    dq_status (*rmsnorm)(void *dev, const dq_view *x, const dq_view *weight, double eps, const dq_view *y);
    /* Rotate-half RoPE in place on x [rows, heads*head_dim]; row r has position r % table.rows. cos, sin: F32
     * [seqlen, head_dim/2] for seqlen == table.rows. (RoFormer, arXiv 2104.09864; HF LLaMA half layout.) */
    dq_status (*rope)(void *dev, const dq_view *cos, const dq_view *sin, int64_t head_dim, const dq_view *x);
    /* y = act(gate) * up, or act(gate) when up is NULL. F32; y may be gate or up. */
    dq_status (*activation)(void *dev, int32_t kind, const dq_view *gate, const dq_view *up, const dq_view *y);
    dq_status (*attention)(void *dev, const dq_attention_desc *d, const dq_view *q, const dq_view *k, const dq_view *v,
                           const dq_view *o);
    /* Streaming cross-entropy against a tile of the vocabulary. logits = x w^T with w = rows [first, first+w.rows)
     * of the head. state F64 [x.rows, 3] holds running max, sum of exp(logit - max) and the target's logit; start
     * it with {-inf, 0, -inf} (op fill with -inf on columns 0 and 2, 0 on 1). targets I32 [1, x.rows], -1 = none.
     * After all tiles nll = log(sum) + max - target logit. */
    dq_status (*head_nll)(void *dev, const dq_view *x, const dq_view *w, const dq_view *targets, int64_t first,
                          const dq_view *state, int32_t math);

    /* ---- quantization ---- */
    /* F32; in place allowed. */
    dq_status (*fake_quant)(void *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *y);
    /* F32 or F64; in place allowed. */
    dq_status (*hadamard)(void *dev, const dq_hadamard_desc *d, const dq_view *x, const dq_view *y);
    /* h = beta * h + alpha * x^T x, lower triangle (row >= col) of h only; x F32, F16 or BF16 [tokens, n], h F32. */
    dq_status (*syrk)(void *dev, double alpha, const dq_view *x, double beta, const dq_view *h);
    /* v[c] = h[c][c] */
    dq_status (*diag)(void *dev, const dq_view *h, const dq_view *v);
    /* The GPTQ factor (arXiv 2210.17323): with A = h read from its lower triangle, rows and columns reordered by
     * perm (I32 [1, n]; NULL = identity: A[i][j] = h[perm[i]][perm[j]]), zero diagonal entries replaced by 1, `damp`
     * added to the diagonal: u = upper triangular with inv(A) = u^T u, zeros below. h is untouched. *info = 0, or
     * i+1 when pivot i (taken from n-1 down to 0) was not positive (u is then undefined and the call succeeds).
     * F32 storage. Waits. */
    dq_status (*gptq_factor)(void *dev, const dq_view *h, const dq_view *perm, double damp, const dq_view *u,
                             int64_t *info);
    /* q = the Q factor of a = q r (square, F64 or F32, Householder, no sign fix: column signs as LAPACK geqrf gives
     * them); r (same shape, upper) may be NULL. a is untouched. */
    dq_status (*qr)(void *dev, const dq_view *a, const dq_view *q, const dq_view *r);
    /* Finds scale and zero (F32 [out, groups]) of w [out, in] F32. Ranges always contain 0. */
    dq_status (*weight_grid)(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                             const dq_view *zero);
    /* codes U8 [out, in] = clamp(rint(w / scale) + zero, 0, 2^bits-1); group of column c = group_index[c]
     * (I32 [1, in]), or c / d->group when NULL. */
    dq_status (*quantize_weight)(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *scale,
                                 const dq_view *zero, const dq_view *group_index, const dq_view *codes);
    /* w F32 [out, in] = scale * (code - zero) */
    dq_status (*dequantize_weight)(void *dev, const dq_grid_desc *d, const dq_view *codes, const dq_view *scale,
                                   const dq_view *zero, const dq_view *group_index, const dq_view *w);
    /* One column block of GPTQ. For j = 0..cols-1: code_j from w[:, j] as in quantize_weight, q_j its value,
     * e_j = (w_j - q_j) / u[j][j], w[:, j'] -= e_j u[j][j'] for j' >= j. w [out, B] in place, u [B, B] upper,
     * group_index I32 [1, B] (column into scale/zero), codes U8 [out, B], err F32 [out, B]. */
    dq_status (*gptq_block)(void *dev, const dq_grid_desc *d, const dq_view *w, const dq_view *u, const dq_view *scale,
                            const dq_view *zero, const dq_view *group_index, const dq_view *codes, const dq_view *err);
    /* ---- fitting rotations; these and what follows are not in tables made for 1.0 ---- */
    /* x F32, F16 or BF16 [rows, heads*n], weight F32 [1, rows] or NULL, r F32 [groups*n, n] (a stack of matrices; need
     * not be orthogonal), grad like r or NULL (the loss alone), row_loss F32 [1, rows] or NULL: L(o_r), divided by
     * |x_r|^2 when `relative` is set, without weight and scale. o is never stored for more than some rows at a time. Sums
     * over rows are fp32 or better, their order independent of the number of threads; *loss is fp64. rows may be 0 (then
     * row_loss is NULL). Waits. */
    dq_status (*rotation_loss)(void *dev, const dq_rotation_loss_desc *d, const dq_view *x, const dq_view *weight,
                               const dq_view *r, const dq_view *grad, const dq_view *row_loss, double *loss);
    /* `qr` of each of `groups` matrices, stacked as [groups*n, n]; r may be NULL. */
    dq_status (*qr_batch)(void *dev, int64_t groups, const dq_view *a, const dq_view *q, const dq_view *r);
    /* Derivative through a = q r for a loss that depends on q alone, for each matrix of the stacks [groups*n, n]:
     * da = q C r^-T, C = the strict lower triangle of G - G^T, G = q^T dq. All F32 or all F64; only the upper triangle of
     * r is read. A zero on the diagonal of r gives non-finite values. */
    dq_status (*qr_grad)(void *dev, int64_t groups, const dq_view *q, const dq_view *r, const dq_view *dq,
                         const dq_view *da);
    /* The orthogonal factor u of a = u h, h symmetric and positive definite, for each matrix of the stacks [groups*n, n],
     * F32 or F64. *error = max |u^T u - I| over all, or infinity when one is singular to working precision or not finite
     * (u is then undefined and the call succeeds). Under DQ_MATH_BF16 u may be the factor of a matrix near a (as near as
     * products of operands rounded to bf16 leave it), but as orthogonal as without. Waits. */
    dq_status (*polar)(void *dev, int64_t groups, int32_t math, const dq_view *a, const dq_view *u, double *error);

    /* ---- comparison ---- */
    /* Two models' logits of the same tokens, tile by tile of the vocabulary. a (the reference) and b: F32 [tokens, n], the
     * logits of ids [first, first + n), finite. state F64 [tokens, 7] holds max a, sum e^(a - max a), sum e^(a - max a)
     * (a - b), max b, sum e^(b - max b), the id of the largest a and of the largest b (the lowest of equals). Start it with
     * {-inf, 0, 0, -inf, 0, -1, -1}. After all tiles the Kullback-Leibler divergence of b from a is
     * s2 / s1 - (log s1 + s0) + (log s4 + s3). A NaN logit makes sums NaN. */
    dq_status (*compare_logits)(void *dev, const dq_view *a, const dq_view *b, int64_t first, const dq_view *state);

    /* ---- generation ---- */
    /* y = beta * y + x' w^T for the packed weights w of desc: x'[:][j] = x[:][order[j]], 0 where order[j] is -1; x' = x
     * without order (NULL). x F32 [rows, in], codes U8 [out, stored columns * bits / 8 rounded up], scale F32 or F16
     * [out, groups], zero [out, groups] U8 or of the scale's type, or NULL for 2^(bits-1), order I32 [1, stored columns],
     * y F32 [rows, out]. */
    dq_status (*packed_linear)(void *dev, const dq_packed_desc *d, const dq_view *x, const dq_view *codes,
                               const dq_view *scale, const dq_view *zero, const dq_view *order, const dq_view *y);
    /* cache[slot[r]] = x[r] as d stores it; x F32 [rows, heads*head_dim], slot I32 [1, rows], no two the same; grid NULL unless
     * INT. Other rows of cache and grid are left alone. */
    dq_status (*kv_store)(void *dev, const dq_kv_desc *d, const dq_view *x, const dq_view *slot, const dq_view *cache,
                          const dq_view *grid);
    /* q, o F32 [rows, heads*head_dim]; k, v and their grids as kv_store left them; span I32 [2, rows], counts of at least 1.
     * The result of a row does not depend on the other rows of the call. */
    dq_status (*kv_attention)(void *dev, const dq_kv_attention_desc *d, const dq_view *q, const dq_view *k,
                              const dq_view *k_grid, const dq_view *v, const dq_view *v_grid, const dq_view *span,
                              const dq_view *o);

    /* ---- optimisers ---- */
    /* Adam's moments and direction (Kingma and Ba, arXiv 1412.6980), all F32 of one shape:
     * mean += (1 - beta1) (g - mean), square = beta2 square + (1 - beta2) g^2, then g = mean / (sqrt(square) / root +
     * epsilon). The caller keeps the powers of the betas: root is sqrt(1 - beta2^t). */
    dq_status (*adam)(void *dev, double beta1, double beta2, double root, double epsilon, const dq_view *g,
                      const dq_view *mean, const dq_view *square);

    /* ---- other families ---- */
    /* y = (x - m) * rsqrt(mean((x - m)^2) + eps) * weight + bias with m = mean(x), row by row; weight, bias [1, cols], or NULL
     * for ones and zeros. F32; in place allowed. (Ba, Kiros and Hinton, arXiv 1607.06450.) */
    dq_status (*layernorm)(void *dev, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                           const dq_view *y);

    /* ---- two ops in one pass over memory ----
     * To the bit what the device's own two ops give one after the other, but nothing in between is stored. Without the slot,
     * or for arguments it does not serve, the library calls the two: that is no fallback and is not counted as one. */
    /* y = fake_quant(rmsnorm(x)); F32, in place allowed. */
    dq_status (*rmsnorm_quant)(void *dev, const dq_view *x, const dq_view *weight, double eps,
                               const dq_fake_quant_desc *d, const dq_view *y);
    /* y = fake_quant(hadamard(x)); F32, in place allowed. */
    dq_status (*hadamard_quant)(void *dev, const dq_hadamard_desc *h, const dq_fake_quant_desc *d, const dq_view *x,
                                const dq_view *y);

    /* ---- products of integers ----
     * A backend has both, or neither: then the library takes fake_quant and gemm, which is no fallback. */
    /* fake_quant of whole rows as codes: d->bits at most 8, d->group == cols, symmetric or zero_in_range. x F32 [rows, cols], cols
     * at most 131071, codes I8 [rows, cols], grid F32 [rows, 3] = scale s, zero z, sum of the row's codes, the last two
     * integers. Asymmetric codes and z are those of fake_quant less 2^(bits-1). s * (code - z) is what fake_quant gives to the bit
     * (up to the sign of zero), but zero in a row whose asymmetric step underflows; then s is 1. A row with a number that is
     * not finite gets s = NaN and zeros. */
    dq_status (*quantize_rows)(void *dev, const dq_fake_quant_desc *d, const dq_view *x, const dq_view *codes,
                               const dq_view *grid);
    /* y = beta * y + x w^T of such codes: x I8 [rows, in], w I8 [out, in], in at most 131071, x_grid F32 [rows, 3], w_grid F32
     * [out, 3], zeros within +-255, y F32 [rows, out]. With the integer S = sum_j (x_rj - zx_r) (w_oj - zw_o), exact,
     *   y_ro = beta * y_ro + (sx_r * sw_o) * (float)S
     * in fp32, one rounding for each operation (beta == 0: without the first term): the same bits everywhere. */
    dq_status (*int8_linear)(void *dev, double beta, const dq_view *x, const dq_view *x_grid, const dq_view *w,
                             const dq_view *w_grid, const dq_view *y);

    /* As rmsnorm_quant: y = fake_quant(layernorm(x)); F32, in place allowed. */
    dq_status (*layernorm_quant)(void *dev, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                                 const dq_fake_quant_desc *d, const dq_view *y);

    uint64_t features; /* DQ_FEATURE_*, 0 = none */

    /* As rmsnorm_quant, for quantize_rows: the codes and grid of rmsnorm(x), layernorm(x), hadamard(x). */
    dq_status (*rmsnorm_rows)(void *dev, const dq_view *x, const dq_view *weight, double eps,
                              const dq_fake_quant_desc *d, const dq_view *codes, const dq_view *grid);
    dq_status (*layernorm_rows)(void *dev, const dq_view *x, const dq_view *weight, const dq_view *bias, double eps,
                                const dq_fake_quant_desc *d, const dq_view *codes, const dq_view *grid);
    dq_status (*hadamard_rows)(void *dev, const dq_hadamard_desc *h, const dq_fake_quant_desc *d, const dq_view *x,
                               const dq_view *codes, const dq_view *grid);

    /* ---- keys and values ---- */
    /* y = x on the nearest of given levels; x, y F32 [rows, cols], in place allowed; range F32 [2, cols] = lo, hi of the columns,
     * without NaN, or NULL with per_row; levels F32 [1, 2..256], ascending; position I32 [1, rows] or NULL. */
    dq_status (*levels_quant)(void *dev, const dq_levels_quant_desc *d, const dq_view *x, const dq_view *range,
                              const dq_view *levels, const dq_view *position, const dq_view *y);

    /* ---- GPTQ ---- */
    /* Half of the work of gptq_factor, which the library calls where this is missing; that is no fallback. With A as there and
     * A = m m^T, m upper triangular: root = m above the diagonal blocks [k block, (k + 1) block), in these the inverse of m's
     * own, zeros below the diagonal. F32 storage. *info as there. Waits. */
    dq_status (*gptq_root)(void *dev, const dq_view *h, const dq_view *perm, double damp, int64_t block,
                           const dq_view *root, int64_t *info);
} dq_backend;

/* A backend in a file of its own, libdartquant-NAME.so, exports one C function of this type under this name. It is called
 * with the library's DQ_BACKEND_ABI, whenever a context asks for the backend, and returns a static table or, for an abi it
 * was not made for, NULL. The file needs to link nothing of libdartquant and is never unloaded. */
typedef const dq_backend *(*dq_backend_entry_fn)(uint32_t abi);
/* The name. */
#define DQ_BACKEND_ENTRY "dq_backend_entry"

#ifdef __cplusplus
}
#endif
#endif
