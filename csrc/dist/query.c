/* A query message: what it must be, the spans that it names, and its answer.
 *
 * Nothing in a message is trusted. What is malformed ends the link; what is merely stale (a span
 * that was released, tokens that have not landed) is answered with a status for its group. */
#include "dist/query.h"

#include <string.h>

/* The entries of a group are spans in order, none over another, all before the queries. */
static bool entries_ok(const inf_query *m, const inf_wire_group *w, uint32_t block_size) {
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

static bool groups_ok(const inf_dist *d, const inf_query *m) {
    const inf_wire_head *h = &m->head;
    uint32_t rows = 0, entries = 0;
    for (uint32_t g = 0; g < h->n_groups; g++) {
        const inf_wire_group *w = &m->groups[g];
        if (w->row_off != rows || w->rows == 0 || w->rows > h->n_rows - rows ||
            w->entry_off != entries || w->n_entries == 0 || w->n_entries > h->n_entries - entries ||
            (uint64_t)w->q_pos0 + w->rows > INT32_MAX ||
            (w->reserved[0] | w->reserved[1] | w->reserved[2]) != 0 ||
            !entries_ok(m, w, (uint32_t)d->kv.block_size)) {
            return false;
        }
        rows += w->rows;
        entries += w->n_entries;
    }
    return rows == h->n_rows && entries == h->n_entries;
}

int inf_query_parse(const inf_dist *d, const uint8_t *msg, uint64_t len, uint32_t groups,
                    uint32_t entries, inf_query *m) {
    inf_wire_head *h = &m->head;
    if (len < sizeof *h) {
        return INF_EPROTO;
    }
    memcpy(h, msg, sizeof *h);
    if (h->magic != INF_WIRE_MAGIC || h->kind != INF_WIRE_QUERY || h->bytes != len ||
        h->layer >= (uint32_t)d->layers || h->n_groups == 0 || h->n_groups > d->max_groups ||
        h->n_entries == 0 || h->n_entries > d->max_entries || h->n_rows == 0 ||
        h->n_rows > d->max_tokens || h->half >= INF_HALVES ||
        (h->reserved[0] | h->reserved[1] | h->reserved[2]) != 0) {
        return INF_EPROTO;
    }
    uint64_t head_bytes = inf_wire_query_head(h->n_groups, h->n_entries);
    uint64_t row = (uint64_t)d->heads * (uint64_t)d->head_dim * sizeof(float);
    if (len != head_bytes + (uint64_t)h->n_rows * row) {
        return INF_EPROTO;
    }
    if (h->n_groups > groups || h->n_entries > entries) {
        return INF_AGAIN;
    }
    size_t bytes = h->n_groups * sizeof(inf_wire_group);
    memcpy(m->groups, msg + sizeof *h, bytes);
    memcpy(m->entries, msg + sizeof *h + bytes, h->n_entries * sizeof(inf_wire_entry));
    m->bytes = len;
    m->q = (const float *)(msg + head_bytes);
    return groups_ok(d, m) ? INF_OK : INF_EPROTO;
}

/* Takes every span of a group; on failure none is held and the status says why. */
static int32_t take_group(inf_dist *d, const inf_query *m, const inf_wire_group *w,
                          inf_wait *wait) {
    for (uint32_t i = 0; i < w->n_entries; i++) {
        const inf_wire_entry *e = &m->entries[w->entry_off + i];
        int status = inf_span_get(d, m->owner, e, m->head.layer, &m->lists[w->entry_off + i], wait);
        if (status == INF_OK) {
            continue;
        }
        while (i-- > 0) {
            inf_span_put(d, m->entries[w->entry_off + i].handle);
        }
        return status;
    }
    return INF_OK;
}

int inf_query_take(inf_dist *d, inf_query *m, inf_wait *wait) {
    uint32_t refused = 0;
    bool waits = false, waited = wait->since_ns != 0;
    wait->until_ns = 0;
    for (uint32_t g = 0; g < m->head.n_groups; g++) {
        m->statuses[g] = take_group(d, m, &m->groups[g], wait);
        waits = waits || m->statuses[g] == INF_AGAIN;
        refused += m->statuses[g] != INF_OK;
    }
    if (waits) {
        inf_query_put(d, m);
        return INF_AGAIN;
    }
    if (!waited) { /* else a wave ended, and that is no fault of the peer's */
        atomic_fetch_add(&d->refused, refused);
    }
    return INF_OK;
}

void inf_query_put(inf_dist *d, const inf_query *m) {
    for (uint32_t g = 0; g < m->head.n_groups; g++) {
        const inf_wire_group *w = &m->groups[g];
        for (uint32_t i = 0; m->statuses[g] == INF_OK && i < w->n_entries; i++) {
            inf_span_put(d, m->entries[w->entry_off + i].handle);
        }
    }
}

static inf_attn attn_args(const inf_dist *d, const inf_query *m, const inf_wire_group *w,
                          uint32_t k) {
    size_t row = (size_t)d->heads * (size_t)d->head_dim;
    const inf_wire_entry *e = &m->entries[w->entry_off + k];
    return (inf_attn){.q = m->q + w->row_off * row,
                      .rows = (int32_t)w->rows,
                      .heads = d->heads,
                      .q_pos0 = w->q_pos0,
                      .pool = d->pool,
                      .kv = &d->kv,
                      .layer = (int32_t)m->head.layer,
                      .blocks = m->lists[w->entry_off + k],
                      .kv_pos0 = e->pos0,
                      .n_tokens = e->n_tokens,
                      .window = d->windows[m->head.layer],
                      .scale = d->scale,
                      .softcap = d->config.attn_softcap,
                      .o = m->o + w->row_off * row,
                      .lse = m->lse + (size_t)w->row_off * (size_t)d->heads};
}

uint32_t inf_query_args(const inf_dist *d, const inf_query *m, inf_attn *args) {
    uint32_t n = 0;
    for (uint32_t g = 0; g < m->head.n_groups; g++) {
        const inf_wire_group *w = &m->groups[g];
        for (uint32_t k = 0; m->statuses[g] == INF_OK && k < w->n_entries; k++) {
            args[n++] = attn_args(d, m, w, k);
        }
    }
    return n;
}

/* The rows of refused groups carry nothing, rather than what the slot held before. */
static void clear_refused(const inf_dist *d, const inf_query *m) {
    size_t heads = (size_t)d->heads, row = heads * (size_t)d->head_dim;
    for (uint32_t g = 0; g < m->head.n_groups; g++) {
        const inf_wire_group *w = &m->groups[g];
        if (m->statuses[g] != INF_OK) {
            memset(m->o + w->row_off * row, 0, w->rows * row * sizeof(float));
            memset(m->lse + w->row_off * heads, 0, w->rows * heads * sizeof(float));
        }
    }
}

uint64_t inf_query_finish(const inf_dist *d, const inf_query *m) {
    uint64_t head_bytes = inf_wire_partial_head(m->head.n_groups);
    inf_wire_head h = m->head;
    h.kind = INF_WIRE_PARTIAL;
    h.bytes = head_bytes +
              (uint64_t)h.n_rows * (uint64_t)d->heads * ((uint64_t)d->head_dim + 1) * sizeof(float);
    clear_refused(d, m);
    memset(m->out, 0, head_bytes);
    memcpy(m->out, &h, sizeof h);
    memcpy(m->out + sizeof h, m->statuses, h.n_groups * sizeof(int32_t));
    return h.bytes;
}
