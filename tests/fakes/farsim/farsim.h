/* farsim: a made-up far device, to test the border of dartquant/backend.h the way a real one would use it. Its memory is
 * out of the host's reach, its stream finishes late, its memory is small, and it fails when told to. It is built
 * against the installed backend.h alone and links nothing of the library.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef FARSIM_H
#define FARSIM_H

#include <dartquant/backend.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

/* Codes of the "vendor". */
enum {
    FAR_OUT_OF_MEMORY = 2,
    FAR_BAD_OPTION = 11,
    FAR_COPY_FAILED = 30,
    FAR_LOST = 46,
    FAR_BAD_INDEX = 59,
    FAR_BAD_ADDRESS = 700,
    FAR_NOT_BUILT = 801
};

enum { FAR_OPERANDS = 7 };

/* An operand as a kernel sees it. */
typedef struct far_mat {
    unsigned char *at; /* NULL: operand left out */
    int64_t rows, cols, stride;
    dq_dtype dtype;
} far_mat;

typedef struct far_dev far_dev;
typedef struct far_cmd far_cmd;

/* Runs on the stream with the operands' memory open. A failure is recorded with far_break. */
typedef void (*far_kernel)(far_dev *dev, far_cmd *c);

/* One entry of the stream. Everything it needs is copied into it: what the slot was given is gone when it runs. */
struct far_cmd {
    far_cmd *next;
    const char *name;
    far_kernel kernel; /* NULL: a copy or a free */
    dq_view view[FAR_OPERANDS];
    bool given[FAR_OPERANDS];
    far_mat mat[FAR_OPERANDS];
    union {
        dq_attention_desc attention;
        dq_fake_quant_desc fake_quant;
        dq_hadamard_desc hadamard; /* hk points to `payload` */
        dq_grid_desc grid;
        dq_rotation_loss_desc loss;
        dq_levels_quant_desc levels;
    } d;
    double alpha, beta;
    int64_t number;
    int32_t flag[2], math;
    void *result; /* host memory of a waiting caller */
    bool fails;
    void *release; /* allocation to give back */
    size_t payload_bytes;
    unsigned char payload[]; /* source of an upload, or the table of a Hadamard transform */
};

typedef struct far_block {
    struct far_block *next;
    unsigned char *base; /* also the handle */
    uint64_t bytes, mapped;
    bool freed; /* by the caller; earlier commands may still use it */
} far_block;

struct far_dev {
    const dq_host *host;
    /* options */
    uint64_t limit;   /* bytes of device memory */
    int64_t depth;    /* the stream starts when this much is queued, or when somebody waits */
    uint64_t missing; /* bit per op in the order of op_names */
    int64_t oom_at, fail_copy, lost_at;
    /* counts */
    int64_t allocs, copies, ops;
    uint64_t used;
    pthread_mutex_t lock; /* all below, and the blocks */
    pthread_cond_t work, idle;
    pthread_t stream;
    far_cmd *first, **last;
    int64_t queued;
    bool waiting, busy, stop;
    far_block *blocks;
    /* what went wrong behind the caller's back */
    dq_status broken;
    int64_t code;
    char why[200];
    bool lost;
};

/* ---- stream.c ---- */
dq_status far_start(far_dev *dev);
void far_stop(far_dev *dev);
/* A zeroed command with room for a payload; NULL: no memory (recorded). */
far_cmd *far_cmd_new(far_dev *dev, const char *name, far_kernel kernel, size_t payload_bytes);
/* Checks the operand's place and copies the view; v may be NULL. */
dq_status far_operand(far_dev *dev, far_cmd *c, int i, const dq_view *v);
void far_enqueue(far_dev *dev, far_cmd *c);
/* Waits until the stream is empty, then as far_error. */
dq_status far_wait(far_dev *dev);
/* The failure that is waiting to be told, or DQ_OK. */
dq_status far_error(far_dev *dev);
/* On the stream: remembers the first failure. */
void far_break(far_dev *dev, dq_status status, int64_t code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
dq_status far_fail(far_dev *dev, dq_status status, int64_t code, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* ---- memory.c ---- */
dq_status far_alloc(void *device, uint64_t bytes, void **mem);
void far_free(void *device, void *mem);
dq_status far_upload(void *device, void *mem, uint64_t offset, const void *src, uint64_t bytes);
dq_status far_download(void *device, void *dst, void *mem, uint64_t offset, uint64_t bytes);
dq_status far_check_place(far_dev *dev, const char *name, void *mem, uint64_t offset, uint64_t bytes);
void far_unmap(far_dev *dev, void *mem);
/* Opens or closes the whole allocation for the stream. */
void far_reach(far_dev *dev, void *mem, bool open);
size_t far_element(dq_dtype dtype);

/* ---- math.c, quant.c, levels.c, int8.c, fit.c ---- */
double far_get(const far_mat *m, int64_t r, int64_t c);
void far_put(const far_mat *m, int64_t r, int64_t c, double x);
void far_put_f32(const far_mat *m, int64_t r, int64_t c, double x);
float *far_f32(const far_mat *m, int64_t r);
/* Of d->group numbers: codes in [least, most]; scale 0 = empty range. */
typedef struct far_grid {
    float scale, zero, least, most;
} far_grid;
far_grid far_grid_of(const dq_fake_quant_desc *d, const float *x);
float far_code(const far_grid *g, float x);
void far_k_fill(far_dev *dev, far_cmd *c);
void far_k_convert(far_dev *dev, far_cmd *c);
void far_k_axpy(far_dev *dev, far_cmd *c);
void far_k_scale_cols(far_dev *dev, far_cmd *c);
void far_k_gather_rows(far_dev *dev, far_cmd *c);
void far_k_find_nonfinite(far_dev *dev, far_cmd *c);
void far_k_dot(far_dev *dev, far_cmd *c);
void far_k_gemm(far_dev *dev, far_cmd *c);
void far_k_rmsnorm(far_dev *dev, far_cmd *c);
void far_k_layernorm(far_dev *dev, far_cmd *c);
void far_k_rope(far_dev *dev, far_cmd *c);
void far_k_activation(far_dev *dev, far_cmd *c);
void far_k_attention(far_dev *dev, far_cmd *c);
void far_k_head_nll(far_dev *dev, far_cmd *c);
void far_k_fake_quant(far_dev *dev, far_cmd *c);
void far_k_levels_quant(far_dev *dev, far_cmd *c);
void far_k_hadamard(far_dev *dev, far_cmd *c);
void far_k_syrk(far_dev *dev, far_cmd *c);
void far_k_diag(far_dev *dev, far_cmd *c);
void far_k_gptq_factor(far_dev *dev, far_cmd *c);
void far_k_weight_grid(far_dev *dev, far_cmd *c);
void far_k_quantize_weight(far_dev *dev, far_cmd *c);
void far_k_dequantize_weight(far_dev *dev, far_cmd *c);
void far_k_gptq_block(far_dev *dev, far_cmd *c);
void far_k_rotation_loss(far_dev *dev, far_cmd *c);
void far_k_qr_grad(far_dev *dev, far_cmd *c);
void far_k_quantize_rows(far_dev *dev, far_cmd *c);
void far_k_int8_linear(far_dev *dev, far_cmd *c);

#endif
