/* Uploads against work on a simulated card whose streams keep no other order than events and waits give them: everything as
 * late as possible, work first, copies first. A missing wait has to show, which is tried as well. Only for cudasim: a real
 * card would be right by luck. SPDX-License-Identifier: Apache-2.0 */
#include <dartquant/backend.h>

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "simulated.h"

enum { UPLOADS = 120, LARGEST = 9 << 20, ROOM = 72 << 20 };

static const dq_backend *card;
static char message[512];

/* ---- a host ---- */

static void *host_alloc(void *self, size_t bytes)
{
    (void)self;
    return malloc(bytes);
}
static void host_free(void *self, void *ptr)
{
    (void)self;
    free(ptr);
}
static void host_run(void *self, int64_t count, void (*task)(void *arg, int64_t i, int thread), void *arg)
{
    (void)self;
    for (int64_t i = count; i-- > 0;) task(arg, i, 0);
}
static int host_threads(void *self)
{
    (void)self;
    return 1;
}
static dq_status host_fail(void *self, dq_status status, int64_t code, const char *text)
{
    (void)self;
    snprintf(message, sizeof message, "%s (%lld)", text, (long long)code);
    return status;
}

static const dq_host host = {sizeof(dq_host), DQ_BACKEND_ABI, NULL,         host_alloc,
                             host_free,       host_run,       host_threads, host_fail};

static void ok(dq_status status)
{
    if (status != DQ_OK) fail_msg("%d: %s", status, message);
}

static int set_up(void **state)
{
    (void)state;
    char path[PATH_MAX];
    if (!find_simulated_card(path)) return -1;
    void *file = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = file ? dlsym(file, DQ_BACKEND_ENTRY) : NULL;
    dq_backend_entry_fn entry;
    memcpy(&entry, &symbol, sizeof entry);
    card = symbol ? entry(DQ_BACKEND_ABI) : NULL;
    if (!card) print_message("%s: %s\n", path, dlerror());
    return card ? 0 : -1;
}

/* ---- uploads of all sizes, each used once while the next ones come ---- */

static uint32_t draw(uint32_t *state) { return *state = *state * 1664525u + 1013904223u; }

static dq_view bytes_at(void *mem, uint64_t offset, uint64_t bytes)
{
    return (dq_view){mem, offset, 1, (int64_t)bytes, (int64_t)bytes, DQ_U8, 0};
}

/* How many bytes of the card's memory are not what was uploaded. */
static int64_t wrong_bytes(const char *options)
{
    static uint8_t source[LARGEST], want[ROOM], got[ROOM];
    void *dev, *all, *mem = NULL;
    uint64_t filled = 0, bytes = 0;
    uint32_t seed = 7;
    ok(card->open(&host, options, &dev));
    ok(card->alloc(dev, ROOM, &all));
    for (int i = 0; i < UPLOADS; i++) {
        /* a few bytes, a row, a weight; every other time into memory whose last content is still to be read */
        static const uint64_t most[] = {64, 20000, 400000, 3 << 20};
        if (i % 2 == 0) bytes = i == 60 ? LARGEST : 1 + (draw(&seed) >> 4) % most[i / 2 % 4];
        if (filled + bytes > ROOM) break;
        memset(source, (int)(draw(&seed) >> 24), bytes);
        if (i % 2 == 0) ok(card->alloc(dev, bytes, &mem));
        ok(card->upload(dev, mem, 0, source, bytes));
        memcpy(want + filled, source, bytes);
        memset(source, 0, bytes); /* the caller may */
        dq_view from = bytes_at(mem, 0, bytes), to = bytes_at(all, filled, bytes);
        ok(card->convert(dev, &from, &to));
        filled += bytes;
        if (i % 2) card->free(dev, mem); /* for the next one, while the copy waits in its queue */
    }
    ok(card->download(dev, got, all, 0, filled));
    int64_t wrong = 0;
    for (uint64_t i = 0; i < filled; i++) wrong += want[i] != got[i];
    card->free(dev, all);
    card->close(dev);
    assert_true(filled > (40u << 20)); /* staging of 32 MiB went round */
    return wrong;
}

static const char *const orders[] = {"late", "kernels", "copies"};
enum { ORDERS = sizeof orders / sizeof *orders };

static void any_order_will_do(void **state)
{
    (void)state;
    static const char *const options[] = {"", "staging=33554432", "overlap=off", "overlap=off,staging=33554432",
                                          "memory=400000000"};
    for (int k = 0; k < ORDERS; k++) {
        setenv("CUDASIM_RUN", orders[k], 1);
        for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
            int64_t wrong = wrong_bytes(options[i]);
            if (wrong) fail_msg("%s, '%s': %lld bytes are wrong", orders[k], options[i], (long long)wrong);
        }
    }
}

/* Work that does not wait for the copies it needs reads what has not arrived. */
static void a_missing_wait_shows(void **state)
{
    (void)state;
    setenv("CUDASIM_DROP", "waits", 1);
    setenv("CUDASIM_RUN", "late", 1);
    assert_true(wrong_bytes("") > 0);
    setenv("CUDASIM_RUN", "kernels", 1);
    assert_true(wrong_bytes("") > 0);
    setenv("CUDASIM_RUN", "late", 1);
    assert_true(wrong_bytes("overlap=off") == 0); /* one stream needs no events */
    unsetenv("CUDASIM_DROP");
}

/* A host that does not wait for staging to be free writes over what is on its way: before the bus, or before it has moved. */
static void staging_used_too_soon_shows(void **state)
{
    (void)state;
    setenv("CUDASIM_DROP", "host", 1);
    setenv("CUDASIM_RUN", "late", 1);
    assert_true(wrong_bytes("staging=33554432") > 0);
    assert_true(wrong_bytes("staging=33554432,overlap=off") > 0);
    setenv("CUDASIM_RUN", "copies", 1);
    assert_true(wrong_bytes("staging=33554432") > 0);
    unsetenv("CUDASIM_DROP");
}

/* Landings are the first to go where memory is short, and a small budget has none. */
static void landings_give_way(void **state)
{
    (void)state;
    static uint8_t source[LARGEST];
    enum { BUDGET = 200 << 20, FIRST = 150 << 20, SECOND = 45 << 20 };
    dq_device_info before = {.struct_size = sizeof before}, after = before;
    char options[64];
    void *dev, *a, *b;
    setenv("CUDASIM_RUN", "late", 1);
    snprintf(options, sizeof options, "memory=%d", BUDGET);
    ok(card->open(&host, options, &dev));
    ok(card->alloc(dev, FIRST, &a));
    ok(card->upload(dev, a, 0, source, LARGEST));
    ok(card->info(dev, &before));
    assert_true(before.memory_free < BUDGET - FIRST); /* a landing is counted */
    ok(card->alloc(dev, SECOND, &b));
    ok(card->info(dev, &after));
    assert_true(after.memory_free <= BUDGET - FIRST - SECOND);
    ok(card->upload(dev, b, 0, source, LARGEST)); /* in its turn */
    void *none = NULL;
    assert_int_equal(card->alloc(dev, BUDGET - FIRST - SECOND + 1, &none), DQ_E_DEVICE_MEMORY);
    assert_non_null(strstr(message, "does not fit"));
    card->free(dev, a);
    card->free(dev, b);
    card->close(dev);
}

/* What the pool keeps is free memory, also for a tensor of another size, and landings stay where that is enough. */
static void kept_memory_is_free(void **state)
{
    (void)state;
    static uint8_t source[LARGEST];
    enum { CARD = 300 << 20, FIRST = 100 << 20, SECOND = 200 << 20 };
    dq_device_info before = {.struct_size = sizeof before}, after = before, with_landing = before;
    char bytes[24];
    void *dev, *a, *b;
    setenv("CUDASIM_RUN", "late", 1);
    snprintf(bytes, sizeof bytes, "%d", CARD);
    setenv("CUDASIM_MEMORY", bytes, 1);
    ok(card->open(&host, "", &dev));
    ok(card->alloc(dev, FIRST, &a));
    ok(card->upload(dev, a, 0, source, LARGEST));
    ok(card->sync(dev));
    ok(card->info(dev, &before));
    card->free(dev, a);
    ok(card->info(dev, &after));
    assert_int_equal(after.memory_free, before.memory_free + FIRST);
    ok(card->alloc(dev, SECOND, &b));
    ok(card->info(dev, &with_landing));
    assert_int_equal(with_landing.memory_free, after.memory_free - SECOND); /* no landing was given up */
    card->free(dev, b);
    card->close(dev);
    unsetenv("CUDASIM_MEMORY");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_order_will_do), cmocka_unit_test(a_missing_wait_shows),
                                       cmocka_unit_test(staging_used_too_soon_shows),
                                       cmocka_unit_test(landings_give_way), cmocka_unit_test(kept_memory_is_free)};
    return cmocka_run_group_tests(tests, set_up, NULL);
}
