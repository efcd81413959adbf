/* A host whose locale writes 0,5. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_COMMA_LOCALE_H
#define DQ_TESTS_COMMA_LOCALE_H

#include <stdbool.h>

/* Sets such a locale, one of the system's or one made for the purpose; false, with a note, where neither can be had. */
bool comma_locale_enter(void);
void comma_locale_leave(void);

#endif
