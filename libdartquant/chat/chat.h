/* Conversations as the text a model goes on from. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_CHAT_CHAT_H
#define DQ_CHAT_CHAT_H

#include "text/tokenizer.h"

/* `chat_template`: NULL = the tokenizer's ("tool_use" when the variables have tools and it is there, else "default"); the
 * name of one of its templates, or the text of another. `messages`: a JSON array of objects with "role" and "content"; members
 * that are null are left out, as transformers does. `variables` (may be NULL): a JSON object of more names for the template.
 * Fresh NUL-terminated text. */
dq_status dq_chat_apply(const dq_tokenizer *tokenizer, const char *chat_template, const char *messages,
                        const char *variables, bool add_generation_prompt, char **out, size_t *bytes);

#endif
