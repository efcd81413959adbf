/* Opening a card, its description, errors and the table. SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/device.h"

enum { BLAS_WORKSPACE = 32 << 20, OLDEST_MAJOR = 8 };

/* ---- errors ---- */

dq_status dq_cuda_fail(dq_cuda_device *dev, dq_status status, int64_t code, const char *format, ...)
{
    char text[400];
    int n = snprintf(text, sizeof text, "cuda:%d: ", dev->ordinal);
    va_list args;
    va_start(args, format);
    vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    va_end(args);
    return dev->host->fail(dev->host->self, status, code, text);
}

/* After these the driver, or the process's context in it, is gone for good. */
static bool is_fatal(cudaError_t error)
{
    switch ((int)error) {
        case cudaErrorInitializationError:
        case cudaErrorCudartUnloading:
        case cudaErrorInsufficientDriver:
        case cudaErrorDevicesUnavailable:
        case cudaErrorNoDevice:
        case cudaErrorDeviceUninitialized:
        case cudaErrorECCUncorrectable:
        case cudaErrorNvlinkUncorrectable:
        case 226: /* cudaErrorContained, since CUDA 12.8 */
        case cudaErrorOperatingSystem:
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchTimeout:
        case cudaErrorContextIsDestroyed:
        case cudaErrorAssert:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorLaunchFailure:
        case 721: /* cudaErrorTensorMemoryLeak, since CUDA 12.8 */
        case cudaErrorSystemNotReady:
        case cudaErrorSystemDriverMismatch:
        case cudaErrorMpsRpcFailure:
        case cudaErrorMpsClientTerminated:
        case cudaErrorExternalDevice:
        case cudaErrorUnknown: return true;
        default: return false;
    }
}

dq_status dq_cuda_check(dq_cuda_device *dev, cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return DQ_OK;
    (void)cudaGetLastError(); /* an error that is not fatal must not be seen again */
    if (error == cudaErrorMemoryAllocation)
        return dq_cuda_fail(dev, DQ_E_DEVICE_MEMORY, error, "%s: %s", what, cudaGetErrorString(error));
    if (is_fatal(error)) dev->lost = 1;
    return dq_cuda_fail(dev, dev->lost ? DQ_E_DEVICE_LOST : DQ_E_BACKEND, error, "%s: %s", what,
                        cudaGetErrorString(error));
}

/* Of cuBLAS and cuSOLVER. Where the card is lost, that is the reason, which their own codes hide. */
static dq_status library_failed(dq_cuda_device *dev, bool memory, int64_t code, const char *what, const char *words)
{
    cudaError_t beneath = dev->stream ? cudaStreamQuery(dev->stream) : cudaSuccess;
    (void)cudaGetLastError();
    if (is_fatal(beneath)) {
        dev->lost = 1;
        return dq_cuda_fail(dev, DQ_E_DEVICE_LOST, beneath, "%s: %s: %s", what, words, cudaGetErrorString(beneath));
    }
    return dq_cuda_fail(dev, memory ? DQ_E_DEVICE_MEMORY : DQ_E_BACKEND, code, "%s: %s", what, words);
}

dq_status dq_cuda_check_blas(dq_cuda_device *dev, cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS) return DQ_OK;
    char words[120];
    snprintf(words, sizeof words, "cuBLAS status %d, %s", (int)status, cublasGetStatusString(status));
    return library_failed(dev, status == CUBLAS_STATUS_ALLOC_FAILED, status, what, words);
}

dq_status dq_cuda_check_solver(dq_cuda_device *dev, cusolverStatus_t status, const char *what)
{
    if (status == CUSOLVER_STATUS_SUCCESS) return DQ_OK;
    char words[40];
    snprintf(words, sizeof words, "cuSOLVER status %d", (int)status);
    return library_failed(dev, status == CUSOLVER_STATUS_ALLOC_FAILED, status, what, words);
}

dq_status dq_cuda_launched(dq_cuda_device *dev, const char *op) { return dq_cuda_check(dev, cudaGetLastError(), op); }

/* Above 48 KB, a kernel's own included, it must be asked for. What is asked for is a property of the kernel in the process,
 * which contexts share: always the most, so that none takes from another what it is about to use. */
dq_status dq_cuda_allow_shared(dq_cuda_device *dev, const void *kernel, int64_t bytes)
{
    enum { ALWAYS = 40 << 10 }; /* no kernel that asks has more than 8 KB of its own */
    cudaFuncAttributes f;
    if (bytes <= ALWAYS) return DQ_OK;
    CU_TRY(dq_cuda_check(dev, cudaFuncGetAttributes(&f, kernel), "shared memory of a kernel"));
    int64_t most = dev->max_shared - (int64_t)f.sharedSizeBytes;
    if (bytes > most)
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "a kernel needs %lld bytes of shared memory, there are %lld",
                            (long long)bytes, (long long)most);
    if (f.maxDynamicSharedSizeBytes >= bytes) return DQ_OK;
    return dq_cuda_check(dev, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)most),
                         "shared memory of a kernel");
}

dq_status dq_cuda_enter(dq_cuda_device *dev)
{
    return dq_cuda_check(dev, cudaSetDevice(dev->ordinal), "choosing the card");
}

static const char *fault_op(unsigned long long op)
{
    static const char *const names[] = {
        "?",          "gather_rows", "gather_cols",   "quantize_weight", "dequantize_weight",
        "gptq_block", "gptq_factor", "packed_linear", "kv_store",        "kv_attention"};
    return op < sizeof names / sizeof names[0] ? names[op] : "?";
}

dq_status dq_cuda_wait(dq_cuda_device *dev)
{
    CU_TRY(dq_cuda_check(
        dev, cudaMemcpyAsync(dev->fault_host, dev->fault, sizeof *dev->fault, cudaMemcpyDeviceToHost, dev->stream),
        "reading the error flag"));
    CU_TRY(dq_cuda_check(dev, cudaStreamSynchronize(dev->stream), "waiting for queued work"));
    unsigned long long first = dev->fault_host->first;
    if (first == ~0ull) return DQ_OK;
    CU_TRY(dq_cuda_check(dev, cudaMemsetAsync(dev->fault, 0xff, sizeof *dev->fault, dev->stream), "error flag"));
    return dq_cuda_fail(dev, DQ_E_INVALID, 0, "%s: index[%llu] is out of range", fault_op(first >> 40),
                        first & 0xffffffffffull);
}

dq_status dq_cuda_fetch(dq_cuda_device *dev, const void *from, void *to, size_t bytes)
{
    CU_TRY(dq_cuda_check(dev, cudaMemcpyAsync(dev->result_host, from, bytes, cudaMemcpyDeviceToHost, dev->stream),
                         "result"));
    CU_TRY(dq_cuda_wait(dev));
    memcpy(to, dev->result_host, bytes);
    return DQ_OK;
}

/* ---- options: "1" or "device=1,memory=BYTES,tf32=on|off,syrk=split|exact,syrk_block=N,syrk_parts=N,staging=BYTES,
 * overlap=on|off,fail_at=N" ---- */

typedef struct options {
    long long device, memory, fail_at, syrk_block, syrk_parts, staging;
    int tf32, exact, in_turn;
} options;

static bool parse_number(const char *text, size_t n, long long *out)
{
    if (n == 0 || n > 18) return false;
    long long value = 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9') return false;
        value = value * 10 + (text[i] - '0');
    }
    *out = value;
    return true;
}

static bool parse_switch(const char *text, size_t n, const char *one, const char *zero, int *out)
{
    *out = n == strlen(one) && memcmp(text, one, n) == 0;
    return *out || (n == strlen(zero) && memcmp(text, zero, n) == 0);
}

static bool parse_option(const char *text, size_t n, options *o)
{
    const char *equals = (const char *)memchr(text, '=', n);
    if (!equals) return parse_number(text, n, &o->device);
    size_t key = (size_t)(equals - text), left = n - key - 1;
    const char *value = equals + 1;
    if (key == 6 && memcmp(text, "device", 6) == 0) return parse_number(value, left, &o->device);
    if (key == 6 && memcmp(text, "memory", 6) == 0) return parse_number(value, left, &o->memory);
    if (key == 7 && memcmp(text, "fail_at", 7) == 0) return parse_number(value, left, &o->fail_at);
    if (key == 7 && memcmp(text, "staging", 7) == 0) return parse_number(value, left, &o->staging);
    if (key == 10 && memcmp(text, "syrk_block", 10) == 0)
        return parse_number(value, left, &o->syrk_block) && o->syrk_block >= 16 && o->syrk_block <= 65536;
    if (key == 10 && memcmp(text, "syrk_parts", 10) == 0)
        return parse_number(value, left, &o->syrk_parts) && o->syrk_parts <= 1024;
    if (key == 4 && memcmp(text, "syrk", 4) == 0) return parse_switch(value, left, "exact", "split", &o->exact);
    if (key == 7 && memcmp(text, "overlap", 7) == 0) return parse_switch(value, left, "off", "on", &o->in_turn);
    return key == 4 && memcmp(text, "tf32", 4) == 0 && parse_switch(value, left, "on", "off", &o->tf32);
}

static dq_status parse_options(const dq_host *host, const char *text, options *o)
{
    memset(o, 0, sizeof *o);
    while (text && *text) {
        size_t n = strcspn(text, ",");
        if (!parse_option(text, n, o)) {
            char message[320];
            snprintf(
                message, sizeof message,
                "cuda: '%.*s' is not an option; it takes the card's number, or device=N, memory=BYTES, tf32=on|off, "
                "syrk=split|exact, syrk_block=N, syrk_parts=N, staging=BYTES, overlap=on|off, fail_at=N",
                n > 60 ? 60 : (int)n, text);
            return host->fail(host->self, DQ_E_INVALID, 0, message);
        }
        text += n + (text[n] == ',');
    }
    return DQ_OK;
}

/* ---- opening and closing ---- */

static dq_status choose_card(dq_cuda_device *dev, const options *o)
{
    int count = 0, driver = 0, major = 0, minor = 0, pools = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        (void)cudaGetLastError();
        return dq_cuda_fail(dev, DQ_E_BACKEND, error, "no CUDA device: %s",
                            error == cudaSuccess ? "the driver lists none" : cudaGetErrorString(error));
    }
    if (o->device >= count)
        return dq_cuda_fail(dev, DQ_E_INVALID, 0, "there is no such card; this machine has %d, counted from 0", count);
    CU_TRY(dq_cuda_check(dev, cudaDriverGetVersion(&driver), "driver version"));
    CU_TRY(
        dq_cuda_check(dev, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, dev->ordinal), "query"));
    CU_TRY(
        dq_cuda_check(dev, cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, dev->ordinal), "query"));
    if (major < OLDEST_MAJOR)
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "compute capability %d.%d is too old: 8.0 is needed", major,
                            minor);
    CU_TRY(dq_cuda_check(dev, cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, dev->ordinal), "query"));
    if (!pools)
        return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, 0, "driver %d.%d has no memory pools", driver / 1000,
                            driver % 1000 / 10);
    return dq_cuda_check(
        dev, cudaDeviceGetAttribute(&dev->max_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, dev->ordinal), "query");
}

__global__ void probe_kernel() {}

/* Whether the plug-in holds code that this card runs: else every launch would be refused, one by one. */
static dq_status has_code(dq_cuda_device *dev)
{
    cudaFuncAttributes f;
    int major = 0, minor = 0;
    cudaError_t error = cudaFuncGetAttributes(&f, (const void *)probe_kernel);
    switch ((int)error) {
        case cudaErrorInvalidDeviceFunction:
        case cudaErrorNoKernelImageForDevice:
        case cudaErrorInvalidPtx:
        case cudaErrorUnsupportedPtxVersion:
        case cudaErrorJitCompilerNotFound:
        case cudaErrorJitCompilationDisabled: break;
        default: return dq_cuda_check(dev, error, "looking for code for this card");
    }
    (void)cudaGetLastError();
    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, dev->ordinal);
    (void)cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, dev->ordinal);
    return dq_cuda_fail(dev, DQ_E_UNSUPPORTED, error,
                        "the plug-in was built without code for compute capability %d.%d: %s", major, minor,
                        cudaGetErrorString(error));
}

/* Memory given back stays in the pool until the device is closed: the same sizes come and go with each layer. */
static dq_status keep_pool(dq_cuda_device *dev)
{
    uint64_t all = ~(uint64_t)0;
    CU_TRY(dq_cuda_check(dev, cudaDeviceGetDefaultMemPool(&dev->pool, dev->ordinal), "memory pool"));
    return dq_cuda_check(dev, cudaMemPoolSetAttribute(dev->pool, cudaMemPoolAttrReleaseThreshold, &all), "memory pool");
}

static dq_status start(dq_cuda_device *dev, const options *o)
{
    CU_TRY(choose_card(dev, o));
    CU_TRY(dq_cuda_enter(dev));
    CU_TRY(has_code(dev));
    CU_TRY(keep_pool(dev));
    CU_TRY(dq_cuda_check(dev, cudaStreamCreateWithFlags(&dev->stream, cudaStreamNonBlocking), "stream"));
    CU_TRY(dq_cuda_check(dev, cudaStreamCreateWithFlags(&dev->copies, cudaStreamNonBlocking), "stream"));
    CU_TRY(dq_cuda_check(dev, cudaMalloc((void **)&dev->fault, sizeof *dev->fault), "error flag"));
    CU_TRY(dq_cuda_check(dev, cudaMallocHost((void **)&dev->fault_host, sizeof *dev->fault), "error flag"));
    CU_TRY(dq_cuda_check(dev, cudaMalloc(&dev->result, 64), "result"));
    CU_TRY(dq_cuda_check(dev, cudaMallocHost(&dev->result_host, 64), "result"));
    CU_TRY(dq_cuda_check(dev, cudaMemsetAsync(dev->fault, 0xff, sizeof *dev->fault, dev->stream), "error flag"));
    CU_TRY(dq_cuda_make_stages(dev, (uint64_t)o->staging));
    CU_TRY(dq_cuda_check_blas(dev, cublasCreate(&dev->blas), "opening cuBLAS"));
    CU_TRY(dq_cuda_check_blas(dev, cublasSetStream(dev->blas, dev->stream), "cuBLAS stream"));
    /* A workspace of our own: results then do not depend on what else runs in the process. */
    CU_TRY(dq_cuda_check(dev, cudaMalloc(&dev->blas_workspace, BLAS_WORKSPACE), "cuBLAS workspace"));
    CU_TRY(dq_cuda_check_blas(dev, cublasSetWorkspace(dev->blas, dev->blas_workspace, BLAS_WORKSPACE), "workspace"));
    CU_TRY(dq_cuda_check_solver(dev, cusolverDnCreate(&dev->solver), "opening cuSOLVER"));
    CU_TRY(dq_cuda_check_solver(dev, cusolverDnSetStream(dev->solver, dev->stream), "cuSOLVER stream"));
    return dq_cuda_check(dev, cudaStreamSynchronize(dev->stream), "opening the card");
}

static void stop(dq_cuda_device *dev)
{
    (void)cudaSetDevice(dev->ordinal);
    if (dev->stream) (void)cudaStreamSynchronize(dev->stream);
    if (dev->copies) (void)cudaStreamSynchronize(dev->copies);
    if (dev->solver) (void)cusolverDnDestroy(dev->solver);
    if (dev->blas) (void)cublasDestroy(dev->blas);
    dq_cuda_free_stages(dev);
    if (dev->copies) (void)cudaStreamSynchronize(dev->copies);
    if (dev->pool) (void)cudaMemPoolTrimTo(dev->pool, 0);
    if (dev->blas_workspace) (void)cudaFree(dev->blas_workspace);
    if (dev->fault) (void)cudaFree(dev->fault);
    if (dev->fault_host) (void)cudaFreeHost(dev->fault_host);
    if (dev->result) (void)cudaFree(dev->result);
    if (dev->result_host) (void)cudaFreeHost(dev->result_host);
    if (dev->copies) (void)cudaStreamDestroy(dev->copies);
    if (dev->stream) (void)cudaStreamDestroy(dev->stream);
    (void)cudaGetLastError();
}

static dq_status open_card(const dq_host *host, const char *text, void **out)
{
    options o;
    CU_TRY(parse_options(host, text, &o));
    dq_cuda_device *dev = (dq_cuda_device *)host->alloc(host->self, sizeof *dev);
    if (!dev) return host->fail(host->self, DQ_E_NOMEM, 0, "cuda: no memory for the device");
    memset(dev, 0, sizeof *dev);
    dev->host = host;
    dev->ordinal = (int)o.device;
    dev->tf32 = o.tf32;
    dev->budget = (uint64_t)o.memory;
    dev->fail_at = (uint64_t)o.fail_at;
    dev->syrk_split = !o.exact;
    dev->syrk_block = (int)o.syrk_block;
    dev->syrk_parts = (int)o.syrk_parts;
    dev->overlap = !o.in_turn;
    dq_status status = start(dev, &o);
    if (status != DQ_OK) {
        stop(dev);
        host->free(host->self, dev);
        return status;
    }
    *out = dev;
    return DQ_OK;
}

static void close_card(void *device)
{
    dq_cuda_device *dev = (dq_cuda_device *)device;
    const dq_host *host = dev->host;
    stop(dev);
    host->free(host->self, dev);
}

/* What the pool holds and nobody uses is as free as what the driver calls free. */
static dq_status free_memory(dq_cuda_device *dev, uint64_t *available, uint64_t *total)
{
    uint64_t reserved = 0, used = 0;
    size_t outside = 0, all = 0;
    CU_TRY(dq_cuda_check(dev, cudaMemGetInfo(&outside, &all), "free memory"));
    CU_TRY(
        dq_cuda_check(dev, cudaMemPoolGetAttribute(dev->pool, cudaMemPoolAttrReservedMemCurrent, &reserved), "pool"));
    CU_TRY(dq_cuda_check(dev, cudaMemPoolGetAttribute(dev->pool, cudaMemPoolAttrUsedMemCurrent, &used), "pool"));
    *available = outside + (reserved > used ? reserved - used : 0);
    *total = all;
    return DQ_OK;
}

static dq_status describe(void *device, dq_device_info *out)
{
    CU_ENTER(device);
    cudaDeviceProp p;
    int driver = 0, runtime = 0, blas = 0, solver = 0;
    CU_TRY(dq_cuda_check(dev, cudaGetDeviceProperties(&p, dev->ordinal), "device properties"));
    CU_TRY(dq_cuda_check(dev, cudaDriverGetVersion(&driver), "driver version"));
    CU_TRY(dq_cuda_check(dev, cudaRuntimeGetVersion(&runtime), "runtime version"));
    CU_TRY(dq_cuda_check_blas(dev, cublasGetVersion(dev->blas, &blas), "cuBLAS version"));
    CU_TRY(dq_cuda_check_solver(dev, cusolverGetVersion(&solver), "cuSOLVER version"));
    CU_TRY(free_memory(dev, &out->memory_free, &out->memory_total));
    snprintf(out->name, sizeof out->name, "cuda:%d", dev->ordinal);
    char text[256]; /* what does not fit is cut */
    snprintf(text, sizeof text, "%.40s, sm_%d%d, driver %d.%d, runtime %d.%d, cuBLAS %d.%d.%d, cuSOLVER %d.%d.%d",
             p.name, p.major, p.minor, driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10,
             blas / 10000, blas % 10000 / 100, blas % 100, solver / 1000, solver % 1000 / 100, solver % 100);
    snprintf(out->description, sizeof out->description, "%.127s", text);
    if (dev->budget && dev->budget < out->memory_total) out->memory_total = dev->budget;
    uint64_t taken = dev->used + dev->landings;
    if (dev->budget && dev->budget - taken < out->memory_free) out->memory_free = dev->budget - taken;
    return DQ_OK;
}

static dq_backend make_table(void)
{
    dq_backend t;
    memset(&t, 0, sizeof t);
    t.struct_size = sizeof t;
    t.abi = DQ_BACKEND_ABI;
    t.name = "cuda";
    t.open = open_card;
    t.close = close_card;
    t.info = describe;
    t.alloc = dq_cuda_alloc;
    t.free = dq_cuda_free;
    t.upload = dq_cuda_upload;
    t.download = dq_cuda_download;
    t.sync = dq_cuda_sync;
    t.fill = dq_cuda_fill;
    t.convert = dq_cuda_convert;
    t.axpy = dq_cuda_axpy;
    t.scale_cols = dq_cuda_scale_cols;
    t.gather_rows = dq_cuda_gather_rows;
    t.gather_cols = dq_cuda_gather_cols;
    t.find_nonfinite = dq_cuda_find_nonfinite;
    t.dot = dq_cuda_dot;
    t.gemm = dq_cuda_gemm;
    t.rmsnorm = dq_cuda_rmsnorm;
    t.rope = dq_cuda_rope;
    t.activation = dq_cuda_activation;
    t.attention = dq_cuda_attention;
    t.head_nll = dq_cuda_head_nll;
    t.fake_quant = dq_cuda_fake_quant;
    t.hadamard = dq_cuda_hadamard;
    t.syrk = dq_cuda_syrk;
    t.diag = dq_cuda_diag;
    t.gptq_factor = dq_cuda_gptq_factor;
    t.gptq_root = dq_cuda_gptq_root;
    t.qr = dq_cuda_qr;
    t.weight_grid = dq_cuda_weight_grid;
    t.quantize_weight = dq_cuda_quantize_weight;
    t.dequantize_weight = dq_cuda_dequantize_weight;
    t.gptq_block = dq_cuda_gptq_block;
    t.rotation_loss = dq_cuda_rotation_loss;
    t.qr_batch = dq_cuda_qr_batch;
    t.qr_grad = dq_cuda_qr_grad;
    t.polar = dq_cuda_polar;
    t.compare_logits = dq_cuda_compare_logits;
    t.packed_linear = dq_cuda_packed_linear;
    t.kv_store = dq_cuda_kv_store;
    t.kv_attention = dq_cuda_kv_attention;
    t.adam = dq_cuda_adam;
    t.layernorm = dq_cuda_layernorm;
    t.rmsnorm_quant = dq_cuda_rmsnorm_quant;
    t.hadamard_quant = dq_cuda_hadamard_quant;
    t.layernorm_quant = dq_cuda_layernorm_quant;
    t.features = DQ_FEATURE_BF16;
    t.quantize_rows = dq_cuda_quantize_rows;
    t.int8_linear = dq_cuda_int8_linear;
    t.rmsnorm_rows = dq_cuda_rmsnorm_rows;
    t.layernorm_rows = dq_cuda_layernorm_rows;
    t.hadamard_rows = dq_cuda_hadamard_rows;
    t.levels_quant = dq_cuda_levels_quant;
    return t;
}

static const dq_backend table = make_table();

extern "C" DQ_API const dq_backend *dq_backend_entry(uint32_t abi);
extern "C" const dq_backend *dq_backend_entry(uint32_t abi) { return abi == DQ_BACKEND_ABI ? &table : NULL; }
