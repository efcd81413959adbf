/* Opens whatever a path holds, by content. SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/status.h"
#include "io/decode.h"
#include "io/formats.h"

static dq_status open_folder(dq_env *env, const char *path, dq_source **out)
{
    dq_status status = dq_safetensors_open_dir(env, path, out);
    if (status != DQ_E_NOTFOUND) return status;
    char *bin = dq_path_join(env, path, "pytorch_model.bin");
    if (!bin) return DQ_E_NOMEM;
    if (dq_path_exists(bin)) status = dq_pt_open(env, bin, out);
    dq_free(bin);
    return status;
}

static bool is_space(uint8_t c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

/* A header length that fits and a brace after it. */
static bool looks_like_safetensors(const dq_map *map)
{
    if (map->size < 10 || dq_load_u64(map->data) > map->size - 8) return false;
    uint64_t i = 8;
    while (i < map->size && is_space(map->data[i])) i++;
    return i < map->size && map->data[i] == '{';
}

dq_status dq_source_open(dq_env *env, const char *path, dq_source **out)
{
    if (dq_path_is_dir(path)) return open_folder(env, path, out);
    if (dq_path_ends_with(path, ".index.json")) return dq_safetensors_open_index(env, path, out);
    dq_map map = {0};
    DQ_TRY(dq_map_open(env, path, &map));
    const uint8_t *p = map.data;
    dq_status status;
    if (map.size >= 4 && memcmp(p, "GGUF", 4) == 0)
        status = dq_gguf_open_map(env, path, &map, out);
    else if (map.size >= 4 && memcmp(p, "PK\3\4", 4) == 0)
        status = dq_pt_open_map(env, path, &map, out);
    else if (looks_like_safetensors(&map) || dq_path_ends_with(path, ".safetensors"))
        status = dq_safetensors_open_map(env, path, &map, out);
    else if (map.size >= 2 && p[0] == 0x80) /* a bare pickle: to be named */
        status = dq_pt_open_map(env, path, &map, out);
    else
        status = dq_error_in_file(dq_fail(DQ_E_FORMAT, "is neither safetensors nor GGUF nor a PyTorch archive"), path);
    dq_map_close(&map);
    return status;
}
