/* The plot of a comparison: an SVG with two rows of bars, written without any library. SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

enum { BAR = 22, ROW = 32, TOP = 64, LABELS = 300, PANEL = 260, GAP = 90, FOOT = 34 };

static void escaped(FILE *f, const char *text)
{
    for (; *text; text++) {
        if (*text == '&')
            fputs("&amp;", f);
        else if (*text == '<')
            fputs("&lt;", f);
        else if (*text == '>')
            fputs("&gt;", f);
        else if ((unsigned char)*text >= 32)
            fputc(*text, f);
    }
}

static double number(const json_t *row, const char *key) { return json_number_value(json_object_get(row, key)); }

/* One bar and its number; `share` of the panel's width. */
static void bar(FILE *f, double x, double y, double share, const char *color, const char *value)
{
    double width = share > 0 ? fmax(1.0, share * PANEL) : 0.0;
    fprintf(f, "<rect x='%.1f' y='%.1f' width='%.1f' height='%d' fill='%s'/>\n", x, y, width, BAR, color);
    fprintf(f, "<text x='%.1f' y='%.1f' font-size='12'>%s</text>\n", x + width + 5, y + 16, value);
}

static void draw_row(FILE *f, const json_t *row, double y, double least, double most, double most_kl)
{
    char text[48];
    double ppl = number(row, "ppl"), kl = number(row, "kl"), span = log(most / least);
    fprintf(f, "<text x='%d' y='%.1f' font-size='13' text-anchor='end'>", LABELS - 10, y + 16);
    escaped(f, json_string_value(json_object_get(row, "scheme")));
    fputs("</text>\n", f);
    snprintf(text, sizeof text, ppl < 1e5 ? "%.2f" : "%.3g", ppl);
    bar(f, LABELS, y, span > 0 ? log(ppl / least) / span : 0, "#3b75af", text);
    snprintf(text, sizeof text, "%.4f, %.1f%% same", kl, 100 * number(row, "top1_agreement"));
    bar(f, LABELS + PANEL + GAP, y, most_kl > 0 ? kl / most_kl : 0, "#c8553d", text);
}

/* Perplexity on a logarithmic axis that begins a little below the smallest, divergence on a linear one from zero. */
static void draw(FILE *f, const json_t *rows)
{
    size_t i, count = json_array_size(rows);
    json_t *row;
    double least = INFINITY, most = 0, most_kl = 0;
    json_array_foreach(rows, i, row)
    {
        least = fmin(least, number(row, "ppl"));
        most = fmax(most, number(row, "ppl"));
        most_kl = fmax(most_kl, number(row, "kl"));
    }
    least *= 0.9;
    double width = LABELS + 2 * PANEL + GAP + 170, height = TOP + (double)count * ROW + FOOT;
    fprintf(f,
            "<svg xmlns='http://www.w3.org/2000/svg' width='%.0f' height='%.0f' viewBox='0 0 %.0f %.0f' "
            "font-family='sans-serif'>\n<rect width='100%%' height='100%%' fill='white'/>\n",
            width, height, width, height);
    fprintf(f, "<text x='%d' y='24' font-size='15' font-weight='bold'>What each scheme costs</text>\n", LABELS);
    fprintf(f, "<text x='%d' y='50' font-size='12'>perplexity (log axis, shorter is better)</text>\n", LABELS);
    fprintf(f, "<text x='%d' y='50' font-size='12'>KL from full precision, nats; same top-1 token</text>\n",
            LABELS + PANEL + GAP);
    json_array_foreach(rows, i, row) draw_row(f, row, TOP + (double)i * ROW, least, most, most_kl);
    row = json_array_get(rows, 0);
    fprintf(f, "<text x='%d' y='%.0f' font-size='11' fill='#555'>", LABELS, height - 12);
    escaped(f, json_string_value(json_object_get(row, "dataset")));
    fprintf(f, ", %.0f windows of %.0f tokens</text>\n</svg>\n", number(row, "windows"), number(row, "seqlen"));
}

int cli_plot_comparison(const cli *c, const char *path, const json_t *rows)
{
    char temporary[4096];
    if ((size_t)snprintf(temporary, sizeof temporary, "%s.tmp.%ld", path, (long)getpid()) >= sizeof temporary)
        return cli_fail(c, "%s: name too long", path);
    FILE *f = fopen(temporary, "w");
    if (!f) return cli_fail(c, "%s: %s", path, strerror(errno));
    draw(f, rows);
    bool good = !ferror(f);
    if (fclose(f) != 0) good = false;
    if (good && rename(temporary, path) != 0) good = false;
    if (good) return EXIT_OK;
    int error = errno;
    unlink(temporary);
    return cli_fail(c, "%s: %s", path, strerror(error));
}
