/* What is said before the process ends. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cuda/emu/inside.h"

void emu_print_place(const emu_machine *m) {
    const emu_grid *g = m->block.grid;
    fprintf(stderr,
            "  kernel %s, block (%u, %u, %u) of (%u, %u, %u) with (%u, %u, %u) threads, "
            "INF_EMU_SEED=%llu\n",
            g->kernel, m->block.index.x, m->block.index.y, m->block.index.z, g->grid.x, g->grid.y,
            g->grid.z, g->block.x, g->block.y, g->block.z, (unsigned long long)m->seed);
}

static bool same_wait(const emu_thread *a, const emu_thread *b) {
    return a->what == b->what && a->site.line == b->site.line && a->site.file == b->site.file &&
           a->mask == b->mask && (a->fiber == NULL) == (b->fiber == NULL);
}

/* Runs of threads that wait for the same. */
static void print_waits(const emu_machine *m) {
    for (uint32_t i = 0, end; i < m->n_threads; i = end) {
        const emu_thread *t = &m->threads[i];
        for (end = i + 1; end < m->n_threads && same_wait(t, &m->threads[end]); end++) {
        }
        fprintf(stderr, "  threads %u .. %u: ", i, end - 1);
        if (t->what == NULL) {
            fprintf(stderr, t->fiber != NULL ? "run\n" : "ended, or were not started\n");
        } else {
            fprintf(stderr, "wait in %s (%#x) at %s:%d\n", t->what, t->mask, t->site.file,
                    t->site.line);
        }
    }
}

void emu_fault(emu_site site, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "emu: ");
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n  at %s:%d\n", site.file, site.line);
    va_end(args);
    if (emu_self != NULL) {
        fprintf(stderr, "  thread (%u, %u, %u)\n", emu_self->index.x, emu_self->index.y,
                emu_self->index.z);
        emu_print_place(emu_self->block->machine);
    }
    abort();
}

void emu_nobody_can_run(const emu_machine *m) {
    fprintf(stderr, "emu: all threads wait, for others that never come\n");
    emu_print_place(m);
    print_waits(m);
    emu_print_bars();
    abort();
}
