/* Clip ratios as JSON. SPDX-License-Identifier: Apache-2.0 */
#include "model/clips_json.h"

#include <string.h>

#include "base/status.h"

json_t *dq_clips_to_json(const dq_clips *c)
{
    json_t *o = json_object();
    for (int site = 0; o && site < DQ_CLIP_SITES; site++) {
        json_t *list = json_array();
        bool any = false;
        for (int64_t l = 0; l < c->layers; l++) {
            json_array_append_new(list, json_real(c->ratio[l][site]));
            any = any || c->ratio[l][site] > 0;
        }
        if (any)
            json_object_set_new(o, dq_clip_site_name(site), list);
        else
            json_decref(list);
    }
    return o;
}

dq_status dq_clips_from_json(dq_env *env, const json_t *o, int64_t layers, const char *path, dq_clips **out)
{
    const char *key;
    json_t *list;
    dq_clips *c = NULL;
    dq_status status;
    if (!json_is_object(o)) return dq_error_in_file(dq_fail(DQ_E_FORMAT, "\"clip_ratios\" is no object"), path);
    DQ_TRY(dq_clips_new(env, layers, &c));
    json_object_foreach((json_t *)(uintptr_t)o, key, list)
    {
        int site = 0;
        while (site < DQ_CLIP_SITES && strcmp(dq_clip_site_name(site), key) != 0) site++;
        bool good = site < DQ_CLIP_SITES && (int64_t)json_array_size(list) == layers;
        for (int64_t l = 0; good && l < layers; l++) {
            double ratio = json_number_value(json_array_get(list, (size_t)l));
            good = ratio > 0 && ratio <= 1;
            c->ratio[l][site] = ratio;
        }
        if (good) continue;
        status = dq_fail(DQ_E_FORMAT,
                         "\"clip_ratios\": \"%s\" is not a known place with a ratio in (0, 1] for each of %lld layers",
                         key, (long long)layers);
        dq_clips_free(c);
        return dq_error_in_file(status, path);
    }
    *out = c;
    return DQ_OK;
}
