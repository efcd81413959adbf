/* Where the simulated card is. SPDX-License-Identifier: Apache-2.0 */
#ifndef DQ_TESTS_CUDA_SIMULATED_H
#define DQ_TESTS_CUDA_SIMULATED_H

#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

/* The plug-in that was built with this program, BUILD/tests/cuda/NAME. */
static inline bool find_simulated_card(char path[PATH_MAX])
{
    ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - 64);
    if (n <= 0) return false;
    path[n] = '\0';
    *strrchr(path, '/') = '\0';
    strcpy(strrchr(path, '/'), "/fakes/libdartquant-cudasim.so");
    return true;
}

#endif
