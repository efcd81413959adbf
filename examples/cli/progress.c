/* Progress on a terminal, and Ctrl-C. SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

static bool line_open; /* a progress line stands on the terminal without its newline */

int32_t cli_progress(void *user, const dq_progress_event *e)
{
    const cli *c = user;
    if (c->quiet || !isatty(STDERR_FILENO)) return 0;
    enum { CELLS = 24 };
    char bar[CELLS + 1];
    double share = e->total ? (double)e->index / (double)e->total : 0;
    int filled = (int)(share * CELLS);
    memset(bar, '.', CELLS);
    memset(bar, '#', (size_t)filled);
    bar[CELLS] = '\0';
    fprintf(stderr, "\r\033[K%-12s [%s] %llu/%llu  %.0fs", e->stage, bar, (unsigned long long)e->index,
            (unsigned long long)e->total, e->elapsed);
    if (e->index > 0 && e->index < e->total) fprintf(stderr, " left %.0fs", e->elapsed / share - e->elapsed);
    if (!isnan(e->metric)) fprintf(stderr, "  %.4g", e->metric);
    if (!isnan(e->orthogonality_error)) fprintf(stderr, "  |R'R-I| %.0e", e->orthogonality_error);
    fflush(stderr);
    line_open = true;
    return 0;
}

void cli_progress_end(const cli *c)
{
    (void)c;
    if (line_open) fprintf(stderr, "\r\033[K");
    line_open = false;
}

static dq_cancel *interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    dq_cancel_set(interrupted); /* one atomic store: safe in a handler */
}

void cli_catch_interrupt(dq_cancel *cancel)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = (int)SA_RESETHAND; /* the second Ctrl-C has its usual effect */
    interrupted = cancel;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGXFSZ, SIG_IGN); /* a file beyond the shell's limit is an error of the write, not the end */
}
