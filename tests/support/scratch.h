/* A folder of files that a test makes and that vanishes with it. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_SCRATCH_H
#define DQ_TESTS_SCRATCH_H

#include <stddef.h>

int scratch_open(void);  /* 0 = done */
int scratch_empty(void); /* removes all files */
void scratch_close(void);
/* The same as a group's setup and teardown. */
int scratch_setup(void **state);
int scratch_teardown(void **state);
/* A test's setup or teardown. */
int scratch_fresh(void **state);
const char *scratch_dir(void);
/* Writes dir/name (with the folders it needs) and returns the path, valid until the next call. bytes 0 = a string. */
const char *scratch_write(const char *name, const void *data, size_t bytes);

/* Entries of a folder whose names do not begin with a dot; 0 where there is no such folder. */
int files_in(const char *dir);

#endif
