/* The other end of a link, played by a test: messages written by hand, a mutator for them, and an
 * honest peer to compare with. */
#ifndef INF_TESTS_WIRE_RAW_H
#define INF_TESTS_WIRE_RAW_H

#include "dist_world.h"

#include <pthread.h>
#include <stdatomic.h>

/* Posts a message, waiting for room; the link's status when it dies first. */
static inline int raw_send(inf_link *link, const void *data, uint64_t len) {
    void *buf = NULL;
    int status;
    /* No wait on the link: it returns at once while there are answers to take. */
    for (int i = 0; (status = inf_link_prepare(link, &buf)) == INF_AGAIN; i++) {
        CHECK(i < 600000 && nanosleep(&(struct timespec){0, 100000}, NULL) == 0);
    }
    if (status != INF_OK) {
        return status;
    }
    if (len > 0) {
        memcpy(buf, data, len);
    }
    return inf_link_post(link, len);
}

/* The next message, to be released, or the status of a link that died instead. Short sleeps: a
 * peer that scribbles on the control words loses wake-ups. */
static inline int raw_receive(inf_link *link, const uint8_t **msg, uint64_t *len) {
    const void *at = NULL;
    int status;
    for (int i = 0; (status = inf_link_poll(link, &at, len)) == INF_AGAIN; i++) {
        CHECK(i < 60000 && inf_link_wait(&link, 1, -1, 1000000) >= 0);
    }
    *msg = at;
    return status;
}

/* Expects the link's death, whatever came before. */
static inline void raw_expect_death(inf_link *link, int status) {
    const uint8_t *msg;
    uint64_t len;
    int is;
    while ((is = raw_receive(link, &msg, &len)) == INF_OK) {
        inf_link_release(link);
    }
    CHECK(is == status);
}

/* What a race detector looks for shows in fewer messages, and it is slow. */
#ifdef __SANITIZE_THREAD__
enum { RAW_SHARE = 4 };
#else
enum { RAW_SHARE = 1 };
#endif

static inline uint32_t raw_below(uint64_t *rng, uint32_t n) {
    return (uint32_t)((w_next(rng) >> 33) % n);
}

/* ---- messages as an honest peer writes them ---- */

typedef struct {
    uint64_t len, head; /* bytes; of them, those before the numbers */
    _Alignas(64) uint8_t data[1 << 18];
} raw_msg;

static inline inf_wire_head *raw_head(raw_msg *m) { return (inf_wire_head *)(void *)m->data; }

static inline inf_wire_group *raw_groups(raw_msg *m) {
    return (inf_wire_group *)(void *)(m->data + sizeof(inf_wire_head));
}

static inline inf_wire_entry *raw_entries(raw_msg *m) {
    return (inf_wire_entry *)(void *)(raw_groups(m) + raw_head(m)->n_groups);
}

static inline inf_wire_move *raw_move(raw_msg *m) {
    return (inf_wire_move *)(void *)(m->data + sizeof(inf_wire_head));
}

/* A query of n_groups groups with rows rows and entries entries each; the caller fills in entries
 * and q_pos0. The numbers are random. */
static inline void raw_query(raw_msg *m, uint32_t n_groups, uint32_t rows, uint32_t entries,
                             uint64_t id, uint32_t layer, uint64_t *rng) {
    m->head = inf_wire_query_head(n_groups, n_groups * entries);
    m->len = m->head + (uint64_t)n_groups * rows * W_ROW * sizeof(float);
    CHECK(m->len <= sizeof m->data);
    memset(m->data, 0, m->head);
    *raw_head(m) = (inf_wire_head){.magic = INF_WIRE_MAGIC,
                                   .kind = INF_WIRE_QUERY,
                                   .step_id = id,
                                   .layer = layer,
                                   .n_groups = n_groups,
                                   .n_entries = n_groups * entries,
                                   .n_rows = n_groups * rows,
                                   .bytes = m->len};
    for (uint32_t g = 0; g < n_groups; g++) {
        raw_groups(m)[g] = (inf_wire_group){
            .row_off = g * rows, .rows = rows, .entry_off = g * entries, .n_entries = entries};
    }
    float *q = (float *)(void *)(m->data + m->head);
    for (uint64_t i = 0; i < (m->len - m->head) / sizeof *q; i++) {
        q[i] = 2 * w_float(rng);
    }
}

/* The answer to a query: statuses 0, random o, lse near 0. */
static inline void raw_partial(raw_msg *m, const inf_wire_head *query, uint64_t *rng) {
    m->head = inf_wire_partial_head(query->n_groups);
    m->len = m->head + (uint64_t)query->n_rows * (W_ROW + W_HEADS) * sizeof(float);
    CHECK(m->len <= sizeof m->data);
    memset(m->data, 0, m->head);
    *raw_head(m) = *query;
    raw_head(m)->kind = INF_WIRE_PARTIAL;
    raw_head(m)->bytes = m->len;
    float *o = (float *)(void *)(m->data + m->head);
    for (uint64_t i = 0; i < (m->len - m->head) / sizeof *o; i++) {
        o[i] = w_float(rng);
    }
}

/* A move of n blocks of random bytes. */
static inline void raw_blocks(raw_msg *m, inf_wire_move move, uint64_t block_bytes, uint64_t *rng) {
    m->head = inf_wire_move_head();
    m->len = m->head + move.n * block_bytes;
    CHECK(m->len <= sizeof m->data);
    memset(m->data, 0, m->head);
    *raw_head(m) = (inf_wire_head){.magic = INF_WIRE_MAGIC, .kind = INF_WIRE_MOVE, .bytes = m->len};
    *raw_move(m) = move;
    for (uint64_t i = m->head; i < m->len; i += sizeof(uint64_t)) {
        uint64_t x = w_next(rng);
        memcpy(m->data + i, &x, sizeof x);
    }
}

/* ---- mutations ---- */

static inline uint32_t raw_extreme(uint64_t *rng, uint32_t old) {
    const uint32_t values[] = {0,
                               1,
                               2,
                               W_TOKENS,
                               W_TOKENS + 1,
                               W_SPANS + 1,
                               0x7fffffff,
                               1u << 31,
                               UINT32_MAX,
                               old + 1,
                               old - 1,
                               old * 2,
                               old + W_BLOCK,
                               (uint32_t)w_next(rng)};
    return values[raw_below(rng, sizeof values / sizeof *values)];
}

static inline void raw_mutate_once(raw_msg *m, uint64_t room, uint64_t *rng) {
    /* The head is small and decides; the numbers are many and do not. */
    uint32_t part = (uint32_t)(m->head < m->len ? m->head : m->len);
    uint32_t words = part / 4, all = (uint32_t)m->len, kind = raw_below(rng, 10);
    if (kind <= 1 && part > 0) { /* a bit of the head */
        m->data[raw_below(rng, part)] ^= (uint8_t)(1u << raw_below(rng, 8));
    } else if (kind <= 4 && words > 0) { /* a field, or one field in the place of another */
        uint32_t *word = (uint32_t *)(void *)m->data + raw_below(rng, words), old = *word;
        *word = kind == 4 ? ((uint32_t *)(void *)m->data)[raw_below(rng, words)]
                          : raw_extreme(rng, old);
    } else if (kind == 5 && words > 1) {
        uint64_t value = raw_below(rng, 2) ? UINT64_MAX : UINT64_C(1) << raw_below(rng, 64);
        memcpy(m->data + 8 * (size_t)raw_below(rng, words / 2), &value, sizeof value);
    } else if (kind == 6) { /* cut off, to nothing at times */
        m->len = raw_below(rng, 4) ? raw_below(rng, all + 1) : raw_below(rng, 2) * part;
    } else if (kind == 7) { /* longer, with or without a word on it */
        uint64_t grown = m->len + 1 + raw_below(rng, raw_below(rng, 2) ? 64 : 8192);
        m->len = grown < room ? grown : room;
        if (raw_below(rng, 2) && part >= sizeof(inf_wire_head)) {
            raw_head(m)->bytes = m->len;
        }
    } else if (all > part + 4) { /* numbers that are none */
        const uint32_t odd[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 1, 0x7f800001};
        uint32_t at = part + 4 * raw_below(rng, (all - part) / 4);
        memcpy(m->data + at, &odd[raw_below(rng, 6)], 4);
    }
}

/* Up to three mutations; now and then none, because the valid message must get through. */
static inline void raw_mutate(raw_msg *m, uint64_t room, uint64_t *rng) {
    for (uint32_t n = raw_below(rng, 4); n > 0; n--) {
        raw_mutate_once(m, room, rng);
    }
}

/* ---- an honest debtor that steps beside everything else, and must get right results ---- */

typedef struct {
    pthread_t thread;
    inst home;
    req *r;
    uint64_t rng, steps;
    atomic_bool stop;
} honest;

static inline void *honest_main(void *arg) {
    honest *h = arg;
    step *s = malloc(sizeof *s);
    CHECK(s != NULL);
    while (!atomic_load(&h->stop)) {
        w_begin(&h->home, s, &h->r, 1, ++h->steps);
        for (int32_t l = 0; l < W_LAYERS; l++) {
            w_layer(&h->home, s, &h->r, l, &h->rng);
            CHECK(s->seq_out[0].status == INF_OK && w_error(s, h->r, 0, l) < 1e-5);
        }
        inf_dist_end(h->home.d);
        nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    free(s);
    return NULL;
}

static inline void honest_start(honest *h, uint32_t provider, inst *creditor, uint32_t index,
                                uint64_t seed) {
    h->home = w_open(creditor->config.num_blocks);
    h->rng = seed;
    w_join(provider, &h->home, 1, creditor, index);
    h->r = w_req(&h->home, 41, 2, &h->rng);
    w_lend(&h->home, h->r, creditor, 1, index, 5);
    CHECK(pthread_create(&h->thread, NULL, honest_main, h) == 0);
}

static inline void honest_stop(honest *h) {
    inf_err err;
    atomic_store(&h->stop, true);
    CHECK(pthread_join(h->thread, NULL) == 0 && h->steps > 2);
    CHECK(inf_dist_peer_status(h->home.d, 1, &err) == INF_OK);
    free(h->r);
    w_close(&h->home);
}

#endif
