/* The race detector's clocks: what orders accesses. */
#ifdef INF_EMU_RACES

#include <string.h>

#include <atomic>

#include "kernels/cuda/emu/race_inside.h"

emu_detector *emu_detector_of_thread() {
    static thread_local emu_detector d;
    return &d;
}

/* ---- knowledge ---- */

static void join(emu_clocks *to, const emu_clocks &from) {
    if (*to == from || from == NULL) {
        return;
    }
    if (*to == NULL) {
        *to = from;
        return;
    }
    auto sum = std::make_shared<std::vector<uint32_t>>(**to);
    bool is_to = true, is_from = true;
    for (size_t i = 0; i < sum->size(); i++) {
        uint32_t a = (*sum)[i], b = (*from)[i];
        is_to = is_to && a >= b;
        is_from = is_from && b >= a;
        (*sum)[i] = a > b ? a : b;
    }
    if (!is_to) {
        *to = is_from ? from : emu_clocks(sum);
    }
}

static void join(emu_knowledge *to, const emu_knowledge &from) {
    for (const auto &k : from) {
        join(&(*to)[k.first], k.second);
    }
}

/* All that a thread knows, and its own epoch. */
static emu_knowledge all_of(const emu_detector *d, const emu_thread *t) {
    const emu_racer &r = d->racers[t->number];
    emu_knowledge k = r.known;
    auto v = std::make_shared<std::vector<uint32_t>>(d->at_barrier);
    size_t base = t->number / 32 * 32;
    for (size_t i = 0; i < 32 && base + i < v->size(); i++) {
        uint32_t &e = (*v)[base + i];
        e = r.lanes[i] > e ? r.lanes[i] : e;
    }
    (*v)[t->number] = r.epoch;
    join(&k[d->block], emu_clocks(v));
    return k;
}

bool emu_is_ordered(const emu_detector *d, const emu_thread *t, const emu_record &r) {
    const emu_racer &me = d->racers[t->number];
    if (r.launch != d->launch) {
        return r.launch < d->chain || (t->waited && r.launch >= d->beyond);
    }
    if (r.block == d->block &&
        (r.thread == t->number || r.epoch <= d->at_barrier[r.thread] ||
         (r.thread / 32 == t->number / 32 && r.epoch <= me.lanes[r.thread % 32]))) {
        return true;
    }
    auto it = me.known.find(r.block);
    return it != me.known.end() && (*it->second)[r.thread] >= r.epoch;
}

/* ---- launches and blocks ---- */

void emu_race_launch(emu_machine *m) {
    static std::atomic<uint32_t> launches{0};
    emu_detector *d = emu_detector_of_thread();
    const emu_grid *g = m->block.grid;
    bool follows = g->stream == d->stream && g->step == d->step + 1;
    uint32_t before = d->launch;
    d->launch = ++launches;
    if (!g->early || !follows) {
        d->chain = d->launch;
    }
    /* If nobody in the kernel in front has waited, its end does not say that those before ended. */
    d->beyond = d->anyone_waited ? d->chain : before;
    d->anyone_waited = !g->early;
    d->stream = g->stream;
    d->step = g->step;
    d->words.clear();
    for (emu_racer &r : d->racers) {
        r.epoch = 0;
    }
    emu_watch_shared(d, m);
}

void emu_race_waited() { emu_detector_of_thread()->anyone_waited = true; }

/* Epochs go on from block to block. */
void emu_race_block(emu_machine *m) {
    emu_detector *d = emu_detector_of_thread();
    uint3 i = m->block.index;
    dim3 n = m->block.grid->grid;
    d->block = (i.z * n.y + i.y) * n.x + i.x;
    d->at_barrier.assign(m->n_threads, 0);
    d->fenced.clear();
    d->pending.clear();
    d->objects.clear();
    for (emu_knowledge &k : d->named) {
        k.clear();
    }
    for (uint32_t t = 0; t < m->n_threads; t++) {
        emu_racer &r = d->racers[t];
        d->at_barrier[t] = r.epoch++;
        memset(r.lanes, 0, sizeof r.lanes);
        r.known.clear();
        r.fenced.clear();
        r.pending.clear();
    }
}

/* ---- barriers ---- */

void emu_race_barrier(emu_machine *m) {
    emu_detector *d = emu_detector_of_thread();
    emu_knowledge known;
    for (uint32_t t = 0; t < m->n_threads; t++) {
        emu_racer &r = d->racers[t];
        d->at_barrier[t] = r.epoch++;
        join(&known, r.known);
        join(&d->fenced, r.fenced);
        join(&d->pending, r.pending);
    }
    for (uint32_t t = 0; t < m->n_threads && !known.empty(); t++) {
        d->racers[t].known = known;
    }
}

void emu_race_lanes(emu_machine *, emu_warp *w, uint32_t lanes) {
    emu_detector *d = emu_detector_of_thread();
    emu_racer *warp = &d->racers[w->number * 32];
    uint32_t sum[32] = {};
    emu_knowledge known;
    for (uint32_t bits = lanes; bits != 0; bits &= bits - 1) {
        uint32_t i = (uint32_t)__builtin_ctz(bits);
        warp[i].lanes[i] = warp[i].epoch++;
        for (uint32_t j = 0; j < 32; j++) {
            sum[j] = warp[i].lanes[j] > sum[j] ? warp[i].lanes[j] : sum[j];
        }
        join(&known, warp[i].known);
    }
    for (uint32_t bits = lanes; bits != 0; bits &= bits - 1) {
        emu_racer &r = warp[__builtin_ctz(bits)];
        memcpy(r.lanes, sum, sizeof sum);
        if (!known.empty()) {
            r.known = known;
        }
    }
}

/* The thread gives its knowledge, and begins an epoch. */
static void give(emu_knowledge *to, const emu_thread *t) {
    emu_detector *d = emu_detector_of_thread();
    join(to, all_of(d, t));
    d->racers[t->number].epoch++;
}

void emu_race_arrive(emu_thread *t, uint32_t barrier) {
    give(&emu_detector_of_thread()->named[barrier], t);
}

void emu_race_release(emu_thread *t, uint32_t barrier) {
    emu_detector *d = emu_detector_of_thread();
    join(&d->racers[t->number].known, d->named[barrier]);
}

void emu_race_barrier_over(uint32_t barrier) { emu_detector_of_thread()->named[barrier].clear(); }

void emu_race_post(const void *object) {
    give(&emu_detector_of_thread()->objects[object], emu_self);
}

void emu_race_take(const void *object) {
    emu_detector *d = emu_detector_of_thread();
    join(&d->racers[emu_self->number].known, d->objects[object]);
}

/* ---- fences and atomic operations ---- */

void emu_race_fence() {
    if (emu_self == NULL) {
        return;
    }
    emu_detector *d = emu_detector_of_thread();
    emu_racer &r = d->racers[emu_self->number];
    join(&r.known, r.pending);
    join(&r.known, d->pending);
    r.pending.clear();
    r.fenced.clear();
    give(&r.fenced, emu_self);
}

void emu_race_atomic(const void *p) {
    emu_detector *d = emu_detector_of_thread();
    emu_racer &r = d->racers[emu_self->number];
    emu_knowledge &word = d->words[p];
    join(&r.pending, word);
    join(&word, r.fenced);
    join(&word, d->fenced);
}

#endif
