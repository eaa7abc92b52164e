#include "bench/cuda/gaps.h"

#include <stdlib.h>

static int by_begin(const void *x, const void *y) {
    const activity *a = x, *b = y;
    if (a->from != b->from) {
        return a->from < b->from ? -1 : 1;
    }
    return a->upto < b->upto ? -1 : a->upto > b->upto;
}

size_t gaps_sort(activity *a, size_t n) {
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (a[i].from != 0 && a[i].upto >= a[i].from) {
            a[kept++] = a[i];
        }
    }
    if (kept > 0) {
        qsort(a, kept, sizeof *a, by_begin);
    }
    return kept;
}

/* Where step i's activities end and those of the next begin: in the middle of the pause. */
static uint64_t boundary(const step_window *steps, size_t n_steps, size_t i, uint64_t slack) {
    uint64_t upto = steps[i].upto;
    return i + 1 < n_steps ? upto + (steps[i + 1].from - upto) / 2 : upto + slack;
}

size_t gaps_cut(const activity *a, size_t n, const step_window *steps, size_t n_steps,
                uint64_t slack, size_t *first) {
    size_t at = 0, outside = 0;
    while (n_steps > 0 && at < n && a[at].from + slack < steps[0].from) {
        at++;
    }
    first[0] = at;
    for (size_t i = 0; i < n_steps; i++) {
        uint64_t end = boundary(steps, n_steps, i, slack);
        for (; at < n && a[at].from < end; at++) {
            outside += a[at].from < steps[i].from || a[at].from > steps[i].upto;
        }
        first[i + 1] = at;
    }
    return outside;
}

step_gaps gaps_of(const activity *a, size_t n, name_time *times) {
    step_gaps g = {0};
    uint64_t end = n > 0 ? a[0].from : 0; /* of all before */
    for (size_t i = 0; i < n; i++) {
        uint64_t gap = a[i].from > end ? a[i].from - end : 0;
        uint64_t begin = a[i].from > end ? a[i].from : end;
        uint64_t own = a[i].upto > begin ? a[i].upto - begin : 0;
        g.gaps += gap;
        g.n_gaps += gap > 0;
        g.longest = gap > g.longest ? gap : g.longest;
        g.busy += own;
        g.kernels += a[i].kernel != 0;
        g.copies += a[i].kernel == 0;
        end = a[i].upto > end ? a[i].upto : end;
        if (times != NULL) {
            name_time *t = &times[a[i].name];
            t->whole += a[i].upto - a[i].from;
            t->own += own;
            t->gap += gap;
            t->calls++;
            t->name = a[i].name;
        }
    }
    g.span = n > 0 ? end - a[0].from : 0;
    return g;
}
