/* The plot of a comparison: an SVG with two columns of bars, written without any library. SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

enum { BAR = 22, ROW = 32, TOP = 64, PANEL = 260, GAP = 90, VALUES = 170, FOOT = 34, LETTER = 8, NAMES = 560 };

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

/* What is drawn: bars begin at nought, which is full precision, and the largest fills its panel. */
typedef struct scale {
    double labels; /* width of the column of names */
    double plain;  /* perplexity of full precision */
    double most_loss, most_kl;
} scale;

/* Nats per token that the scheme costs; fewer than none are none. */
static double loss_over(const json_t *row, double plain) { return fmax(0.0, log(number(row, "ppl") / plain)); }

static scale scale_of(const json_t *rows)
{
    size_t i;
    json_t *row;
    scale s = {.labels = 120, .plain = number(json_array_get(rows, 0), "ppl")};
    json_array_foreach(rows, i, row)
    {
        double width = LETTER * (double)strlen(json_string_value(json_object_get(row, "scheme"))) + 24;
        s.labels = fmin(NAMES, fmax(s.labels, width));
        s.most_loss = fmax(s.most_loss, loss_over(row, s.plain));
        s.most_kl = fmax(s.most_kl, number(row, "kl"));
    }
    return s;
}

static void draw_row(FILE *f, const json_t *row, double y, const scale *s)
{
    char text[48];
    double ppl = number(row, "ppl"), kl = number(row, "kl");
    bool learnt = json_object_get(row, "calibration_of_rotations") != NULL;
    fprintf(f, "<text x='%.1f' y='%.1f' font-size='13' text-anchor='end'%s>", s->labels - 10, y + 16,
            learnt ? " font-weight='bold'" : "");
    escaped(f, json_string_value(json_object_get(row, "scheme")));
    fputs("</text>\n", f);
    snprintf(text, sizeof text, ppl < 1e5 ? "%.*f" : "%.*e", ppl < 10 ? 4 : ppl < 100 ? 3 : 2, ppl);
    bar(f, s->labels, y, s->most_loss > 0 ? loss_over(row, s->plain) / s->most_loss : 0, "#3b75af", text);
    snprintf(text, sizeof text, "%.4f, %.1f%% same", kl, 100 * number(row, "top1_agreement"));
    bar(f, s->labels + PANEL + GAP, y, s->most_kl > 0 ? kl / s->most_kl : 0, "#c8553d", text);
}

static void draw_axis(FILE *f, double x, double height)
{
    fprintf(f, "<line x1='%.1f' y1='%d' x2='%.1f' y2='%.0f' stroke='#999'/>\n", x, TOP - 6, x, height - FOOT);
}

static void draw(FILE *f, const json_t *rows)
{
    size_t i, count = json_array_size(rows);
    json_t *row;
    scale s = scale_of(rows);
    double width = s.labels + 2 * PANEL + GAP + VALUES, height = TOP + (double)count * ROW + FOOT;
    fprintf(f,
            "<svg xmlns='http://www.w3.org/2000/svg' width='%.0f' height='%.0f' viewBox='0 0 %.0f %.0f' "
            "font-family='sans-serif'>\n<rect width='100%%' height='100%%' fill='white'/>\n",
            width, height, width, height);
    fprintf(f, "<text x='%.1f' y='24' font-size='15' font-weight='bold'>What each scheme costs</text>\n", s.labels);
    fprintf(f, "<text x='%.1f' y='50' font-size='12'>perplexity; bar: nats per token over full precision</text>\n",
            s.labels);
    fprintf(f, "<text x='%.1f' y='50' font-size='12'>KL from full precision, nats; same top-1 token</text>\n",
            s.labels + PANEL + GAP);
    json_array_foreach(rows, i, row) draw_row(f, row, TOP + (double)i * ROW, &s);
    draw_axis(f, s.labels, height);
    draw_axis(f, s.labels + PANEL + GAP, height);
    row = json_array_get(rows, 0);
    fprintf(f, "<text x='%.1f' y='%.0f' font-size='11' fill='#555'>", s.labels, height - 12);
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
