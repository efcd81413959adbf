/* How much a file may ask of the readers. Every count and size in a file is checked against these and against the
 * bytes that are really there before memory is taken for it.
 *
 * A file's size is read once, when it is opened. A file that another program truncates while it is mapped raises
 * SIGBUS on access; that is out of scope here as it is in the other memory-mapping readers.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_LIMITS_H
#define DQ_IO_LIMITS_H

/* safetensors */
#define DQ_ST_MAX_HEADER UINT64_C(100000000) /* bytes of JSON; the reference's own limit */
#define DQ_ST_MAX_INDEX UINT64_C(100000000)  /* bytes of *.safetensors.index.json */

/* GGUF (the first two are llama.cpp's GGML_MAX_DIMS and GGML_MAX_NAME) */
#define DQ_GGUF_MAX_DIMS 4u
#define DQ_GGUF_MAX_NAME 64u /* with the terminating NUL, which the file does not store */
#define DQ_GGUF_MAX_KEY 65535u
#define DQ_GGUF_MAX_ALIGNMENT (1u << 20)
#define DQ_GGUF_MIN_KV_BYTES 13u     /* key length, type, one byte of value */
#define DQ_GGUF_MIN_TENSOR_BYTES 24u /* name length, n_dims, type, offset */

/* PyTorch archives */
#define DQ_PT_MAX_PICKLE (UINT64_C(32) << 20) /* bytes of data.pkl; a 70B model's has 200 KB */
#define DQ_PT_MAX_ARENA ((size_t)512 << 20)   /* bytes for all unpickled values together */
#define DQ_PT_MAX_STACK ((size_t)1 << 20)     /* values on the unpickler's stack */
#define DQ_PT_MAX_MEMO ((size_t)1 << 22)
#define DQ_PT_MAX_DEPTH 64                /* nested containers */
#define DQ_PT_MAX_NODES ((size_t)1 << 22) /* containers and leaves visited when names are made */
#define DQ_PT_MAX_INFLATE UINT64_C(1032)  /* deflate cannot expand more than this (zlib's technical notes) */

#endif
