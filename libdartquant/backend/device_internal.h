/* What the files of device.h share. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BACKEND_DEVICE_INTERNAL_H
#define DQ_BACKEND_DEVICE_INTERNAL_H

#include <pthread.h>

#include "backend/device.h"

/* What a backend said about its latest failure; it may say so on any thread. */
typedef struct dq_failure {
    bool set;
    dq_status status;
    int64_t vendor_code;
    char message[320];
} dq_failure;

struct dq_device {
    dq_env *env;
    dq_host host;     /* lent to `table` and to `ref` */
    dq_backend table; /* a copy: slots the backend does not know are NULL */
    void *state;      /* of the backend */
    const dq_backend *ref;
    void *ref_state;  /* runs what the backend does not support */
    char name[64];    /* of the device, once known; before, of the backend */
    char backend[64]; /* name in the table */
    dq_policy policy;
    dq_device_counters counters;
    uint64_t warned;  /* bit per op: the fallback was logged */
    uint64_t tensors; /* allocations alive */
    pthread_mutex_t failure_lock;
    dq_failure failure;
    bool lost; /* a call returned DQ_E_DEVICE_LOST; `failure_of_loss` says why */
    dq_failure failure_of_loss;
};

/* Around every call into a backend: forget the last failure, then turn a status into a complete error record. `what`
 * names the call, `who` the backend ("" = the device's own name). */
void dq_device_begin(dq_device *dev);
dq_status dq_device_finish(dq_device *dev, dq_status status, const char *what, const char *who);

/* DQ_E_DEVICE_LOST when the device was lost before: it is not asked again. */
dq_status dq_device_usable(const dq_device *dev);

/* Refuses a table of another ABI, without a name or without a mandatory slot. */
dq_status dq_backend_check(const dq_backend *table);
/* An absolute path, or a bare name: the plug-in beside this library. */
dq_status dq_plugin_find(const char *name, const dq_backend **out);

/* ---- one op ---- */
typedef enum dq_op_id {
    DQ_OP_FILL,
    DQ_OP_CONVERT,
    DQ_OP_AXPY,
    DQ_OP_SCALE_COLS,
    DQ_OP_GATHER_ROWS,
    DQ_OP_GATHER_COLS,
    DQ_OP_FIND_NONFINITE,
    DQ_OP_DOT,
    DQ_OP_GEMM,
    DQ_OP_RMSNORM,
    DQ_OP_ROPE,
    DQ_OP_ACTIVATION,
    DQ_OP_ATTENTION,
    DQ_OP_HEAD_NLL,
    DQ_OP_FAKE_QUANT,
    DQ_OP_HADAMARD,
    DQ_OP_SYRK,
    DQ_OP_DIAG,
    DQ_OP_GPTQ_FACTOR,
    DQ_OP_QR,
    DQ_OP_WEIGHT_GRID,
    DQ_OP_QUANTIZE_WEIGHT,
    DQ_OP_DEQUANTIZE_WEIGHT,
    DQ_OP_GPTQ_BLOCK,
    DQ_OP_ROTATION_LOSS,
    DQ_OP_QR_BATCH,
    DQ_OP_QR_GRAD,
    DQ_OP_POLAR,
    DQ_OP_COMPARE_LOGITS,
    DQ_OP_PACKED_LINEAR,
    DQ_OP_KV_STORE,
    DQ_OP_KV_ATTENTION,
    DQ_OP_ADAM,
    DQ_OP_LAYERNORM,
    DQ_OP_RMSNORM_QUANT,
    DQ_OP_HADAMARD_QUANT,
    DQ_OP_QUANTIZE_ROWS,
    DQ_OP_INT8_LINEAR,
    DQ_OP_RMSNORM_ROWS,
    DQ_OP_LAYERNORM_ROWS,
    DQ_OP_HADAMARD_ROWS,
    DQ_OP_LAYERNORM_QUANT,
    DQ_OP_LEVELS_QUANT,
    DQ_OP_GPTQ_ROOT
} dq_op_id;

enum { DQ_OP_MAX_OPERANDS = 7 };

typedef enum dq_access { DQ_READ = 1, DQ_WRITE = 2, DQ_READ_WRITE = 3 } dq_access;

typedef struct dq_operand {
    const char *role;        /* name in backend.h */
    const dq_tensor *tensor; /* NULL or empty: optional operand left out */
    dq_access access;
} dq_operand;

/* Calls the op's slot with the views of the operands (NULL where left out); DQ_E_UNSUPPORTED when the slot is empty. */
typedef dq_status (*dq_op_fn)(const dq_backend *table, void *state, const dq_view *const *v, const void *args);

#define DQ_OP_CALLER(op)                                                                                               \
    static dq_status call_##op(const dq_backend *t, void *state, const dq_view *const *v, const void *args)
#define DQ_SLOT(slot, ...) (t->slot ? t->slot(state, __VA_ARGS__) : DQ_E_UNSUPPORTED)

typedef struct dq_op_call {
    dq_op_id id;
    const char *name;
    dq_op_fn fn;
    const void *args;
    int count;
    dq_operand operands[DQ_OP_MAX_OPERANDS];
} dq_op_call;

/* Runs the op on its device, or on the host when the device does not support it and the policy allows. */
dq_status dq_op_dispatch(const dq_op_call *call);
/* The same, but on a device that has gemm `compose` makes the op out of others instead; counted, too. */
dq_status dq_op_dispatch_or(const dq_op_call *call, dq_status (*compose)(const dq_op_call *call));
/* For ops that are two others in one: false in *served when the device leaves them to the caller, which is no fallback. */
dq_status dq_op_dispatch_fused(const dq_op_call *call, bool *served);

/* Runs an op whose operand i may be BF16 where DQ_FEATURE_BF16 says so. What the device does not serve gets an F32 copy in its
 * place and goes through `run` (NULL: dq_op_dispatch). */
dq_status dq_op_dispatch_bf16(const dq_op_call *call, int i, dq_status (*run)(const dq_op_call *call));

/* ops.c, ops_quant.c: what several ops check beyond the shapes. */
dq_status dq_check_eps(const char *op, double eps);
dq_status dq_check_fake_quant(const char *op, const dq_fake_quant_desc *d, int64_t cols);
dq_status dq_check_hadamard(const char *op, const dq_hadamard_desc *d, int64_t cols);

/* compose_loss.c: rotation_loss of at least one row, its operands checked. */
dq_status dq_compose_rotation_loss(const dq_rotation_loss_desc *d, const dq_tensor *x, const dq_tensor *weight,
                                   const dq_tensor *r, const dq_tensor *grad, const dq_tensor *row_loss, double *loss);

/* ---- checks; every message starts with the op ---- */
/* No operand is missing (unless optional), all are on one device, no output overlaps another operand partly. */
dq_status dq_check_operands(const dq_op_call *call, unsigned optional_mask);
/* rows or cols < 0: any. */
dq_status dq_check_shape(const dq_op_call *call, int operand, int64_t rows, int64_t cols);
/* dtype is one of those in the mask (1 << dtype). */
dq_status dq_check_dtype(const dq_op_call *call, int operand, unsigned mask);
dq_status dq_check_same_dtype(const dq_op_call *call, int a, int b);
/* math is one of DQ_MATH_*. */
dq_status dq_check_math(const char *op, int math);
#define DQ_MASK(dtype) (1u << (dtype))
enum {
    DQ_MASK_F32 = 1u << DQ_F32,
    DQ_MASK_F64 = 1u << DQ_F64,
    DQ_MASK_F32_F64 = DQ_MASK_F32 | DQ_MASK_F64,
    DQ_MASK_F32_BF16 = DQ_MASK_F32 | 1u << DQ_BF16,
    DQ_MASK_F32_HALVES = DQ_MASK_F32 | 1u << DQ_F16 | 1u << DQ_BF16,
    DQ_MASK_FLOATS = DQ_MASK_F32_HALVES | DQ_MASK_F64,
    DQ_MASK_I32 = 1u << DQ_I32,
    DQ_MASK_U8 = 1u << DQ_U8,
    DQ_MASK_I8 = 1u << DQ_I8
};

static inline const dq_view *dq_operand_view(const dq_op_call *call, int i) { return &call->operands[i].tensor->view; }
static inline bool dq_view_is_empty(const dq_view *v) { return v->rows == 0 || v->cols == 0; }
bool dq_view_same(const dq_view *a, const dq_view *b);

#endif
