/* dartquant/tokenizer.h. SPDX-License-Identifier: Apache-2.0 */
#include "text/tokenizer.h"

#include "api/check.h"
#include "api/handles.h"
#include "base/status.h"
#include "chat/chat.h"
#include "dartquant/tokenizer.h"

dq_status dq_tokenizer_open(dq_context *ctx, const char *path, dq_tokenizer **out)
{
    DQ_ENTER_CONTEXT(ctx, ctx && path && out);
    DQ_TRY(dq_tokenizer_open_path(&ctx->env, path, out));
    dq_context_retain(ctx);
    return DQ_OK;
}

static void destroy(void *object)
{
    dq_tokenizer *tokenizer = object;
    dq_context *ctx = dq_context_of(dq_env_of(tokenizer));
    dq_tokenizer_destroy(tokenizer);
    dq_context_release(ctx);
}

void dq_tokenizer_free(dq_tokenizer *tokenizer)
{
    if (tokenizer) dq_context_discard(dq_context_of(dq_env_of(tokenizer)), destroy, tokenizer);
}

int64_t dq_tokenizer_vocab_size(const dq_tokenizer *tokenizer) { return tokenizer ? dq_tokenizer_size(tokenizer) : 0; }
int32_t dq_tokenizer_bos(const dq_tokenizer *tokenizer) { return tokenizer ? dq_tokenizer_bos_id(tokenizer) : -1; }
int32_t dq_tokenizer_eos(const dq_tokenizer *tokenizer) { return tokenizer ? dq_tokenizer_eos_id(tokenizer) : -1; }
const char *dq_tokenizer_algorithm(const dq_tokenizer *tokenizer)
{
    return tokenizer ? dq_tokenizer_kind(tokenizer) : "";
}

static dq_status check_flags(uint32_t flags, uint32_t known)
{
    if (flags & ~known) return dq_fail(DQ_E_INVALID, "unknown flags 0x%x", flags & ~known);
    return DQ_OK;
}

dq_status dq_tokenizer_encode(const dq_tokenizer *tokenizer, const char *text, size_t bytes, uint32_t flags,
                              int32_t *ids, size_t capacity, size_t *needed)
{
    DQ_ENTER_CONTEXT(dq_context_of(dq_env_of(tokenizer)),
                     tokenizer && (text || bytes == 0) && (ids || capacity == 0) && needed);
    DQ_TRY(check_flags(flags, DQ_ENCODE_ADD_SPECIAL | DQ_ENCODE_PARSE_SPECIAL));
    dq_ids result = {0};
    DQ_TRY(dq_tokenizer_encode_text(tokenizer, text ? text : "", bytes, flags & DQ_ENCODE_ADD_SPECIAL,
                                    flags & DQ_ENCODE_PARSE_SPECIAL, &result));
    if (result.count > 0 && result.count <= capacity) memcpy(ids, result.data, result.count * sizeof *ids);
    *needed = result.count;
    dq_free(result.data);
    return DQ_OK;
}

/* Fresh text into the host's buffer, where it fits. */
static void hand_over(char *result, size_t bytes, char *text, size_t capacity, size_t *needed)
{
    if (bytes < capacity) {
        memcpy(text, result, bytes);
        text[bytes] = '\0';
    }
    *needed = bytes;
    dq_free(result);
}

dq_status dq_tokenizer_decode(const dq_tokenizer *tokenizer, const int32_t *ids, size_t count, uint32_t flags,
                              char *text, size_t capacity, size_t *needed)
{
    DQ_ENTER_CONTEXT(dq_context_of(dq_env_of(tokenizer)),
                     tokenizer && (ids || count == 0) && (text || capacity == 0) && needed);
    DQ_TRY(check_flags(flags, DQ_DECODE_SKIP_SPECIAL));
    int64_t size = dq_tokenizer_size(tokenizer);
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= size)
            return dq_fail(DQ_E_INVALID, "id %d at %zu is outside the vocabulary of %lld", ids[i], i, (long long)size);
    char *result = NULL;
    size_t bytes = 0;
    DQ_TRY(dq_tokenizer_decode_ids(tokenizer, ids, count, flags & DQ_DECODE_SKIP_SPECIAL, &result, &bytes));
    hand_over(result, bytes, text, capacity, needed);
    return DQ_OK;
}

dq_status dq_tokenizer_get_chat_template(const dq_tokenizer *tokenizer, const char *name, const char **out)
{
    DQ_ENTER_CONTEXT(dq_context_of(dq_env_of(tokenizer)), tokenizer && out);
    const char *text = dq_tokenizer_chat_template(tokenizer, name ? name : "default");
    if (!text) return dq_fail(DQ_E_NOTFOUND, "the tokenizer has no chat template '%s'", name ? name : "default");
    *out = text;
    return DQ_OK;
}

dq_status dq_tokenizer_render_chat(const dq_tokenizer *tokenizer, const char *chat_template, const char *messages,
                                   const char *variables, uint32_t flags, char *text, size_t capacity, size_t *needed)
{
    DQ_ENTER_CONTEXT(dq_context_of(dq_env_of(tokenizer)), tokenizer && messages && (text || capacity == 0) && needed);
    DQ_TRY(check_flags(flags, DQ_CHAT_GENERATION_PROMPT));
    char *result = NULL;
    size_t bytes = 0;
    DQ_TRY(dq_chat_apply(tokenizer, chat_template, messages, variables, flags & DQ_CHAT_GENERATION_PROMPT, &result,
                         &bytes));
    hand_over(result, bytes, text, capacity, needed);
    return DQ_OK;
}
