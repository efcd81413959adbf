/* Post-processors of tokenizer.json for single texts: which ids go in front and behind.
 * SPDX-License-Identifier: Apache-2.0 */
#include "base/status.h"
#include "text/parts.h"

/* Ids of a special token as the template's own table gives them. */
static dq_status template_ids(const dq_json_at *at, const json_t *table, const char *name, dq_id_list *out)
{
    const json_t *entry = json_object_get(table, name), *ids = NULL;
    dq_json_at below = dq_at_key(at, "special_tokens");
    if (!entry) return dq_at_fail(&below, DQ_E_FORMAT, "'%.80s' is used by the template but not listed", name);
    DQ_TRY(dq_at_array(&below, entry, "ids", &ids));
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
            return dq_at_fail(&below, DQ_E_FORMAT, "ids of '%.80s' must be token ids", name);
        DQ_TRY(dq_id_list_add(out, (int32_t)json_integer_value(id)));
    }
    return DQ_OK;
}

static dq_status read_template(const dq_json_at *at, const json_t *json, dq_id_list *before, dq_id_list *after)
{
    const json_t *single = NULL, *table = json_object_get(json, "special_tokens");
    DQ_TRY(dq_at_array(at, json, "single", &single));
    dq_json_at list = dq_at_key(at, "single");
    int sequences = 0;
    for (size_t i = 0; i < json_array_size(single); i++) {
        dq_json_at one = dq_at_index(&list, i);
        const json_t *item = json_array_get(single, i);
        const json_t *special = json_object_get(item, "SpecialToken"), *sequence = json_object_get(item, "Sequence");
        const char *name = NULL;
        if (special) {
            DQ_TRY(dq_at_string(&one, special, "id", true, &name, NULL));
            DQ_TRY(template_ids(at, table, name, sequences ? after : before));
        } else if (sequence) {
            DQ_TRY(dq_at_string(&one, sequence, "id", true, &name, NULL));
            if (strcmp(name, "A") != 0)
                return dq_at_fail(&one, DQ_E_UNSUPPORTED, "sequence '%.20s' in a single template", name);
            sequences++;
        } else
            return dq_at_fail(&one, DQ_E_UNSUPPORTED, "template item is neither SpecialToken nor Sequence");
    }
    if (sequences != 1) return dq_at_fail(&list, DQ_E_UNSUPPORTED, "the template holds the text %d times", sequences);
    return DQ_OK;
}

/* "cls": [token, id] */
static dq_status read_pair(const dq_json_at *at, const json_t *json, const char *key, dq_id_list *out)
{
    const json_t *pair = NULL;
    DQ_TRY(dq_at_array(at, json, key, &pair));
    const json_t *id = json_array_get(pair, 1);
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
        return dq_at_fail(at, DQ_E_FORMAT, "member '%s' must be [token, id]", key);
    return dq_id_list_add(out, (int32_t)json_integer_value(id));
}

/* New ids stand outside of those of the processors before. */
static dq_status wrap(dq_post *post, const dq_id_list *before, const dq_id_list *after)
{
    DQ_TRY(dq_id_list_grow(&post->before, before->count));
    DQ_TRY(dq_id_list_grow(&post->after, after->count));
    if (before->count) {
        memmove(post->before.data + before->count, post->before.data, post->before.count * sizeof *post->before.data);
        memcpy(post->before.data, before->data, before->count * sizeof *before->data);
    }
    if (after->count) memcpy(post->after.data + post->after.count, after->data, after->count * sizeof *after->data);
    post->before.count += before->count;
    post->after.count += after->count;
    return DQ_OK;
}

dq_status dq_post_read(const dq_json_at *at, const json_t *json, dq_post *post)
{
    if (!json || json_is_null(json)) return DQ_OK;
    const char *type = NULL;
    if (at->depth > DQ_MAX_NESTING) return dq_at_fail(at, DQ_E_FORMAT, "nested too deep");
    DQ_TRY(dq_at_string(at, json, "type", true, &type, NULL));
    if (strcmp(type, "ByteLevel") == 0) return DQ_OK; /* only trims offsets */
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = NULL;
        DQ_TRY(dq_at_array(at, json, "processors", &list));
        dq_json_at below = dq_at_key(at, "processors");
        for (size_t i = 0; i < json_array_size(list); i++) {
            dq_json_at one = dq_at_index(&below, i);
            DQ_TRY(dq_post_read(&one, json_array_get(list, i), post));
        }
        return DQ_OK;
    }
    dq_id_list before = {.env = at->env}, after = {.env = at->env};
    dq_status status;
    if (strcmp(type, "TemplateProcessing") == 0)
        DQ_GO(read_template(at, json, &before, &after));
    else if (strcmp(type, "RobertaProcessing") == 0 || strcmp(type, "BertProcessing") == 0) {
        DQ_GO(read_pair(at, json, "cls", &before));
        DQ_GO(read_pair(at, json, "sep", &after));
    } else
        DQ_GO(dq_at_fail(at, DQ_E_UNSUPPORTED, "post-processor '%.60s' is not supported", type));
    status = wrap(post, &before, &after);
done:
    dq_free(before.data);
    dq_free(after.data);
    return status;
}

void dq_post_clear(dq_post *post)
{
    dq_free(post->before.data);
    dq_free(post->after.data);
    post->before = (dq_id_list){.env = post->before.env};
    post->after = (dq_id_list){.env = post->after.env};
}
