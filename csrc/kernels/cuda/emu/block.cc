/* Running a block: which thread is next, and what each waits for.
 *
 * A thread is started on a fiber only when its turn comes, and a fiber whose thread ended takes the
 * next one that was not started: so a kernel without barriers needs one fiber, and switches never.
 *
 * Order. Four ways, drawn per block: from the first thread on, from the last one, at random, and
 * warp by warp in a random order of warps, in which one warp gets as far ahead as barriers let it.
 * What is missing a barrier goes wrong in one of them. */
#include "kernels/cuda/emu/block.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "kernels/cuda/emu/fiber.h"
#include "kernels/cuda/emu/machine.h"

__thread emu_thread *emu_self;

namespace {

enum { THREADS = 1024, WARPS = THREADS / 32, BARRIERS = 16, GARBAGE = 0xcb, CANARY = 0xa5 };
enum { CANARY_BYTES = 128 };

} // namespace

struct emu_meeting {
    uint32_t mask, here;
    emu_operation op;
    const char *what;
};

struct emu_warp {
    uint32_t alive; /* lanes that exist and have not ended */
    uint32_t ready; /* lanes that could run, but the one that runs */
    uint32_t number, rank;
    std::vector<emu_meeting> meetings;
};

namespace {

struct barrier {
    uint32_t threads, count; /* expected (0: all), arrived */
    uint32_t waiting[WARPS];
    emu_reduction reduction;
    uint32_t value;
    const char *what;
    emu_site site;
};

enum way { FORWARD, BACKWARD, RANDOM, WARPWISE };

/* What an OS thread needs to run blocks; made at its first launch. */
struct machine {
    emu_thread threads[THREADS];
    emu_warp warps[WARPS];
    barrier barriers[BARRIERS];
    emu_block block;
    uint32_t n_threads, n_warps, n_alive;
    uint32_t ready; /* bit of rank: the warp has lanes that could run */
    emu_warp *by_rank[WARPS];
    way order;
    uint64_t seed, random, launches;
    emu_fiber *host, *current;
    emu_thread *starting; /* for the fiber that is switched to */
    std::vector<emu_fiber *> idle, all;

    machine();
    ~machine();
};

} // namespace

static machine *here() {
    static thread_local machine m;
    return &m;
}
static thread_local machine *running_machine;

static uint64_t next_random(machine *m) { /* xorshift64* */
    uint64_t x = m->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    m->random = x;
    return x * 0x2545f4914f6cdd1du;
}

machine::machine() {
    const char *s = getenv("INF_EMU_SEED");
    seed = s != NULL ? strtoull(s, NULL, 10) : 1;
    launches = 0;
    host = emu_fiber_of_thread();
    memset(threads, 0, sizeof threads);
    for (uint32_t i = 0; i < WARPS; i++) {
        warps[i].number = i;
    }
    for (uint32_t i = 0; i < THREADS; i++) {
        threads[i].number = i;
        threads[i].lane = i % 32;
        threads[i].block = &block;
        threads[i].warp = &warps[i / 32];
        threads[i].copies = emu_copies_new();
    }
}

machine::~machine() {
    for (emu_thread &t : threads) {
        emu_copies_free(t.copies);
    }
    for (emu_fiber *f : all) {
        emu_fiber_free(f);
    }
    emu_fiber_free(host);
}

/* ---- messages ---- */

static void print_place(const machine *m) {
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
static void print_waits(const machine *m) {
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
        print_place(running_machine);
    }
    abort();
}

/* ---- who is next ---- */

static void make_ready(machine *m, emu_thread *t) {
    t->what = NULL;
    t->warp->ready |= 1u << t->lane;
    m->ready |= 1u << t->warp->rank;
}

static uint32_t random_bit(machine *m, uint32_t bits) {
    uint32_t skip = (uint32_t)(next_random(m) >> 33) % (uint32_t)__builtin_popcount(bits);
    for (; skip > 0; skip--) {
        bits &= bits - 1;
    }
    return (uint32_t)__builtin_ctz(bits);
}

/* Takes a thread that can run; NULL: there is none. */
static emu_thread *take_ready(machine *m) {
    if (m->ready == 0) {
        return NULL;
    }
    uint32_t rank =
        m->order == RANDOM ? random_bit(m, m->ready) : (uint32_t)__builtin_ctz(m->ready);
    emu_warp *w = m->by_rank[rank];
    uint32_t lane = (uint32_t)__builtin_ctz(w->ready);
    if (m->order == BACKWARD) {
        lane = 31 - (uint32_t)__builtin_clz(w->ready);
    } else if (m->order != FORWARD) {
        lane = random_bit(m, w->ready);
    }
    w->ready &= ~(1u << lane);
    if (w->ready == 0) {
        m->ready &= ~(1u << rank);
    }
    return &m->threads[w->number * 32 + lane];
}

/* ---- barriers ---- */

static void finish_barrier(machine *m, barrier *b) {
    uint32_t value = b->reduction == EMU_AND ? b->value == b->count : b->value;
    value = b->reduction == EMU_OR ? value != 0 : value;
    for (uint32_t w = 0; w < m->n_warps; w++) {
        for (uint32_t bits = b->waiting[w]; bits != 0; bits &= bits - 1) {
            emu_thread *t = &m->threads[w * 32 + (uint32_t)__builtin_ctz(bits)];
            t->result = value;
            make_ready(m, t);
        }
        b->waiting[w] = 0;
    }
    b->count = b->value = 0;
    b->what = NULL;
}

static bool complete(const machine *m, const barrier *b) {
    return b->what != NULL && b->count == (b->threads != 0 ? b->threads : m->n_alive);
}

/* ---- meetings ---- */

static void finish_meeting(machine *m, emu_warp *w, size_t index) {
    emu_meeting meet = w->meetings[index];
    w->meetings[index] = w->meetings.back();
    w->meetings.pop_back();
    void *operands[32] = {};
    for (uint32_t bits = meet.here; bits != 0; bits &= bits - 1) {
        uint32_t lane = (uint32_t)__builtin_ctz(bits);
        operands[lane] = m->threads[w->number * 32 + lane].operands;
    }
    meet.op(operands, meet.here);
    for (uint32_t bits = meet.here; bits != 0; bits &= bits - 1) {
        make_ready(m, &m->threads[w->number * 32 + (uint32_t)__builtin_ctz(bits)]);
    }
}

/* ---- threads ---- */

static emu_fiber *idle_fiber(machine *m);

[[noreturn]] static void nobody_can_run(machine *m) {
    fprintf(stderr, "emu: all threads wait, for others that never come\n");
    print_place(m);
    print_waits(m);
    abort();
}

/* Goes on with a thread, from the fiber of one that waits. */
static void go_on(machine *m, emu_thread *next) {
    emu_thread *me = emu_self;
    if (next != me) {
        emu_fiber *mine = me->fiber, *to = next->fiber;
        if (to == NULL) {
            m->starting = next;
            to = idle_fiber(m);
        }
        m->current = to;
        emu_self = next;
        emu_fiber_switch(mine, to);
    }
    emu_self = me;
}

static void give_way(machine *m) {
    emu_thread *next = take_ready(m);
    if (next == NULL) {
        nobody_can_run(m);
    }
    go_on(m, next);
}

/* To any other, whatever the order: so a thread that looks again and again does not keep the others
 * from what it looks for. */
void emu_yield() {
    machine *m = running_machine;
    way order = m->order;
    make_ready(m, emu_self);
    m->order = RANDOM;
    emu_thread *next = take_ready(m);
    m->order = order;
    go_on(m, next);
}

uint32_t emu_alive_lanes() { return emu_self->warp->alive; }

/* Who has ended is waited for no more. */
static void end_thread(machine *m, emu_thread *t) {
    t->fiber = NULL;
    t->warp->alive &= ~(1u << t->lane);
    m->n_alive--;
    for (size_t i = 0; i < t->warp->meetings.size(); i++) {
        emu_meeting *meet = &t->warp->meetings[i];
        if ((meet->mask & t->warp->alive) == meet->here) {
            finish_meeting(m, t->warp, i--);
        }
    }
    for (barrier &b : m->barriers) {
        if (b.threads == 0 && b.count > 0 && complete(m, &b)) {
            finish_barrier(m, &b);
        }
    }
}

/* What a fiber does all its life: one thread after another. */
static void live() {
    for (;;) {
        machine *m = running_machine;
        emu_thread *t = m->starting;
        const emu_grid *g = m->block.grid;
        emu_fiber *mine = m->current;
        m->starting = NULL;
        t->fiber = mine;
        emu_self = t;
        emu_copies_clear(t->copies);
        g->run(g->function, g->args);
        end_thread(m, t);
        emu_thread *next = take_ready(m);
        if (next != NULL && next->fiber == NULL) {
            m->starting = next;
            continue;
        }
        if (next == NULL && m->n_alive > 0) {
            emu_self = t;
            nobody_can_run(m);
        }
        m->idle.push_back(mine);
        emu_fiber *to = next != NULL ? next->fiber : m->host;
        m->current = to;
        emu_self = next;
        emu_fiber_switch(mine, to);
    }
}

static emu_fiber *idle_fiber(machine *m) {
    if (m->idle.empty()) {
        emu_fiber *f = emu_fiber_new(live);
        m->all.push_back(f);
        return f;
    }
    emu_fiber *f = m->idle.back();
    m->idle.pop_back();
    return f;
}

/* ---- what threads call ---- */

static void note_wait(emu_thread *t, const char *what, uint32_t mask, emu_site site) {
    t->what = what;
    t->mask = mask;
    t->site = site;
}

void emu_meet(const char *what, uint32_t mask, emu_operation op, void *operands, emu_site site) {
    machine *m = running_machine;
    emu_thread *t = emu_self;
    emu_warp *w = t->warp;
    uint32_t me = 1u << t->lane;
    if ((mask & me) == 0) {
        emu_fault(site, "%s: the mask %#x lacks the lane that calls, %u", what, mask, t->lane);
    }
    size_t i = 0;
    while (i < w->meetings.size() && w->meetings[i].mask != mask) {
        i++; /* lanes that wait there may come here later */
    }
    if (i == w->meetings.size()) {
        w->meetings.push_back({mask, 0, op, what});
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
    give_way(m);
}

uint32_t emu_barrier(const char *what, uint32_t id, uint32_t threads, bool arrive,
                     emu_reduction reduction, uint32_t value, emu_site site) {
    machine *m = running_machine;
    emu_thread *t = emu_self;
    if (id >= BARRIERS || threads % 32 != 0 || threads > m->n_threads) {
        emu_fault(site, "%s: barrier %u for %u threads", what, id, threads);
    }
    barrier *b = &m->barriers[id];
    if (b->what == NULL) {
        b->threads = threads;
        b->reduction = reduction;
        b->what = what;
        b->site = site;
    } else if (b->threads != threads || b->reduction != reduction ||
               (threads == 0 && b->site.line != site.line)) {
        emu_fault(site, "%s of barrier %u for %u threads, while others wait in %s for %u at %s:%d",
                  what, id, threads, b->what, b->threads, b->site.file, b->site.line);
    }
    b->count++;
    b->value += reduction == EMU_NONE ? 0 : value != 0;
    if (!arrive) {
        b->waiting[t->number / 32] |= 1u << t->lane;
        note_wait(t, what, id, site);
    }
    if (complete(m, b)) {
        finish_barrier(m, b);
    }
    if (!arrive) {
        give_way(m);
    }
    return t->result;
}

/* ---- blocks ---- */

/* Threads in their places, nobody started, and an order for them. */
static void set_up(machine *m, const emu_grid *g) {
    dim3 n = g->block;
    m->n_alive = m->n_threads;
    m->order = (way)(next_random(m) >> 62);
    uint32_t ranks[WARPS];
    for (uint32_t i = 0; i < m->n_warps; i++) {
        ranks[i] = m->order == BACKWARD ? m->n_warps - 1 - i : i;
    }
    for (uint32_t i = m->n_warps; m->order == WARPWISE && i > 1; i--) {
        uint32_t j = (uint32_t)(next_random(m) >> 33) % i, last = ranks[i - 1];
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
        w->meetings.clear();
        m->by_rank[w->rank] = w;
        m->ready |= 1u << w->rank;
    }
    for (uint32_t i = 0; i < m->n_threads; i++) {
        emu_thread *t = &m->threads[i];
        t->index = {i % n.x, i / n.x % n.y, i / (n.x * n.y)};
        t->fiber = NULL;
        t->what = NULL;
    }
    memset(m->barriers, 0, sizeof m->barriers);
}

static void run_block(machine *m, const emu_grid *g, uint3 index) {
    m->block.index = index;
    m->random = (m->seed * 0x9e3779b97f4a7c15u) ^ (m->launches * 0xbf58476d1ce4e5b9u) ^
                (((uint64_t)index.z << 42) + ((uint64_t)index.y << 21) + index.x + 1);
    m->random = m->random != 0 ? m->random : 1;
    for (int i = 0; i < 4; i++) {
        (void)next_random(m);
    }
    set_up(m, g);
    memset(m->block.shared, GARBAGE, g->shared);
    m->starting = take_ready(m);
    emu_fiber *to = idle_fiber(m);
    m->current = to;
    emu_fiber_switch(m->host, to);
    emu_self = NULL;
    if (EMU_ASAN) {
        return; /* it saw to that */
    }
    for (int i = 0; i < CANARY_BYTES && m->block.shared[g->shared + (size_t)i] == CANARY; i++) {
        if (i == CANARY_BYTES - 1) {
            return;
        }
    }
    fprintf(stderr, "emu: a block wrote beyond its %zu bytes of shared memory\n", g->shared);
    print_place(m);
    abort();
}

void emu_run(const emu_grid *g) {
    machine *m = here();
    if (emu_self != NULL) {
        emu_fault(EMU_SITE, "a kernel launches a kernel");
    }
    running_machine = m;
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
