/* The creditor's side of a step: a thread that answers queries over hosted spans.
 *
 * q is read from the request's slot and o is written into the reply's slot: on the CPU nothing is
 * copied. A message holds all of one debtor's rows of one layer, and runs as one batch.
 *
 * Nothing in a message is trusted. What is malformed ends the link; what is merely stale (a span
 * that was released, tokens that have not landed) is answered with a status for its group. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "dist/internal.h"
#include "dist/marks.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct query {
    inf_wire_head head;
    const inf_wire_group *groups; /* copies: shared memory can change under the reader */
    const inf_wire_entry *entries;
    const float *q;
} query;

/* The entries of a group are spans in order, none over another, all before the queries. */
static bool entries_ok(const query *m, const inf_wire_group *w, uint32_t block_size) {
    uint64_t end = 0;
    for (uint32_t i = 0; i < w->n_entries; i++) {
        const inf_wire_entry *e = &m->entries[w->entry_off + i];
        if (e->n_tokens == 0 || e->n_tokens % block_size != 0 || e->pos0 < end) {
            return false;
        }
        end = (uint64_t)e->pos0 + e->n_tokens;
    }
    return end <= w->q_pos0;
}

/* Checks all of a message but what the span table alone can tell. */
static int parse(inf_dist *d, const uint8_t *msg, uint64_t len, query *m) {
    inf_wire_head *h = &m->head;
    if (len < sizeof *h) {
        return INF_EPROTO;
    }
    memcpy(h, msg, sizeof *h);
    if (h->magic != INF_WIRE_MAGIC || h->kind != INF_WIRE_QUERY || h->bytes != len ||
        h->layer >= (uint32_t)d->layers || h->n_groups == 0 || h->n_groups > d->max_groups ||
        h->n_entries == 0 || h->n_entries > d->max_entries || h->n_rows == 0 ||
        h->n_rows > d->max_tokens || (h->reserved[0] | h->reserved[1]) != 0) {
        return INF_EPROTO;
    }
    uint64_t head_bytes = inf_wire_query_head(h->n_groups, h->n_entries);
    uint64_t row = (uint64_t)d->heads * (uint64_t)d->head_dim * sizeof(float);
    if (len != head_bytes + (uint64_t)h->n_rows * row) {
        return INF_EPROTO;
    }
    size_t groups = h->n_groups * sizeof(inf_wire_group);
    memcpy(d->wire_groups, msg + sizeof *h, groups);
    memcpy(d->wire_entries, msg + sizeof *h + groups, h->n_entries * sizeof(inf_wire_entry));
    m->groups = d->wire_groups;
    m->entries = d->wire_entries;
    m->q = (const float *)(msg + head_bytes);
    uint32_t rows = 0, entries = 0;
    for (uint32_t g = 0; g < h->n_groups; g++) {
        const inf_wire_group *w = &m->groups[g];
        if (w->row_off != rows || w->rows == 0 || w->rows > h->n_rows - rows ||
            w->entry_off != entries || w->n_entries == 0 || w->n_entries > h->n_entries - entries ||
            (uint64_t)w->q_pos0 + w->rows > INT32_MAX ||
            (w->reserved[0] | w->reserved[1] | w->reserved[2]) != 0 ||
            !entries_ok(m, w, (uint32_t)d->kv.block_size)) {
            return INF_EPROTO;
        }
        rows += w->rows;
        entries += w->n_entries;
    }
    return rows == h->n_rows && entries == h->n_entries ? INF_OK : INF_EPROTO;
}

/* Takes every span of a group; on failure none is held and the status says why. */
static int32_t take_spans(inf_dist *d, uint32_t owner, const query *m, const inf_wire_group *w) {
    uint32_t bs = (uint32_t)d->kv.block_size;
    for (uint32_t i = 0; i < w->n_entries; i++) {
        const inf_wire_entry *e = &m->entries[w->entry_off + i];
        int32_t n_blocks = 0;
        uint32_t landed = 0;
        int status = inf_span_get(d, owner, e->handle, e->generation, &d->lists[w->entry_off + i],
                                  &n_blocks, &landed);
        if (status == INF_OK) {
            if (e->n_tokens / bs <= landed) {
                continue;
            }
            inf_span_put(d, e->handle);
            status = INF_ESTALE;
        }
        while (i-- > 0) {
            inf_span_put(d, m->entries[w->entry_off + i].handle);
        }
        return status;
    }
    return INF_OK;
}

static void put_spans(inf_dist *d, const query *m, const inf_wire_group *w) {
    for (uint32_t i = 0; i < w->n_entries; i++) {
        inf_span_put(d, m->entries[w->entry_off + i].handle);
    }
}

static inf_attn attn_args(inf_dist *d, const query *m, const inf_wire_group *w, uint32_t k,
                          float *o, float *lse) {
    size_t row = (size_t)d->heads * (size_t)d->head_dim;
    const inf_wire_entry *e = &m->entries[w->entry_off + k];
    return (inf_attn){.q = m->q + w->row_off * row,
                      .rows = (int32_t)w->rows,
                      .heads = d->heads,
                      .q_pos0 = w->q_pos0,
                      .pool = d->pool,
                      .kv = &d->kv,
                      .layer = (int32_t)m->head.layer,
                      .blocks = d->lists[w->entry_off + k],
                      .kv_pos0 = e->pos0,
                      .n_tokens = e->n_tokens,
                      .window = d->windows[m->head.layer],
                      .scale = d->scale,
                      .o = o + w->row_off * row,
                      .lse = lse + (size_t)w->row_off * (size_t)d->heads};
}

static int compute(inf_dist *d, uint32_t owner, const query *m, float *o, float *lse) {
    int32_t n = 0;
    for (uint32_t g = 0; g < m->head.n_groups; g++) {
        const inf_wire_group *w = &m->groups[g];
        d->statuses[g] = take_spans(d, owner, m, w);
        if (d->statuses[g] != INF_OK) {
            atomic_fetch_add(&d->refused, 1);
        }
        for (uint32_t k = 0; d->statuses[g] == INF_OK && k < w->n_entries; k++) {
            d->attn[n++] = attn_args(d, m, w, k, o, lse);
        }
    }
    int status = d->ops->answer(d->answering, d->attn, n, NULL);
    for (uint32_t g = 0; g < m->head.n_groups; g++) {
        if (d->statuses[g] == INF_OK) {
            put_spans(d, m, &m->groups[g]);
        }
    }
    return status;
}

/* The rows of refused groups carry nothing, rather than what the slot held before. */
static void clear_refused(inf_dist *d, const query *m, float *o, float *lse) {
    size_t heads = (size_t)d->heads, row = heads * (size_t)d->head_dim;
    for (uint32_t g = 0; g < m->head.n_groups; g++) {
        const inf_wire_group *w = &m->groups[g];
        if (d->statuses[g] != INF_OK) {
            memset(o + w->row_off * row, 0, w->rows * row * sizeof(float));
            memset(lse + w->row_off * heads, 0, w->rows * heads * sizeof(float));
        }
    }
}

/* Only a creditor needs it. Without threads of its own it still answers, on this one. */
static void open_answering(inf_dist *d) {
    if (d->answering_tried) {
        return;
    }
    d->answering_tried = true;
    /* Threads begin where their maker may run, and this one may be kept beside a NIC. */
    cpu_set_t mine, all;
    bool keeps = sched_getaffinity(0, sizeof mine, &mine) == 0 &&
                 sched_getaffinity(getpid(), sizeof all, &all) == 0 &&
                 sched_setaffinity(0, sizeof all, &all) == 0;
    if (inf_pool_open(d->threads, &d->workers) != INF_OK) {
        d->workers = NULL;
    }
    if (keeps) {
        sched_setaffinity(0, sizeof mine, &mine);
    }
    if (inf_dist_lane(d, INF_LANE_ANSWER, &d->answering) != INF_OK) {
        d->answering = NULL;
    }
}

/* Answers one message, in the slot that was prepared. */
static int answer(inf_dist *d, inf_link *link, uint32_t owner, const uint8_t *msg, uint64_t len,
                  void *out) {
    query m;
    int status = parse(d, msg, len, &m);
    if (status != INF_OK) {
        return status;
    }
    const inf_wire_head *q = &m.head;
    (void)inf_mark_query_arrived(owner, q->lane, q->step_id, q->layer, q->n_rows, len);
    uint8_t *buf = out;
    size_t heads = (size_t)d->heads, row = heads * (size_t)d->head_dim;
    uint64_t head_bytes = inf_wire_partial_head(m.head.n_groups);
    float *o = (float *)(buf + head_bytes), *lse = o + m.head.n_rows * row;
    open_answering(d);
    status = d->answering != NULL ? compute(d, owner, &m, o, lse) : INF_ENOMEM;
    if (status != INF_OK) {
        return status;
    }
    (void)inf_mark_query_computed(owner, q->lane, q->step_id, q->layer, q->n_rows, len);
    clear_refused(d, &m, o, lse);
    inf_wire_head h = m.head;
    h.kind = INF_WIRE_PARTIAL;
    h.bytes = head_bytes + (uint64_t)h.n_rows * (row + heads) * sizeof(float);
    memset(buf, 0, head_bytes);
    memcpy(buf, &h, sizeof h);
    memcpy(buf + sizeof h, d->statuses, h.n_groups * sizeof(int32_t));
    atomic_fetch_add(&d->served_messages, 1);
    atomic_fetch_add(&d->served_rows, h.n_rows);
    atomic_fetch_add(&d->served_bytes, h.bytes);
    status = inf_link_post(link, h.bytes);
    if (status == INF_OK) {
        (void)inf_mark_query_returned(owner, h.lane, h.step_id, h.layer, h.n_rows, h.bytes);
    }
    return status;
}

static void serve_peer(inf_dist *d, inf_link *link, uint32_t peer) {
    const void *msg = NULL;
    void *out = NULL;
    uint64_t len = 0;
    int room = inf_link_prepare(link, &out);
    if (room == INF_AGAIN && !inf_link_full(link)) {
        return; /* an earlier answer is not known to have arrived; there is room soon */
    }
    int status = inf_link_poll(link, &msg, &len);
    if (status == INF_AGAIN) {
        return;
    }
    if (status == INF_OK) {
        /* A debtor asks again only after it took the answer, so there is room. */
        status = room == INF_OK ? answer(d, link, peer, msg, len, out)
                                : (room == INF_AGAIN ? INF_EPROTO : room);
        inf_link_release(link);
        atomic_store(&d->answered_ns, inf_now());
    }
    if (status != INF_OK) {
        inf_peer_fail(d, peer, status, link);
    }
}

void *inf_serve_main(void *dist) {
    inf_dist *d = dist;
    inf_link *links[INF_MAX_PEERS];
    uint32_t ids[INF_MAX_PEERS];
    while (!atomic_load(&d->stopping)) {
        inf_dist_unwake(d->server.wake);
        inf_near_follow(d, &d->server);
        uint32_t n = inf_server_round(d, links, ids);
        for (uint32_t i = 0; i < n; i++) {
            serve_peer(d, links[i], ids[i]);
        }
        inf_link_wait(links, n, d->server.wake, 100000000);
    }
    return NULL;
}
