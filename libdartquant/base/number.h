/* Fractions as text with a point, whatever the host's locale writes. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_BASE_NUMBER_H
#define DQ_BASE_NUMBER_H

#include "dartquant/types.h"

/* strtod in the C locale. */
dq_status dq_number_read(const char *text, char **end, double *out);
/* Puts a point where printf put the host's decimal sign. `text` holds one finite number of %f, %e or %g without flags. */
void dq_number_point(char *text);

#endif
