/* Hadamard matrices of order n = k * 2^m from published constructions; no table is copied from anywhere.
 *   Sylvester (1867)   2^m: entry (-1)^popcount(i & j)
 *   Paley (1933) I     q + 1 with q prime, q = 3 mod 4
 *   Paley (1933) II    2 (q + 1) with q prime, q = 1 mod 4
 *   Williamson (1944)  52, 156, 172 from four symmetric circulant blocks
 * docs/numerics.md says which one is chosen for which order. SPDX-License-Identifier: Apache-2.0 */
#include "rotation/rotation.h"

#include <string.h>

#include "base/status.h"

/* Cores above this would cost more per row than they are worth (k additions for each element). */
enum { MAX_CORE = 4096 };

/* QuaRot's order of testing: the first entry that divides n wins, so 40 stands after 28 and before 20. */
static const int64_t TABULATED[] = {172, 156, 140, 108, 60, 52, 36, 28, 40, 20, 12};

/* First rows of Williamson's blocks A, B, C, D, entries 0 .. (order/4)/2; the rest follows from r[s-i] = r[i]. */
static const struct {
    int64_t order;
    const char *rows[4];
} WILLIAMSON[] = {
    {52, {"+-+--++", "+---+++", "++-+--+", "+----+-"}},
    {156, {"+++--+-+-----+--++--", "++++---+--++----+-+-", "+++--++-+---+-+--+--", "+---++-+-+-----+++-+"}},
    {172, {"+---++--++++-+-+++-++-", "++-++++++----+-+--++-+", "+++-+-++--+-+-++++-+--", "++---++++-+--+--++----"}},
};

static bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

static bool is_prime(int64_t n)
{
    if (n < 2) return false;
    for (int64_t d = 2; d * d <= n; d++)
        if (n % d == 0) return false;
    return true;
}

static bool is_paley1(int64_t k) { return k >= 4 && (k - 1) % 4 == 3 && is_prime(k - 1); }
static bool is_paley2(int64_t k) { return k >= 4 && k % 2 == 0 && (k / 2 - 1) % 4 == 1 && is_prime(k / 2 - 1); }

/* The factor k of n, or 0. Tabulated orders first; then the smallest k = n / 2^m that Paley covers. */
static int64_t choose_core(int64_t n)
{
    if (is_power_of_two(n)) return 1;
    for (size_t i = 0; i < sizeof TABULATED / sizeof *TABULATED; i++)
        if (n % TABULATED[i] == 0 && is_power_of_two(n / TABULATED[i])) return TABULATED[i];
    int64_t odd = n;
    while (odd % 2 == 0) odd /= 2;
    for (int64_t k = odd; k <= n && k <= MAX_CORE; k *= 2)
        if (k % 4 == 0 && (is_paley1(k) || is_paley2(k))) return k;
    return 0;
}

/* chi[x] = Legendre symbol (x / q) for x = 0 .. q-1. */
static void legendre(int64_t q, int8_t *chi)
{
    memset(chi, -1, (size_t)q);
    for (int64_t x = 1; x < q; x++) chi[x * x % q] = 1;
    chi[0] = 0;
}

static int8_t chi_difference(const int8_t *chi, int64_t q, int64_t i, int64_t j)
{
    return chi[i >= j ? i - j : i - j + q];
}

/* H[0] = (1, -1, ..., -1), H[i][0] = 1, H[i][i] = 1, else chi(i - j). */
static void paley1(int64_t k, const int8_t *chi, int8_t *h)
{
    int64_t q = k - 1;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) {
            int8_t v;
            if (i == 0)
                v = j == 0 ? 1 : -1;
            else if (j == 0 || i == j)
                v = 1;
            else
                v = chi_difference(chi, q, i - 1, j - 1);
            h[i * k + j] = v;
        }
}

/* S symmetric with zero diagonal, border 1 and core chi(i - j): H = [[S + I, S - I], [S - I, -S - I]]. */
static void paley2(int64_t k, const int8_t *chi, int8_t *h)
{
    int64_t s = k / 2, q = s - 1;
    for (int64_t i = 0; i < s; i++)
        for (int64_t j = 0; j < s; j++) {
            int8_t v, unit = i == j;
            if (i == j)
                v = 0;
            else if (i == 0 || j == 0)
                v = 1;
            else
                v = chi_difference(chi, q, i - 1, j - 1);
            h[i * k + j] = (int8_t)(v + unit);
            h[i * k + s + j] = (int8_t)(v - unit);
            h[(s + i) * k + j] = (int8_t)(v - unit);
            h[(s + i) * k + s + j] = (int8_t)(-v - unit);
        }
}

/* Rows of blocks (A, B, C, D), (-B, A, -D, C), (-C, D, A, -B), (-D, -C, B, A). */
static void williamson(int64_t k, const char *const rows[4], int8_t *h)
{
    static const int8_t block[4][4] = {{0, 1, 2, 3}, {1, 0, 3, 2}, {2, 3, 0, 1}, {3, 2, 1, 0}};
    static const int8_t sign[4][4] = {{1, 1, 1, 1}, {-1, 1, -1, 1}, {-1, 1, 1, -1}, {-1, -1, 1, 1}};
    int64_t s = k / 4;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) {
            int64_t bi = i / s, bj = j / s;
            int64_t shift = (j % s - i % s + s) % s; /* circulant */
            if (shift > s / 2) shift = s - shift;    /* symmetric */
            int8_t v = rows[block[bi][bj]][shift] == '+' ? 1 : -1;
            h[i * k + j] = (int8_t)(sign[bi][bj] * v);
        }
}

/* [[H, H], [H, -H]] from h of order half. */
static void doubled(int64_t half, const int8_t *src, int8_t *h)
{
    int64_t k = 2 * half;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) {
            int8_t v = src[(i % half) * half + j % half];
            h[i * k + j] = (int8_t)(i >= half && j >= half ? -v : v);
        }
}

static dq_status make_core(dq_env *env, int64_t k, int8_t **out)
{
    for (size_t i = 0; i < sizeof WILLIAMSON / sizeof *WILLIAMSON; i++) {
        if (WILLIAMSON[i].order != k) continue;
        int8_t *h = dq_alloc(env, (size_t)(k * k));
        if (!h) return DQ_E_NOMEM;
        williamson(k, WILLIAMSON[i].rows, h);
        *out = h;
        return DQ_OK;
    }
    /* 40 is tabulated as [[1, 1], [1, -1]] (x) H20, although Paley II (q = 19) does not apply and none is shorter. */
    int64_t base = k == 40 ? 20 : k;
    int8_t *h = dq_alloc(env, (size_t)(base * base)), *chi = dq_alloc(env, (size_t)base), *twice = NULL;
    dq_status status = h && chi ? DQ_OK : DQ_E_NOMEM;
    if (status != DQ_OK) goto done;
    if (is_paley1(base)) {
        legendre(base - 1, chi);
        paley1(base, chi, h);
    } else {
        legendre(base / 2 - 1, chi);
        paley2(base, chi, h);
    }
    if (k != base) {
        twice = dq_alloc(env, (size_t)(k * k));
        if (!twice) DQ_GO(DQ_E_NOMEM);
        doubled(base, h, twice);
        dq_free(h);
        h = twice;
    }
    *out = h;
    h = NULL;
done:
    dq_free(chi);
    dq_free(h);
    return status;
}

dq_status dq_hadamard_make(dq_env *env, int64_t n, bool allow_blocks, dq_hadamard *out)
{
    if (n < 1 || n > INT32_MAX) return dq_fail(DQ_E_INVALID, "Hadamard order %lld is out of range", (long long)n);
    int64_t order = n, k = choose_core(n);
    if (k == 0) {
        if (!allow_blocks)
            return dq_fail(DQ_E_UNSUPPORTED,
                           "no Hadamard matrix of order %lld: it is not a multiple of 4, or no "
                           "construction (Sylvester, Paley I and II with prime q, Williamson 52, 156, 172) reaches it",
                           (long long)n);
        for (int64_t blocks = 2; blocks <= n / 2 && k == 0; blocks++) {
            if (n % blocks != 0) continue;
            order = n / blocks;
            k = choose_core(order);
        }
        if (k == 0)
            return dq_fail(DQ_E_UNSUPPORTED, "no Hadamard transform for odd size %lld, not even in blocks",
                           (long long)n);
        dq_log(env, DQ_LOG_WARNING, "no Hadamard matrix of order %lld: using %lld blocks of order %lld", (long long)n,
               (long long)(n / order), (long long)order);
    }
    dq_hadamard h = {.n = order, .blocks = n / order, .k = k};
    if (k > 1) DQ_TRY(make_core(env, k, &h.hk));
    *out = h;
    return DQ_OK;
}

void dq_hadamard_dense(const dq_hadamard *h, int8_t *out)
{
    int64_t s = h->n / h->k; /* order of the Sylvester factor: H = HK (x) S */
    for (int64_t i = 0; i < h->n; i++)
        for (int64_t j = 0; j < h->n; j++) {
            int8_t core = h->hk ? h->hk[(i / s) * h->k + j / s] : 1;
            int odd = __builtin_popcountll((unsigned long long)((i % s) & (j % s))) & 1;
            out[i * h->n + j] = (int8_t)(odd ? -core : core);
        }
}
