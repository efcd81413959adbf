/* The CPU backend's table and device: the reference table with faster slots, at the SIMD level found or asked for.
 * SPDX-License-Identifier: Apache-2.0 */
#include <cblas.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "backend/cpu/cpu.h"

/* ---- options ---- */

typedef enum level { LEVEL_AUTO, LEVEL_PLAIN, LEVEL_AVX2, LEVEL_AVX512, LEVEL_AMX, LEVEL_COUNT } level;
static const char *const level_names[LEVEL_COUNT] = {"auto", "plain", "avx2", "avx512", "amx"};

static const char *best_name(dq_simd simd, bool amx)
{
    return amx ? "amx" : simd == DQ_SIMD_AVX512 ? "avx512" : simd == DQ_SIMD_AVX2 ? "avx2" : "plain";
}

/* Sets *out from one "simd=LEVEL" of length n; anything else is refused by name. */
static dq_status parse_option(const dq_host *host, const char *text, size_t n, level *out)
{
    char message[160];
    if (n > 5 && strncmp(text, "simd=", 5) == 0) {
        for (int i = 0; i < LEVEL_COUNT; i++) {
            if (strlen(level_names[i]) == n - 5 && strncmp(text + 5, level_names[i], n - 5) == 0) {
                *out = (level)i;
                return DQ_OK;
            }
        }
        snprintf(message, sizeof message, "cpu: simd level '%.*s' is not one of plain, avx2, avx512, amx, auto",
                 (int)(n - 5 < 40 ? n - 5 : 40), text + 5);
    } else {
        snprintf(message, sizeof message, "cpu: unknown option '%.*s'; known: simd=plain|avx2|avx512|amx|auto",
                 (int)(n < 40 ? n : 40), text);
    }
    return host->fail(host->self, DQ_E_INVALID, 0, message);
}

static dq_status parse_options(const dq_host *host, const char *options, level *out)
{
    const char *p = options ? options : "";
    *out = LEVEL_AUTO;
    while (*p) {
        size_t n = strcspn(p, ",");
        if (n > 0) {
            dq_status status = parse_option(host, p, n, out);
            if (status != DQ_OK) return status;
        }
        p += n + (p[n] == ',');
    }
    return DQ_OK;
}

/* Takes from what the machine has only what the level allows. */
static dq_status choose_level(const dq_host *host, level want, dq_cpu_dev *dev)
{
    dev->simd = dq_cpu_detect(&dev->vnni, &dev->bf16, &dev->amx);
    bool lacking = (want == LEVEL_AVX2 && dev->simd < DQ_SIMD_AVX2) ||
                   (want == LEVEL_AVX512 && dev->simd < DQ_SIMD_AVX512) || (want == LEVEL_AMX && !dev->amx);
    if (lacking) {
        char message[160];
        snprintf(message, sizeof message, "cpu: simd=%s was asked for, but this processor and system offer at most %s",
                 level_names[want], best_name(dev->simd, dev->amx));
        return host->fail(host->self, DQ_E_UNSUPPORTED, 0, message);
    }
    if (want == LEVEL_PLAIN) dev->simd = DQ_SIMD_PLAIN;
    if (want == LEVEL_AVX2) dev->simd = DQ_SIMD_AVX2;
    if (want != LEVEL_AUTO && want != LEVEL_AMX) dev->amx = false;
    if (dev->simd < DQ_SIMD_AVX512) dev->vnni = dev->bf16 = false;
    return DQ_OK;
}

/* ---- device ---- */

static dq_status cpu_open(const dq_host *host, const char *options, void **out)
{
    level want;
    dq_status status = parse_options(host, options, &want);
    if (status != DQ_OK) return status;
    dq_cpu_dev *dev = host->alloc(host->self, sizeof *dev);
    if (!dev) return host->fail(host->self, DQ_E_NOMEM, 0, "cpu: no memory for the device");
    memset(dev, 0, sizeof *dev);
    dev->ref.host = host;
    dev->threads = host->threads(host->self);
    status = choose_level(host, want, dev);
    if (status == DQ_OK && pthread_mutex_init(&dev->scratch_lock, NULL) != 0) {
        status = host->fail(host->self, DQ_E_BACKEND, 0, "cpu: pthread_mutex_init failed");
    }
    if (status != DQ_OK) {
        host->free(host->self, dev);
        return status;
    }
    *out = dev;
    return DQ_OK;
}

static void cpu_close(void *device)
{
    dq_cpu_dev *dev = device;
    const dq_host *host = dev->ref.host;
    for (int i = 0; i < DQ_CPU_SCRATCH; i++) host->free(host->self, dev->scratch[i].ptr);
    pthread_mutex_destroy(&dev->scratch_lock);
    host->free(host->self, dev);
}

static dq_status cpu_info(void *device, dq_device_info *out)
{
    dq_cpu_dev *dev = device;
    dq_status status = dq_ref_backend()->info(device, out);
    if (status != DQ_OK) return status;
    const char *simd = dev->simd == DQ_SIMD_AVX512 ? "avx512" : dev->simd == DQ_SIMD_AVX2 ? "avx2" : "plain";
    snprintf(out->name, sizeof out->name, "cpu:%s%s%s", simd, dev->bf16 ? "+bf16" : "", dev->amx ? "+amx" : "");
    snprintf(out->description, sizeof out->description, "%d threads; %.80s; core %.16s", dev->threads,
             openblas_get_config(), openblas_get_corename());
    return DQ_OK;
}

/* ---- scratch ---- */

/* Fresh large allocations cost a page fault per page on every op, so released buffers are kept for the next op. */
void *dq_cpu_scratch_take(dq_cpu_dev *dev, size_t bytes)
{
    const dq_host *host = dev->ref.host;
    void *ptr = NULL, *stale = NULL;
    pthread_mutex_lock(&dev->scratch_lock);
    dq_cpu_scratch *pick = NULL;
    for (int i = 0; i < DQ_CPU_SCRATCH; i++) { /* the smallest that is large enough */
        dq_cpu_scratch *s = &dev->scratch[i];
        if (!s->busy && s->ptr && s->bytes >= bytes && (!pick || s->bytes < pick->bytes)) pick = s;
    }
    for (int i = 0; i < DQ_CPU_SCRATCH && !pick; i++) { /* else grow a free one */
        dq_cpu_scratch *s = &dev->scratch[i];
        if (s->busy) continue;
        stale = s->ptr;
        s->ptr = NULL;
        s->bytes = bytes;
        pick = s;
    }
    if (pick) pick->busy = true;
    pthread_mutex_unlock(&dev->scratch_lock);
    if (stale) host->free(host->self, stale);
    if (pick && pick->ptr) return pick->ptr;
    ptr = host->alloc(host->self, bytes);
    if (pick) {
        pthread_mutex_lock(&dev->scratch_lock);
        pick->ptr = ptr;
        if (!ptr) pick->busy = false, pick->bytes = 0;
        pthread_mutex_unlock(&dev->scratch_lock);
    }
    if (!ptr) host->fail(host->self, DQ_E_NOMEM, 0, "cpu: no memory for an op's scratch space");
    return ptr;
}

void dq_cpu_scratch_give(dq_cpu_dev *dev, void *ptr)
{
    if (!ptr) return;
    const dq_host *host = dev->ref.host;
    bool kept = false;
    pthread_mutex_lock(&dev->scratch_lock);
    for (int i = 0; i < DQ_CPU_SCRATCH && !kept; i++) {
        dq_cpu_scratch *s = &dev->scratch[i];
        if (s->ptr != ptr) continue;
        kept = true;
        s->busy = false;
        if (s->bytes <= DQ_CPU_SCRATCH_KEEP) continue;
        s->ptr = NULL; /* too large to hold on to */
        s->bytes = 0;
        kept = false;
        break;
    }
    pthread_mutex_unlock(&dev->scratch_lock);
    if (!kept) host->free(host->self, ptr);
}

/* ---- table ---- */

static dq_backend table;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void fill_table(void)
{
    table = *dq_ref_backend();
    table.name = "cpu";
    table.open = cpu_open;
    table.close = cpu_close;
    table.info = cpu_info;
    dq_cpu_fill_forward(&table);
    dq_cpu_fill_quantize(&table);
    dq_cpu_fill_fit(&table);
    table.quantize_rows = NULL; /* products of fake-quantized floats are the faster ones here */
    table.int8_linear = NULL;
}

const dq_backend *dq_cpu_backend(void)
{
    pthread_once(&once, fill_table);
    return &table;
}
