/* Files: read-only maps and writes that appear whole or not at all. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_IO_FILE_H
#define DQ_IO_FILE_H

#include "base/env.h"

typedef struct dq_map {
    const uint8_t *data; /* NULL when size is 0 */
    uint64_t size;
    bool borrowed; /* somebody else's memory: close leaves it alone */
} dq_map;

/* Maps a regular file read-only. Errors carry the path. */
dq_status dq_map_open(dq_env *env, const char *path, dq_map *out);
void dq_map_close(dq_map *map);
/* Tells the kernel that the range is not needed for now (keeps the resident set small). */
void dq_map_drop(const dq_map *map, uint64_t offset, uint64_t bytes);

/* Whole small file in memory, NUL-terminated; refuses files above `limit` bytes. */
dq_status dq_file_read(dq_env *env, const char *path, uint64_t limit, char **out, size_t *bytes);
/* The same from a pipe or a device too; waits for who writes there, so it is for paths that the user names. */
dq_status dq_stream_read(dq_env *env, const char *path, uint64_t limit, char **out, size_t *bytes);

bool dq_path_exists(const char *path);
bool dq_path_is_dir(const char *path);
/* "dir/name" in fresh memory. */
char *dq_path_join(dq_env *env, const char *dir, const char *name);
bool dq_path_ends_with(const char *path, const char *suffix);
dq_status dq_make_dirs(dq_env *env, const char *path);

/* Writes to "<path>.tmp.<pid>" beside the target; commit syncs file and folder and renames; free before commit removes
 * the temporary file. */
typedef struct dq_writer dq_writer;
dq_status dq_writer_open(dq_env *env, const char *path, dq_writer **out);
dq_status dq_writer_write(dq_writer *w, const void *data, uint64_t bytes);
/* Overwrites bytes already written (headers whose content is known last). */
dq_status dq_writer_patch(dq_writer *w, uint64_t offset, const void *data, uint64_t bytes);
uint64_t dq_writer_position(const dq_writer *w);
/* Leaves `bytes` bytes of zeros to be patched later. */
dq_status dq_writer_skip(dq_writer *w, uint64_t bytes);
/* Appends bytes that another writer has already written, inside the kernel where it can. */
dq_status dq_writer_copy(dq_writer *w, dq_writer *from, uint64_t offset, uint64_t bytes);
/* For sets of files that are committed together: pause gives the descriptor back and resume takes it again; seal syncs
 * and pauses; retarget changes the final name (same folder). */
dq_status dq_writer_pause(dq_writer *w);
dq_status dq_writer_resume(dq_writer *w);
dq_status dq_writer_seal(dq_writer *w);
dq_status dq_writer_retarget(dq_writer *w, const char *path);
dq_status dq_writer_commit(dq_writer *w);
void dq_writer_free(dq_writer *w);
/* open + write + commit + free */
dq_status dq_file_write(dq_env *env, const char *path, const void *data, uint64_t bytes);

#endif
