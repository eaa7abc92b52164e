/* Running blocks: fibers, threads, order.
 *
 * A thread is started on a fiber only when its turn comes, and a fiber whose thread ended takes the
 * next one that was not started: so a kernel without barriers needs one fiber, and switches never.
 */
#include "kernels/cuda/emu/block.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/emu/inside.h"
#include "kernels/cuda/emu/machine.h"
#include "kernels/cuda/emu/race.h"

__thread emu_thread *emu_self;

enum { GARBAGE = 0xcb, CANARY = 0xa5, CANARY_BYTES = 128 };

static emu_machine *here() {
    static thread_local emu_machine m;
    return &m;
}

emu_machine::emu_machine() {
    const char *s = getenv("INF_EMU_SEED");
    seed = s != NULL ? strtoull(s, NULL, 10) : 1;
    launches = 0;
    block.machine = this;
    host = emu_fiber_of_thread();
    memset(threads, 0, sizeof threads);
    for (uint32_t i = 0; i < EMU_WARPS; i++) {
        warps[i].number = i;
    }
    for (uint32_t i = 0; i < EMU_THREADS; i++) {
        threads[i].number = i;
        threads[i].lane = i % 32;
        threads[i].block = &block;
        threads[i].warp = &warps[i / 32];
        threads[i].copies = emu_copies_new();
    }
}

emu_machine::~emu_machine() {
    for (emu_thread &t : threads) {
        emu_copies_free(t.copies);
    }
    for (emu_fiber *f : all) {
        emu_fiber_free(f);
    }
    emu_fiber_free(host);
}

/* ---- threads ---- */

static emu_fiber *idle_fiber(emu_machine *m);

static void go_on(emu_machine *m, emu_thread *me, emu_thread *next) {
    if (next == me) {
        return;
    }
    emu_fiber *to = next->fiber;
    if (to == NULL) {
        m->starting = next;
        to = idle_fiber(m);
    }
    m->current = to;
    emu_self = next;
    emu_fiber_switch(me->fiber, to);
}

void emu_give_way(emu_machine *m, emu_thread *me) {
    emu_thread *next = emu_take_ready(m, m->order);
    if (next == NULL) {
        emu_nobody_can_run(m);
    }
    go_on(m, me, next);
}

/* To any other, whatever the order: so a thread that looks again and again does not keep the others
 * from what it looks for. */
void emu_yield() {
    emu_thread *me = emu_self;
    emu_machine *m = me->block->machine;
    emu_make_ready(m, me);
    go_on(m, me, emu_take_ready(m, EMU_RANDOM));
}

uint32_t emu_alive_lanes() { return emu_self->warp->alive; }

/* What a fiber does all its life: one thread after another. */
static void live() {
    emu_machine *m = here();
    for (;;) {
        emu_thread *t = m->starting;
        const emu_grid *g = m->block.grid;
        emu_fiber *mine = m->current;
        m->starting = NULL;
        t->fiber = mine;
        emu_self = t;
        emu_copies_clear(t->copies);
        g->run(g->function, g->args);
        t->fiber = NULL;
        t->warp->alive &= ~(1u << t->lane);
        m->n_alive--;
        emu_leave(m, t);
        emu_thread *next = emu_take_ready(m, m->order);
        if (next != NULL && next->fiber == NULL) {
            m->starting = next;
            continue;
        }
        if (next == NULL && m->n_alive > 0) {
            emu_nobody_can_run(m);
        }
        m->idle.push_back(mine);
        emu_fiber *to = next != NULL ? next->fiber : m->host;
        m->current = to;
        emu_self = next;
        emu_fiber_switch(mine, to);
    }
}

static emu_fiber *idle_fiber(emu_machine *m) {
    if (m->idle.empty()) {
        emu_fiber *f = emu_fiber_new(live, (unsigned)m->all.size());
        m->all.push_back(f);
        return f;
    }
    emu_fiber *f = m->idle.back();
    m->idle.pop_back();
    return f;
}

/* ---- blocks ---- */

/* Threads in their places, nobody started, and an order for them. */
static void set_up(emu_machine *m, const emu_grid *g) {
    dim3 n = g->block;
    m->n_alive = m->n_threads;
    m->order = (emu_order)(emu_random(m) >> 62);
    uint32_t ranks[EMU_WARPS];
    for (uint32_t i = 0; i < m->n_warps; i++) {
        ranks[i] = m->order == EMU_BACKWARD ? m->n_warps - 1 - i : i;
    }
    for (uint32_t i = m->n_warps; m->order == EMU_WARPWISE && i > 1; i--) {
        uint32_t j = (uint32_t)(emu_random(m) >> 33) % i, last = ranks[i - 1];
        ranks[i - 1] = ranks[j];
        ranks[j] = last;
    }
    m->ready = 0;
    for (uint32_t i = 0; i < m->n_warps; i++) {
        emu_warp *w = &m->warps[i];
        uint32_t lanes = m->n_threads - i * 32;
        w->alive = lanes < 32 ? (1u << lanes) - 1 : ~0u;
        w->ready = w->alive;
        w->rank = ranks[i];
        w->n_meetings = 0;
        m->by_rank[w->rank] = w;
        m->ready |= 1u << w->rank;
    }
    for (uint32_t i = 0; i < m->n_threads; i++) {
        emu_thread *t = &m->threads[i];
        t->index = {i % n.x, i / n.x % n.y, i / (n.x * n.y)};
        t->fiber = NULL;
        t->what = NULL;
        t->waited = !g->early;
    }
    memset(m->barriers, 0, sizeof m->barriers);
    m->for_all = 0;
}

static void run_block(emu_machine *m, const emu_grid *g, uint3 index) {
    m->block.index = index;
    m->random = (m->seed * 0x9e3779b97f4a7c15u) ^ (m->launches * 0xbf58476d1ce4e5b9u) ^
                (((uint64_t)index.z << 42) + ((uint64_t)index.y << 21) + index.x + 1);
    m->random = m->random != 0 ? m->random : 1;
    for (int i = 0; i < 4; i++) {
        (void)emu_random(m);
    }
    set_up(m, g);
    memset(m->block.shared, GARBAGE, g->shared);
    emu_race_block(m);
    m->starting = emu_take_ready(m, m->order);
    emu_fiber *to = idle_fiber(m);
    m->current = to;
    emu_fiber_switch(m->host, to);
    emu_self = NULL;
    emu_bulk_end(m);
    if (EMU_ASAN) {
        return; /* it saw to that */
    }
    for (int i = 0; i < CANARY_BYTES && m->block.shared[g->shared + (size_t)i] == CANARY; i++) {
        if (i == CANARY_BYTES - 1) {
            return;
        }
    }
    fprintf(stderr, "emu: a block wrote beyond its %zu bytes of shared memory\n", g->shared);
    emu_print_place(m);
    abort();
}

void emu_run(const emu_grid *g) {
    if (emu_self != NULL) {
        emu_fault(EMU_SITE, "a kernel launches a kernel");
    }
    emu_machine *m = here();
    m->launches++;
    m->n_threads = g->block.x * g->block.y * g->block.z;
    m->n_warps = (m->n_threads + 31) / 32;
    m->block.grid = g;
    void *shared = NULL;
    if (posix_memalign(&shared, 1024, g->shared + CANARY_BYTES) != 0) {
        emu_fault(EMU_SITE, "no memory");
    }
    m->block.shared = (uint8_t *)shared;
    memset(m->block.shared + g->shared, CANARY, CANARY_BYTES);
#if EMU_ASAN
    ASAN_POISON_MEMORY_REGION(m->block.shared + g->shared, CANARY_BYTES);
#endif
    emu_race_launch(m);
    for (uint32_t z = 0; z < g->grid.z; z++) {
        for (uint32_t y = 0; y < g->grid.y; y++) {
            for (uint32_t x = 0; x < g->grid.x; x++) {
                run_block(m, g, {x, y, z});
            }
        }
    }
#if EMU_ASAN
    ASAN_UNPOISON_MEMORY_REGION(m->block.shared + g->shared, CANARY_BYTES);
#endif
    free(shared);
}
