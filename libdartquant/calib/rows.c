/* Row sets: seeded draws within a byte budget, training and held-out parts, batches. SPDX-License-Identifier: Apache-2.0 */
#include "calib/rows.h"

#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "base/status.h"

static const char *const kind_names[DQ_ROW_KINDS] = {"activation", "sink", "weight"};

/* Room a kind begins with; it doubles up to this part of the capacity and then goes there at once, because while rows move
 * both rooms exist. (Memory that was never written is not resident where the device is the CPU.) */
enum { FIRST_ROWS = 1024, DOUBLED_PART = 8 };

/* The rows of one kind. */
typedef struct row_store {
    dq_tensor data;   /* [room, width] */
    int64_t capacity; /* most rows that are kept */
    int64_t room;     /* rows allocated */
    int64_t kept;     /* rows in use */
    int64_t seen;     /* rows ever added */
    dq_rng rng;       /* decides which rows stay */
    int32_t *order;   /* sealed: places of the training rows, then of the held-out ones */
    int64_t train;    /* sealed: training rows */
    dq_tensor index;  /* sealed: I32 [1, kept], the order of `epoch` */
    int64_t epoch;    /* of index; -1 = none yet */
} row_store;

struct dq_rows {
    dq_device *dev;
    dq_env *env;
    dq_rows_spec spec;
    bool sealed;
    row_store kinds[DQ_ROW_KINDS];
};

const char *dq_row_kind_name(dq_row_kind kind) { return kind < DQ_ROW_KINDS ? kind_names[kind] : "?"; }
const dq_rows_spec *dq_rows_get_spec(const dq_rows *rows) { return &rows->spec; }
dq_device *dq_rows_device(const dq_rows *rows) { return rows->dev; }
bool dq_rows_sealed(const dq_rows *rows) { return rows->sealed; }
int64_t dq_rows_seen(const dq_rows *rows, dq_row_kind kind) { return rows->kinds[kind].seen; }
int64_t dq_rows_count(const dq_rows *rows, dq_row_kind kind) { return rows->kinds[kind].kept; }

int64_t dq_rows_capacity(const dq_rows *rows, dq_row_kind kind) { return rows->kinds[kind].capacity; }

dq_tensor dq_rows_view(const dq_rows *rows, dq_row_kind kind)
{
    const row_store *s = &rows->kinds[kind];
    return s->kept ? dq_tensor_rows(&s->data, 0, s->kept) : (dq_tensor){0};
}

int64_t dq_rows_part(const dq_rows *rows, dq_row_kind kind, dq_row_part part)
{
    const row_store *s = &rows->kinds[kind];
    if (!rows->sealed) return 0;
    return part == DQ_ROWS_TRAIN ? s->train : s->kept - s->train;
}

/* One stream of numbers per purpose, so that more rows of one kind change nothing for the others. */
static void seed_stream(const dq_rows *rows, dq_row_kind kind, uint64_t purpose, dq_rng *rng)
{
    dq_rng_seed_python(rng, (rows->spec.seed * 0x9e3779b97f4a7c15u) ^ (((uint64_t)kind + 1) << 56) ^ purpose);
}

static dq_status check_spec(const dq_rows_spec *s)
{
    double sum = 0;
    if (s->width < 1 || s->width > INT32_MAX) return dq_fail(DQ_E_INVALID, "rows of %lld numbers", (long long)s->width);
    if (s->dtype != DQ_F32 && s->dtype != DQ_F16 && s->dtype != DQ_BF16)
        return dq_fail(DQ_E_INVALID, "rows cannot be kept as %s", dq_dtype_name(s->dtype));
    if (!(s->held_out >= 0 && s->held_out <= 0.5))
        return dq_fail(DQ_E_INVALID, "a held-out share of %g is not in [0, 0.5]", s->held_out);
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        if (!(s->share[k] >= 0)) return dq_fail(DQ_E_INVALID, "budget share %g of %s rows", s->share[k], kind_names[k]);
        sum += s->share[k];
    }
    if (!(sum > 0 && sum <= 1 + 1e-9)) return dq_fail(DQ_E_INVALID, "the budget shares sum up to %g", sum);
    return DQ_OK;
}

dq_status dq_rows_new(dq_device *dev, const dq_rows_spec *spec, dq_rows **out)
{
    DQ_TRY(check_spec(spec));
    dq_rows *rows = dq_calloc(dq_device_env(dev), 1, sizeof *rows);
    if (!rows) return DQ_E_NOMEM;
    rows->dev = dev;
    rows->env = dq_device_env(dev);
    rows->spec = *spec;
    double row_bytes = (double)spec->width * (double)dq_dtype_size(spec->dtype);
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        row_store *s = &rows->kinds[k];
        double most = (double)spec->budget * spec->share[k] / row_bytes;
        s->capacity = spec->share[k] == 0 ? 0 : most < 1 ? 1 : most > INT32_MAX ? INT32_MAX : (int64_t)most;
        s->epoch = -1;
        seed_stream(rows, (dq_row_kind)k, 0, &s->rng);
    }
    *out = rows;
    return DQ_OK;
}

void dq_rows_free(dq_rows *rows)
{
    if (!rows) return;
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        dq_tensor_free(&rows->kinds[k].data);
        dq_tensor_free(&rows->kinds[k].index);
        dq_free(rows->kinds[k].order);
    }
    dq_free(rows);
}

/* ---- adding ---- */

/* Moves the rows of a kind to memory for `room` of them. */
static dq_status move_rows(dq_rows *rows, row_store *s, int64_t room)
{
    dq_tensor larger = {0};
    dq_status status = dq_tensor_alloc(rows->dev, rows->spec.dtype, room, rows->spec.width, &larger);
    if (status == DQ_OK && s->kept > 0) {
        dq_tensor from = dq_tensor_rows(&s->data, 0, s->kept), to = dq_tensor_rows(&larger, 0, s->kept);
        status = dq_op_convert(&from, &to);
    }
    if (status != DQ_OK) {
        dq_tensor_free(&larger);
        return status;
    }
    dq_tensor_free(&s->data);
    s->data = larger;
    s->room = room;
    return DQ_OK;
}

/* Room for `wanted` rows, at most the capacity. */
static dq_status make_room(dq_rows *rows, row_store *s, int64_t wanted)
{
    if (wanted > s->capacity) wanted = s->capacity;
    if (wanted <= s->room) return DQ_OK;
    int64_t room = s->room * 2 < FIRST_ROWS ? FIRST_ROWS : s->room * 2;
    if (room < wanted) room = wanted;
    if (room > s->capacity / DOUBLED_PART) room = s->capacity;
    return move_rows(rows, s, room);
}

dq_status dq_rows_expect(dq_rows *rows, dq_row_kind kind, int64_t count)
{
    row_store *s = &rows->kinds[kind];
    if (count > s->capacity) count = s->capacity;
    return count > s->room ? move_rows(rows, s, count) : DQ_OK;
}

static dq_status copy_rows(row_store *s, int64_t to, const dq_tensor *x, int64_t from, int64_t count)
{
    dq_tensor source = dq_tensor_rows(x, from, count), target = dq_tensor_rows(&s->data, to, count);
    return dq_op_convert(&source, &target);
}

dq_status dq_rows_add(dq_rows *rows, dq_row_kind kind, const dq_tensor *x)
{
    int64_t bad = -1;
    if (!rows->sealed && x->view.cols == rows->spec.width && x->view.rows > 0) DQ_TRY(dq_op_find_nonfinite(x, &bad));
    if (bad >= 0)
        return dq_fail(DQ_E_NONFINITE, "%s row %lld is not finite at column %lld", kind_names[kind],
                       (long long)(bad / x->view.cols), (long long)(bad % x->view.cols));
    return dq_rows_add_finite(rows, kind, x);
}

dq_status dq_rows_add_finite(dq_rows *rows, dq_row_kind kind, const dq_tensor *x)
{
    row_store *s = &rows->kinds[kind];
    int64_t m = x->view.rows;
    if (rows->sealed) return dq_fail(DQ_E_STATE, "the row set is sealed: no more rows");
    if (x->view.cols != rows->spec.width)
        return dq_fail(DQ_E_INVALID, "%s rows of %lld numbers, must be %lld", kind_names[kind], (long long)x->view.cols,
                       (long long)rows->spec.width);
    if (m == 0 || s->capacity == 0) return DQ_OK;
    DQ_TRY(make_room(rows, s, s->kept + m));
    int64_t fill = s->capacity - s->kept < m ? s->capacity - s->kept : m;
    if (fill > 0) DQ_TRY(copy_rows(s, s->kept, x, 0, fill));
    s->kept += fill;
    s->seen += fill;
    for (int64_t i = fill; i < m; i++) { /* algorithm R: row number t stays with probability capacity / t */
        int64_t place = (int64_t)dq_rng_below(&s->rng, (uint64_t)s->seen + 1);
        s->seen++;
        if (place < s->capacity) DQ_TRY(copy_rows(s, place, x, i, 1));
    }
    return DQ_OK;
}

/* ---- parts and batches ---- */

static void shuffle(dq_rng *rng, int32_t *a, int64_t n)
{
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)dq_rng_below(rng, (uint64_t)i + 1);
        int32_t swap = a[i];
        a[i] = a[j];
        a[j] = swap;
    }
}

/* Order 0: training rows, then held-out ones. */
static dq_status part_rows(dq_rows *rows, dq_row_kind kind)
{
    row_store *s = &rows->kinds[kind];
    dq_rng rng;
    if (s->kept == 0) return DQ_OK;
    s->order = dq_alloc(rows->env, (size_t)s->kept * sizeof *s->order);
    if (!s->order) return DQ_E_NOMEM;
    for (int64_t i = 0; i < s->kept; i++) s->order[i] = (int32_t)i;
    seed_stream(rows, kind, 1, &rng);
    shuffle(&rng, s->order, s->kept);
    s->train = s->kept - (int64_t)floor((double)s->kept * rows->spec.held_out);
    return dq_tensor_alloc(rows->dev, DQ_I32, 1, s->kept, &s->index);
}

void dq_rows_unseal(dq_rows *rows)
{
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        row_store *s = &rows->kinds[k];
        dq_tensor_free(&s->index);
        dq_free(s->order);
        s->order = NULL;
        s->train = 0;
        s->epoch = -1;
    }
    rows->sealed = false;
}

dq_status dq_rows_seal(dq_rows *rows)
{
    int64_t total = 0;
    if (rows->sealed) return DQ_OK;
    for (int k = 0; k < DQ_ROW_KINDS; k++) total += rows->kinds[k].kept;
    if (total == 0) return dq_fail(DQ_E_INVALID, "there are no rows to fit a rotation to");
    dq_status status = DQ_OK;
    for (int k = 0; k < DQ_ROW_KINDS && status == DQ_OK; k++) status = part_rows(rows, (dq_row_kind)k);
    if (status != DQ_OK)
        dq_rows_unseal(rows);
    else
        rows->sealed = true;
    return status;
}

/* The index on the device follows the epoch: its training part in an order that depends on seed, kind and epoch alone. */
static dq_status turn_to_epoch(dq_rows *rows, dq_row_kind kind, int64_t epoch)
{
    row_store *s = &rows->kinds[kind];
    dq_rng rng;
    if (s->epoch == epoch) return DQ_OK;
    int32_t *order = dq_alloc(rows->env, (size_t)s->kept * sizeof *order);
    if (!order) return DQ_E_NOMEM;
    memcpy(order, s->order, (size_t)s->kept * sizeof *order);
    seed_stream(rows, kind, 2 + (uint64_t)epoch, &rng);
    shuffle(&rng, order, s->train);
    dq_status status = dq_tensor_upload(&s->index, order);
    dq_free(order);
    s->epoch = status == DQ_OK ? epoch : -1;
    return status;
}

dq_status dq_rows_batch(dq_rows *rows, dq_row_kind kind, dq_row_part part, int64_t epoch, int64_t first, int64_t count,
                        dq_tensor *out)
{
    row_store *s = &rows->kinds[kind];
    int64_t there = dq_rows_part(rows, kind, part);
    if (!rows->sealed) return dq_fail(DQ_E_STATE, "the row set is not sealed yet");
    if (epoch < 0 || first < 0 || count < 1 || first > there - count)
        return dq_fail(DQ_E_INVALID, "%s rows %lld to %lld of epoch %lld, there are %lld", kind_names[kind],
                       (long long)first, (long long)(first + count), (long long)epoch, (long long)there);
    if (part == DQ_ROWS_HELD_OUT) {
        first += s->train; /* the same in every epoch */
        if (s->epoch < 0) DQ_TRY(turn_to_epoch(rows, kind, epoch));
    } else {
        DQ_TRY(turn_to_epoch(rows, kind, epoch));
    }
    dq_tensor index = dq_tensor_slice(&s->index, 0, 1, first, count);
    dq_tensor data = dq_tensor_rows(&s->data, 0, s->kept);
    return dq_op_gather_rows(&data, &index, out);
}

/* ---- identity ---- */

dq_status dq_rows_fingerprint(const dq_rows *rows, uint64_t *out)
{
    enum { CHUNK_BYTES = 1 << 22 };
    uint64_t h = 1469598103934665603u;
    size_t row_bytes = (size_t)rows->spec.width * dq_dtype_size(rows->spec.dtype);
    int64_t chunk = row_bytes < CHUNK_BYTES ? (int64_t)(CHUNK_BYTES / row_bytes) : 1;
    unsigned char *bytes = dq_alloc(rows->env, (size_t)chunk * row_bytes);
    if (!bytes) return DQ_E_NOMEM;
    dq_status status = DQ_OK;
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        const row_store *s = &rows->kinds[k];
        h = (h ^ (uint64_t)s->kept) * 1099511628211u;
        for (int64_t r = 0; r < s->kept; r += chunk) {
            int64_t count = s->kept - r < chunk ? s->kept - r : chunk;
            dq_tensor part = dq_tensor_rows(&s->data, r, count);
            DQ_GO(dq_tensor_download(&part, bytes));
            size_t words = (size_t)count * row_bytes / 2;
            for (size_t i = 0; i < words; i++) {
                uint16_t word;
                memcpy(&word, bytes + 2 * i, 2);
                h = (h ^ word) * 1099511628211u;
            }
        }
    }
    *out = h;
done:
    dq_free(bytes);
    return status;
}

/* ---- state ---- */

typedef struct saved_store {
    int64_t kept, seen;
    dq_rng rng;
} saved_store;

dq_status dq_rows_save(const dq_rows *rows, const dq_put *put)
{
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        const row_store *s = &rows->kinds[k];
        saved_store head;
        memset(&head, 0, sizeof head); /* no stray bytes between the members */
        head.kept = s->kept;
        head.seen = s->seen;
        head.rng = s->rng;
        dq_tensor kept = dq_rows_view(rows, (dq_row_kind)k);
        DQ_TRY(dq_put_bytes(put, &head, sizeof head));
        DQ_TRY(dq_put_tensor(rows->env, put, &kept));
    }
    return DQ_OK;
}

dq_status dq_rows_load(dq_rows *rows, const dq_get *get)
{
    for (int k = 0; k < DQ_ROW_KINDS; k++) {
        row_store *s = &rows->kinds[k];
        saved_store head;
        if (s->kept || rows->sealed) return dq_fail(DQ_E_STATE, "rows are loaded into an empty set");
        DQ_TRY(dq_get_bytes(get, &head, sizeof head));
        if (head.kept < 0 || head.kept > s->capacity || head.seen < head.kept)
            return dq_fail(DQ_E_FORMAT, "%lld saved %s rows for a capacity of %lld", (long long)head.kept,
                           kind_names[k], (long long)s->capacity);
        DQ_TRY(make_room(rows, s, head.kept));
        s->kept = head.kept;
        s->seen = head.seen;
        s->rng = head.rng;
        dq_tensor kept = dq_rows_view(rows, (dq_row_kind)k);
        DQ_TRY(dq_get_tensor(rows->env, get, &kept));
    }
    return DQ_OK;
}
