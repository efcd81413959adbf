/* SPDX-License-Identifier: Apache-2.0 */
#include "base/number.h"

#include <locale.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"

dq_status dq_number_read(const char *text, char **end, double *out)
{
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    if (plain == (locale_t)0) return dq_fail(DQ_E_NOMEM, "out of memory: locale");
    *out = strtod_l(text, end, plain);
    freelocale(plain);
    return DQ_OK;
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

void dq_number_point(char *text)
{
    char *sign = text + (*text == '-');
    while (is_digit(*sign)) sign++;
    char *behind = sign; /* some signs are several bytes long */
    while (*behind && *behind != 'e' && !is_digit(*behind)) behind++;
    if (behind == sign) return;
    *sign = '.';
    memmove(sign + 1, behind, strlen(behind) + 1);
}
