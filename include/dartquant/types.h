/* libdartquant: status codes, element types and opaque handles shared by every public header. Since 1.0.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DARTQUANT_TYPES_H
#define DARTQUANT_TYPES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DQ_API __attribute__((visibility("default")))
#else
#define DQ_API
#endif

/* Result of every fallible call: 0 is success, negative values are errors in blocks of 100 by area.
 * Numbers are never reused. After a failure dq_error_last() holds the details of the calling thread. */
typedef int32_t dq_status;

enum {
    DQ_OK = 0,
    /* 1..99 general */
    DQ_E_INVALID = -1,     /* an argument or option value is out of its documented range */
    DQ_E_NOMEM = -2,       /* the allocator returned NULL or a size overflowed */
    DQ_E_CANCELLED = -3,   /* the progress callback or a cancel token stopped the job */
    DQ_E_UNSUPPORTED = -4, /* valid request that this build, backend or model cannot do */
    DQ_E_STATE = -5,       /* call not allowed now (job not bound, already finished, wrong context) */
    DQ_E_NOTFOUND = -6,    /* a named thing (option, tensor, key, preset) does not exist */
    DQ_E_INTERNAL = -7,    /* broken invariant: a bug in the library */
    /* 100..199 files */
    DQ_E_IO = -100,        /* the operating system refused: see dq_error_vendor_code for errno */
    DQ_E_FORMAT = -101,    /* file content violates its format */
    DQ_E_TRUNCATED = -102, /* file ends before the data it promises */
    DQ_E_MISMATCH = -103,  /* files disagree with each other or with the model (foreign shard, wrong shape) */
    /* 200..299 numbers */
    DQ_E_NONFINITE = -200, /* NaN or Inf where a finite number is required */
    DQ_E_NUMERIC = -201,   /* factorization failed after all remedies */
    /* 300..399 text */
    DQ_E_TEXT = -300, /* tokenizer or dataset cannot serve the request (empty, too short, unknown) */
    /* 400..499 devices */
    DQ_E_BACKEND = -400,       /* a backend failed: dq_error_backend and dq_error_vendor_code say how */
    DQ_E_DEVICE_MEMORY = -401, /* device allocation failed */
    DQ_E_DEVICE_LOST = -402    /* device unusable from now on */
};

/* Element types. Values are part of the ABI. */
enum {
    DQ_F32 = 0,
    DQ_F64 = 1,
    DQ_F16 = 2,
    DQ_BF16 = 3,
    DQ_U8 = 4,
    DQ_I8 = 5,
    DQ_I16 = 6,
    DQ_I32 = 7,
    DQ_I64 = 8,
    DQ_U16 = 9,
    DQ_U32 = 10,
    DQ_U64 = 11,
    DQ_BOOL = 12,
    DQ_F8_E4M3 = 13,
    DQ_F8_E5M2 = 14,
    DQ_BLOCK = 15,      /* block-quantized storage (GGUF); tensor info names the exact type */
    DQ_DTYPE_OTHER = 16 /* known to a file format, not decoded by this library */
};
/* One of the element types above. */
typedef int32_t dq_dtype;

typedef struct dq_context dq_context;       /* services and devices; outlives all it creates */
typedef struct dq_config dq_config;         /* options by name */
typedef struct dq_tensors dq_tensors;       /* named tensors of a file or folder */
typedef struct dq_model dq_model;           /* immutable model, possibly derived from another */
typedef struct dq_rotation dq_rotation;     /* a set of rotations R1..R4 */
typedef struct dq_quantizer dq_quantizer;   /* weight quantization job */
typedef struct dq_calibrator dq_calibrator; /* job that learns rotations */
typedef struct dq_evaluator dq_evaluator;   /* perplexity job */
typedef struct dq_reference dq_reference;   /* what to compare models with */
typedef struct dq_tokenizer dq_tokenizer;   /* text to token ids and back */
typedef struct dq_generator dq_generator;   /* text from a model */
typedef struct dq_dataset dq_dataset;       /* token ids with a name and a protocol */
typedef struct dq_hessian dq_hessian;       /* what GPTQ knows of a linear's inputs */
typedef struct dq_cancel dq_cancel;         /* flag any thread may set */

#ifdef __cplusplus
}
#endif
#endif
