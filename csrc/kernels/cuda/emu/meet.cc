/* Barriers, and meetings of a warp's lanes. */
#include <stddef.h>

#include "kernels/cuda/emu/inside.h"
#include "kernels/cuda/emu/race.h"

/* ---- barriers ---- */

static void finish_barrier(emu_machine *m, emu_named_barrier *b) {
    uint32_t value = b->reduction == EMU_AND ? b->value == b->count : b->value;
    value = b->reduction == EMU_OR ? value != 0 : value;
    for (uint32_t w = 0; w < m->n_warps; w++) {
        for (uint32_t bits = b->waiting[w]; bits != 0; bits &= bits - 1) {
            emu_thread *t = &m->threads[w * 32 + (uint32_t)__builtin_ctz(bits)];
            t->result = value;
            if (b->threads != 0) {
                emu_race_release(t, (uint32_t)(b - m->barriers));
            }
            emu_make_ready(m, t);
        }
        b->waiting[w] = 0;
    }
    if (b->threads != 0) {
        emu_race_barrier_over((uint32_t)(b - m->barriers));
    } else {
        emu_race_barrier(m);
    }
    m->for_all &= ~(1u << (b - m->barriers));
    b->count = b->value = 0;
    b->what = NULL;
}

static bool complete(const emu_machine *m, const emu_named_barrier *b) {
    return b->what != NULL && b->count == (b->threads != 0 ? b->threads : m->n_alive);
}

/* ---- meetings ---- */

static void finish_meeting(emu_machine *m, emu_warp *w, size_t index) {
    emu_meeting meet = w->meetings[index];
    w->meetings[index] = w->meetings[--w->n_meetings];
    void *operands[32] = {};
    for (uint32_t bits = meet.here; bits != 0; bits &= bits - 1) {
        uint32_t lane = (uint32_t)__builtin_ctz(bits);
        operands[lane] = m->threads[w->number * 32 + lane].operands;
    }
    meet.op(operands, meet.here);
    for (uint32_t bits = meet.here; bits != 0; bits &= bits - 1) {
        emu_make_ready(m, &m->threads[w->number * 32 + (uint32_t)__builtin_ctz(bits)]);
    }
}

/* Who has ended is waited for no more. */
void emu_leave(emu_machine *m, emu_thread *t) {
    for (size_t i = 0; i < t->warp->n_meetings; i++) {
        emu_meeting *meet = &t->warp->meetings[i];
        if ((meet->mask & t->warp->alive) == meet->here) {
            finish_meeting(m, t->warp, i--);
        }
    }
    for (uint32_t bits = m->for_all; bits != 0; bits &= bits - 1) {
        emu_named_barrier *b = &m->barriers[__builtin_ctz(bits)];
        if (complete(m, b)) {
            finish_barrier(m, b);
        }
    }
}

/* ---- what threads call ---- */

static void note_wait(emu_thread *t, const char *what, uint32_t mask, emu_site site) {
    t->what = what;
    t->mask = mask;
    t->site = site;
}

void emu_wait(const char *what, uint32_t mask, emu_site site) {
    note_wait(emu_self, what, mask, site);
    emu_give_way(emu_self->block->machine, emu_self);
}

void emu_meet(const char *what, uint32_t mask, emu_operation op, void *operands, emu_site site) {
    emu_thread *t = emu_self;
    emu_machine *m = t->block->machine;
    emu_warp *w = t->warp;
    uint32_t me = 1u << t->lane;
    if ((mask & me) == 0) {
        emu_fault(site, "%s: the mask %#x lacks the lane that calls, %u", what, mask, t->lane);
    }
    size_t i = 0;
    while (i < w->n_meetings && w->meetings[i].mask != mask) {
        i++; /* lanes that wait there may come here later */
    }
    if (i == w->n_meetings) {
        w->meetings[w->n_meetings++] = {mask, 0, op, what};
    }
    emu_meeting *meet = &w->meetings[i];
    if (meet->op != op) {
        emu_fault(site, "%s, while lanes %#x wait in %s", what, meet->here, meet->what);
    }
    meet->here |= me;
    t->operands = operands;
    note_wait(t, what, mask, site);
    if (meet->here == (mask & w->alive)) {
        finish_meeting(m, w, i);
    }
    emu_give_way(m, t);
}

static void join_lanes(void *const operands[32], uint32_t here) {
    emu_thread *t = (emu_thread *)operands[__builtin_ctz(here)];
    emu_race_lanes(t->block->machine, t->warp, here);
}

void emu_sync_lanes(uint32_t mask, emu_site site) {
    emu_meet("__syncwarp", mask, join_lanes, emu_self, site);
}

uint32_t emu_barrier(const char *what, uint32_t id, uint32_t threads, bool arrive,
                     emu_reduction reduction, uint32_t value, emu_site site) {
    emu_thread *t = emu_self;
    emu_machine *m = t->block->machine;
    if (id >= EMU_BARRIERS || threads % 32 != 0 || threads > m->n_threads) {
        emu_fault(site, "%s: barrier %u for %u threads", what, id, threads);
    }
    emu_named_barrier *b = &m->barriers[id];
    if (b->what == NULL) {
        b->threads = threads;
        b->reduction = reduction;
        b->what = what;
        b->site = site;
        m->for_all |= threads == 0 ? 1u << id : 0;
    } else if (b->threads != threads || b->reduction != reduction ||
               (threads == 0 && b->site.line != site.line)) {
        emu_fault(site, "%s of barrier %u for %u threads, while others wait in %s for %u at %s:%d",
                  what, id, threads, b->what, b->threads, b->site.file, b->site.line);
    }
    b->count++;
    if (threads != 0) {
        emu_race_arrive(t, id);
    }
    b->value += reduction == EMU_NONE ? 0 : value != 0;
    if (!arrive) {
        b->waiting[t->number / 32] |= 1u << t->lane;
        note_wait(t, what, id, site);
    }
    if (complete(m, b)) {
        finish_barrier(m, b);
    }
    if (!arrive) {
        emu_give_way(m, t);
    }
    return t->result;
}
