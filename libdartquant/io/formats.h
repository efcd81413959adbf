/* File formats as tensor sources and sinks. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_FORMATS_H
#define DQ_IO_FORMATS_H

#include "base/source.h"

/* ---- safetensors (docs/formats.md lists our verdicts) ---- */
/* One file. */
dq_status dq_safetensors_open(dq_env *env, const char *path, dq_source **out);
/* A *.safetensors.index.json with its shards: every mapped tensor must be in its shard, shard names carry no path. */
dq_status dq_safetensors_open_index(dq_env *env, const char *index_path, dq_source **out);
/* model.safetensors.index.json, else model.safetensors, else the only *.safetensors file of the folder. */
dq_status dq_safetensors_open_dir(dq_env *env, const char *dir, dq_source **out);
/* Value of a __metadata__ key of the (first) file, or NULL. */
const char *dq_safetensors_metadata(const dq_source *source, const char *key);
/* Writes dir/<stem>.safetensors, or dir/<stem>-00001-of-000NN.safetensors with an index when the data exceeds
 * part_size bytes (no shard is larger unless one tensor is). Tensors are written as they come (bounded memory). */
dq_status dq_safetensors_sink(dq_env *env, const char *dir, const char *stem, uint64_t part_size, dq_sink **out);
/* Writes the one file `path`, which must end in ".safetensors". */
dq_status dq_safetensors_sink_file(dq_env *env, const char *path, dq_sink **out);

/* ---- GGUF v2/v3 ---- */
dq_status dq_gguf_open(dq_env *env, const char *path, dq_source **out);
/* Metadata. _find: whether the key exists. Getters fail (DQ_E_FORMAT, naming the key) when the key is absent or of
 * another kind; integers of any width and bools convert. Strings are not NUL-terminated and live in the map. */
bool dq_gguf_has(const dq_source *source, const char *key);
dq_status dq_gguf_int(const dq_source *source, const char *key, int64_t *out);
dq_status dq_gguf_double(const dq_source *source, const char *key, double *out);
dq_status dq_gguf_string(const dq_source *source, const char *key, const char **out, size_t *bytes);
dq_status dq_gguf_array_length(const dq_source *source, const char *key, int64_t *out);
dq_status dq_gguf_array_string(const dq_source *source, const char *key, int64_t i, const char **out, size_t *bytes);
dq_status dq_gguf_array_int(const dq_source *source, const char *key, int64_t i, int64_t *out);
dq_status dq_gguf_array_double(const dq_source *source, const char *key, int64_t i, double *out);
/* Writes a GGUF file with the same metadata and no tensors: the vocabulary without the weights. */
dq_status dq_gguf_write_metadata(const dq_source *source, const char *path);

/* ---- PyTorch zip archives (.pt, .pth, .bin) ---- */
/* Tensors of a state dict; nested dicts join keys with '.'; a bare tensor is called "". Strided tensors are read as
 * they would print. Globals outside the allow-list are refused by name. */
dq_status dq_pt_open(dq_env *env, const char *path, dq_source **out);
/* Writes what torch.load (also with weights_only) gives back as a dict of tensors, or as the one tensor itself when `bare`
 * (its name is then not kept). F32, F64, F16, BF16, I32, I64, U8. Metadata is left out: a state dict has no room for it. */
dq_status dq_pt_sink(dq_env *env, const char *path, bool bare, dq_sink **out);

/* Opens any of the above by content: folder, index, .safetensors, GGUF magic, zip magic. */
dq_status dq_source_open(dq_env *env, const char *path, dq_source **out);

/* ---- memory ---- */
/* A sink that keeps tensors; after finish, dq_memory_source takes them out as a source (format "memory"). */
dq_status dq_memory_sink(dq_env *env, dq_sink **out);
/* The same with the content in an unnamed temporary file in `folder`, which vanishes with sink and source (or the process)
 * and takes no memory of it. `expected` bytes must be free there. dq_memory_source takes its tensors out too; they may be
 * read by several threads. */
dq_status dq_spool_sink(dq_env *env, const char *folder, uint64_t expected, dq_sink **out);
dq_status dq_memory_source(dq_sink *sink, dq_source **out);
const char *dq_memory_metadata(const dq_source *source, const char *key);

#endif
