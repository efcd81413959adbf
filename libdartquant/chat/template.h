/* Templates in a subset of Jinja, rendered with JSON values: the language of chat templates, as transformers sets it up
 * (trim_blocks, lstrip_blocks, loop controls, {% generation %}). Which statements, filters, tests and methods there are:
 * docs/formats.md. Rendering is bounded in steps, memory and depth, and depends on nothing but its input.
 * SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CHAT_TEMPLATE_H
#define DQ_CHAT_TEMPLATE_H

#include <jansson.h>

#include "base/env.h"

typedef struct dq_template dq_template;

enum { DQ_TEMPLATE_MAX_BYTES = 1 << 20 };

/* Errors: DQ_E_FORMAT (not Jinja, too long), DQ_E_UNSUPPORTED (a statement outside of the subset), both with the line. */
dq_status dq_template_parse(dq_env *env, const char *text, size_t bytes, dq_template **out);
void dq_template_free(dq_template *t); /* NULL is accepted */

/* With the members of the object `variables`. Fresh NUL-terminated text. Errors: DQ_E_UNSUPPORTED (a filter, test or method
 * outside of the subset), DQ_E_INVALID (what the values cannot do, raise_exception, a bound), both with the line. */
dq_status dq_template_render(const dq_template *t, const json_t *variables, char **out, size_t *bytes);

#endif
