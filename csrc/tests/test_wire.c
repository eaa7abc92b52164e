/* A debtor that lies: raw links against an instance that hosts spans. Valid queries and moves with
 * mutations, over both providers. Each message is judged here a second time, from the protocol
 * alone (dist/wire.h), and the instance must come to the same verdict: it answers, refuses a group,
 * or ends that peer's links and counts it. Meanwhile an honest debtor goes on and gets right
 * results, and not a byte of the pool changes but where an accepted move says so. Over shm the
 * debtor also changes messages and control words while they are read.
 *
 *   test_wire [messages per provider] [seed] */
#include "wire_raw.h"

#include "transport/link_impl.h"

static uint64_t messages = 8000 / RAW_SHARE, seed = 1;

enum { HONEST = 5, HOSTILE = 66, V_BLOCKS = 96, N_SPANS = 4, SPAN_BLOCKS = 6 };

/* A span that the victim hosts for the hostile debtor, as the protocol has it. */
typedef struct {
    uint32_t handle, generation, landed;
    bool there[SPAN_BLOCKS];
    int32_t n, blocks[SPAN_BLOCKS];
} hosted;

typedef struct {
    uint32_t provider;
    inst v;
    honest other;
    inf_link *lane[2];
    uint8_t *shm; /* the query lane's memory */
    uint64_t shm_bytes, rng, refused, deaths, answers;
    uint8_t *model; /* what the pool must hold */
    hosted spans[N_SPANS];
    raw_msg msg, old;
} debtor;

static uint64_t refused(inst *w) {
    inf_device_stats s = {0};
    inf_dist_stats(w->d, &s);
    return s.refused_messages;
}

static void connect_debtor(debtor *w) {
    inf_link *s[2];
    inf_err err;
    int mem = -1;
    uint64_t bytes = inf_dist_query_slot_bytes(&w->v.config);
    w_link(w->provider, bytes, &w->lane[0], &s[0], &mem);
    w_link(w->provider, inf_dist_move_slot_bytes(&w->v.config), &w->lane[1], &s[1], NULL);
    if (mem >= 0) {
        w->shm_bytes = inf_link_shm_bytes(W_SLOTS, bytes);
        w->shm = mmap(NULL, w->shm_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
        CHECK(w->shm != MAP_FAILED && close(mem) == 0);
    }
    CHECK(inf_dist_peer_serve(w->v.d, HOSTILE, s[0], s[1], &err) == INF_OK);
}

/* Either end may go first. */
static void disconnect_debtor(debtor *w) {
    inf_err err;
    bool late = raw_below(&w->rng, 2) == 0;
    for (int i = 0; i < 2 && !late; i++) {
        inf_link_close(w->lane[i]);
    }
    CHECK(inf_dist_peer_detach(w->v.d, HOSTILE, &err) == INF_OK);
    for (int i = 0; i < 2 && late; i++) {
        inf_link_close(w->lane[i]);
    }
    if (w->shm != NULL) {
        CHECK(munmap(w->shm, w->shm_bytes) == 0);
        w->shm = NULL;
    }
}

static void check_pool(debtor *w) {
    w_sync(&w->v);
    CHECK(memcmp(w->v.pool, w->model, V_BLOCKS * w->v.kv.block_bytes) == 0);
    w_sync(&w->v);
    CHECK(refused(&w->v) == w->refused);
}

static void renew(debtor *w, hosted *s) {
    inf_err err;
    if (s->generation != 0) {
        CHECK(inf_dist_span_close(w->v.d, s->handle, s->generation, &err) == INF_OK);
    }
    s->generation += 1 + raw_below(&w->rng, 3);
    s->landed = 0;
    memset(s->there, 0, sizeof s->there);
    s->n = 1 + (int32_t)raw_below(&w->rng, SPAN_BLOCKS);
    CHECK(inf_dist_span_set(w->v.d, HOSTILE, s->handle, s->generation, s->blocks, s->n, &err) ==
          INF_OK);
}

/* Sends; the message must end the links when `dies`, else be answered. */
static const uint8_t *answer_to(debtor *w, int lane, const raw_msg *m, bool dies, uint64_t *len) {
    const uint8_t *msg = NULL;
    inf_err err;
    CHECK(raw_send(w->lane[lane], m->data, m->len) == INF_OK);
    int status = raw_receive(w->lane[lane], &msg, len);
    CHECK(dies ? status == INF_EPEER : status == INF_OK);
    if (dies) {
        CHECK(inf_dist_peer_status(w->v.d, HOSTILE, &err) == INF_EPROTO);
        raw_expect_death(w->lane[1 - lane], INF_EPEER);
        disconnect_debtor(w);
        connect_debtor(w);
        w->refused++;
        w->deaths++;
        return NULL;
    }
    w->answers++;
    return msg;
}

static hosted *find(debtor *w, uint32_t handle, uint32_t generation) {
    for (int i = 0; i < N_SPANS; i++) {
        if (w->spans[i].handle == handle && w->spans[i].generation == generation) {
            return &w->spans[i];
        }
    }
    return NULL;
}

/* The protocol's verdict on a query: false when it ends the links, else each group's status. */
static bool judge_query(debtor *w, const raw_msg *m, int32_t *status) {
    inf_wire_head h;
    uint64_t rows = 0, entries = 0;
    memcpy(&h, m->data, sizeof h);
    if (m->len < sizeof h || h.magic != INF_WIRE_MAGIC || h.kind != INF_WIRE_QUERY ||
        h.bytes != m->len || h.layer >= W_LAYERS || h.n_groups < 1 || h.n_groups > W_SPANS ||
        h.n_entries > W_SPANS || h.n_rows > W_TOKENS || h.half >= INF_HALVES || h.reserved[0] ||
        h.reserved[1] || h.reserved[2] ||
        m->len != inf_wire_query_head(h.n_groups, h.n_entries) + 4 * (uint64_t)h.n_rows * W_ROW) {
        return false;
    }
    for (uint32_t i = 0; i < h.n_groups; i++) {
        inf_wire_group g;
        uint64_t end = 0;
        memcpy(&g, m->data + sizeof h + i * sizeof g, sizeof g);
        if (g.row_off != rows || g.entry_off != entries || g.rows < 1 || g.n_entries < 1 ||
            (rows += g.rows) > h.n_rows || (entries += g.n_entries) > h.n_entries ||
            g.reserved[0] || g.reserved[1] || g.reserved[2]) {
            return false;
        }
        status[i] = INF_OK;
        for (uint64_t k = g.entry_off; k < entries; k++) {
            inf_wire_entry e;
            memcpy(&e, m->data + sizeof h + h.n_groups * sizeof g + k * sizeof e, sizeof e);
            if (e.n_tokens < 1 || e.n_tokens % W_BLOCK != 0 || e.pos0 < end) {
                return false;
            }
            end = (uint64_t)e.pos0 + e.n_tokens;
            const hosted *s = find(w, e.handle, e.generation);
            if (s == NULL || e.n_tokens / W_BLOCK > s->landed) {
                status[i] = INF_ESTALE;
            }
        }
        if (end > g.q_pos0 || (uint64_t)g.q_pos0 + g.rows > INT32_MAX) {
            return false;
        }
    }
    return rows == h.n_rows && entries == h.n_entries;
}

/* A refused group's rows carry nothing; what was not refused was computed by the kernels' tests. */
static void check_partial(const raw_msg *query, const int32_t *status, const uint8_t *msg,
                          uint64_t len) {
    inf_wire_head h;
    memcpy(&h, query->data, sizeof h);
    h.kind = INF_WIRE_PARTIAL;
    uint64_t head = inf_wire_partial_head(h.n_groups), row = W_ROW * sizeof(float);
    h.bytes = head + (uint64_t)h.n_rows * (W_ROW + W_HEADS) * sizeof(float);
    CHECK(len == h.bytes && memcmp(msg, &h, sizeof h) == 0);
    CHECK(memcmp(msg + sizeof h, status, h.n_groups * sizeof *status) == 0);
    for (uint32_t i = 0; i < h.n_groups; i++) {
        inf_wire_group g;
        memcpy(&g, query->data + sizeof h + i * sizeof g, sizeof g);
        for (uint64_t b = 0; status[i] != INF_OK && b < g.rows * row; b++) {
            CHECK(msg[head + g.row_off * row + b] == 0);
        }
    }
}

static void write_query(debtor *w, raw_msg *m) {
    uint32_t groups = 1 + raw_below(&w->rng, 3), entries = 1 + raw_below(&w->rng, 3);
    raw_query(m, groups, 1 + raw_below(&w->rng, 4), entries, w_next(&w->rng),
              raw_below(&w->rng, W_LAYERS), &w->rng);
    for (uint32_t g = 0; g < groups; g++) {
        uint32_t end = 0;
        for (uint32_t k = 0; k < entries; k++) {
            const hosted *s = &w->spans[raw_below(&w->rng, N_SPANS)];
            uint32_t n = s->landed > 0 ? 1 + raw_below(&w->rng, s->landed) : 1;
            inf_wire_entry *e = &raw_entries(m)[g * entries + k];
            *e = (inf_wire_entry){s->handle, s->generation, end, n * W_BLOCK};
            if (raw_below(&w->rng, 24) == 0) { /* the honest peer's span, as it calls it itself */
                e->handle = w->other.r->spans[0].handle;
                e->generation = w->other.r->spans[0].generation;
            }
            end += n * W_BLOCK + raw_below(&w->rng, 3);
        }
        raw_groups(m)[g].q_pos0 = end + raw_below(&w->rng, 9);
    }
}

static void query_round(debtor *w) {
    int32_t status[W_SPANS];
    uint64_t len = 0;
    write_query(w, &w->msg);
    raw_mutate(&w->msg, inf_dist_query_slot_bytes(&w->v.config), &w->rng);
    bool valid = judge_query(w, &w->msg, status);
    const uint8_t *msg = answer_to(w, 0, &w->msg, !valid, &len);
    if (msg != NULL) {
        check_partial(&w->msg, status, msg, len);
        for (uint32_t i = 0; i < raw_head(&w->msg)->n_groups; i++) {
            w->refused += status[i] != INF_OK;
        }
        inf_link_release(w->lane[0]);
    }
}

/* The protocol's verdict on a move: INF_EPROTO ends the links; INF_OK: the blocks have landed. */
static int judge_move(debtor *w, const raw_msg *m, inf_wire_move *answer) {
    inf_wire_head h;
    uint64_t head = inf_wire_move_head(), block = w->v.kv.block_bytes;
    memcpy(&h, m->data, sizeof h);
    const inf_wire_head want = {
        .magic = INF_WIRE_MAGIC, .kind = INF_WIRE_MOVE, .bytes = m->len, .lane = h.lane};
    memcpy(answer, m->data + sizeof h, sizeof *answer);
    if (m->len < head || memcmp(&h, &want, sizeof h) != 0 || answer->status != 0 ||
        answer->landed != 0 || answer->n == 0 || answer->first > V_BLOCKS ||
        m->len != head + answer->n * block) {
        return INF_EPROTO;
    }
    hosted *s = find(w, answer->handle, answer->generation);
    answer->status = INF_ESTALE;
    answer->landed = s != NULL ? s->landed : 0;
    bool inside =
        s != NULL && answer->first <= (uint32_t)s->n && answer->n <= (uint32_t)s->n - answer->first;
    bool empty = inside, full = inside;
    for (uint32_t i = 0; inside && i < answer->n; i++) {
        empty = empty && !s->there[answer->first + i];
        full = full && s->there[answer->first + i];
    }
    if (full) { /* sent again because nobody said that it is there: it stays as it is */
        answer->status = INF_OK;
    }
    if (empty) { /* pieces land in any order */
        for (uint32_t i = 0; i < answer->n; i++) {
            s->there[answer->first + i] = true;
            memcpy(w->model + (uint64_t)s->blocks[answer->first + i] * block,
                   m->data + head + i * block, block);
        }
        while (s->landed < (uint32_t)s->n && s->there[s->landed]) {
            s->landed++;
        }
        answer->status = INF_OK;
        answer->landed = s->landed;
    }
    return answer->status;
}

static void move_round(debtor *w) {
    hosted *s = &w->spans[raw_below(&w->rng, N_SPANS)];
    inf_err err;
    if (s->n < SPAN_BLOCKS && raw_below(&w->rng, 2) == 0) {
        s->n++;
        CHECK(inf_dist_span_set(w->v.d, HOSTILE, s->handle, s->generation, s->blocks, s->n, &err) ==
              INF_OK);
    } else if (s->landed == (uint32_t)s->n) {
        renew(w, s);
    }
    uint32_t left = (uint32_t)s->n - s->landed;
    inf_wire_move move = {.handle = s->handle,
                          .generation = s->generation,
                          .first = s->landed,
                          .n = left > 0 ? 1 + raw_below(&w->rng, left) : 1,
                          .ticket = w_next(&w->rng)};
    if (raw_below(&w->rng, 8) == 0) { /* more than was reserved, or not what comes next */
        move.n = 1 + raw_below(&w->rng, SPAN_BLOCKS);
        move.first += raw_below(&w->rng, 2) * (raw_below(&w->rng, 4) - 1);
    }
    raw_blocks(&w->msg, move, w->v.kv.block_bytes, &w->rng);
    bool replay = raw_below(&w->rng, 8) == 0 && w->old.len > 0;
    raw_msg *m = replay ? &w->old : &w->msg;
    if (!replay) {
        memcpy(&w->old, &w->msg, sizeof w->old);
        raw_mutate(m, inf_dist_move_slot_bytes(&w->v.config), &w->rng);
    }
    inf_wire_move want, got;
    uint64_t len = 0;
    int verdict = judge_move(w, m, &want);
    const uint8_t *msg = answer_to(w, 1, m, verdict == INF_EPROTO, &len);
    if (msg != NULL) {
        inf_wire_head h = {.magic = INF_WIRE_MAGIC,
                           .kind = INF_WIRE_ACK,
                           .bytes = inf_wire_move_head(),
                           .lane = raw_head(m)->lane};
        memcpy(&got, msg + sizeof h, sizeof got);
        CHECK(len == h.bytes && memcmp(msg, &h, sizeof h) == 0);
        CHECK(memcmp(&got, &want, sizeof got) == 0);
        w->refused += verdict != INF_OK;
        inf_link_release(w->lane[1]);
    }
}

/* Bytes of the ring and of the control words change while the victim reads them. */
static void scribble_round(debtor *w) {
    const uint8_t *msg;
    uint64_t len, ring = w->shm_bytes / 2;
    for (int i = 0; i < 8; i++) {
        write_query(w, &w->msg);
        if (raw_send(w->lane[0], w->msg.data, w->msg.len) != INF_OK) {
            break;
        }
        for (uint32_t n = raw_below(&w->rng, 400); n > 0; n--) {
            uint32_t where = raw_below(&w->rng, 64);
            uint64_t at = where == 0   ? raw_below(&w->rng, 256)
                          : where < 48 ? 4096 + raw_below(&w->rng, 512)
                                       : 4096 + raw_below(&w->rng, (uint32_t)ring - 4096);
            *(volatile uint8_t *)(w->shm + at) = (uint8_t)w_next(&w->rng);
        }
        /* A scribbled counter can make this end wait for ever. */
        inf_link_wait(&w->lane[0], 1, -1, 20000000);
        if (inf_link_poll(w->lane[0], (const void **)&msg, &len) != INF_OK) {
            break;
        }
        inf_link_release(w->lane[0]);
    }
}

/* More queries than the lane has slots, and no answer is taken. */
static void flood_round(debtor *w) {
    inf_err err;
    int status = INF_OK;
    for (int i = 0; i < 3 * W_SLOTS && status == INF_OK; i++) {
        write_query(w, &w->msg);
        status = raw_send(w->lane[0], w->msg.data, w->msg.len);
    }
    raw_expect_death(w->lane[0], INF_EPEER);
    CHECK(inf_dist_peer_status(w->v.d, HOSTILE, &err) == INF_EPROTO);
}

/* Bytes beside the frames: a header that is none, or a frame that breaks off. */
static void garbage_round(debtor *w) {
    uint32_t lane = raw_below(&w->rng, 2), header[4] = {0x4c464e49, 0, 0, 0};
    uint64_t bytes = raw_below(&w->rng, 3000);
    write_query(w, &w->msg);
    header[2] = raw_below(&w->rng, 2) ? (uint32_t)bytes + 1 : (uint32_t)w_next(&w->rng);
    header[raw_below(&w->rng, 4)] ^= raw_below(&w->rng, 2) << raw_below(&w->rng, 32);
    memmove(w->msg.data + sizeof header, w->msg.data, 3000);
    memcpy(w->msg.data, header, sizeof header);
    bytes += raw_below(&w->rng, 2) * sizeof header;
    CHECK(send(w->lane[lane]->config.sock_fd, w->msg.data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes);
    nanosleep(&(struct timespec){0, raw_below(&w->rng, 100000)}, NULL);
}

/* What breaks more than a message: afterwards the links are new, and what was counted is taken
 * over.
 */
static void rude_round(debtor *w) {
    if (w->provider == INF_PROVIDER_TCP) {
        garbage_round(w);
    } else if (raw_below(&w->rng, 4) == 0) {
        flood_round(w);
    } else {
        scribble_round(w);
    }
    disconnect_debtor(w);
    connect_debtor(w);
    w->refused = refused(&w->v);
}

static void hostile_debtor(uint32_t provider) {
    debtor *w = aligned_alloc(64, sizeof *w);
    CHECK(w != NULL);
    memset(w, 0, sizeof *w);
    w->provider = provider;
    w->rng = seed;
    w->v = w_open(V_BLOCKS);
    honest_start(&w->other, provider, &w->v, HONEST, seed);
    connect_debtor(w);
    w->model = malloc(V_BLOCKS * w->v.kv.block_bytes);
    CHECK(w->model != NULL);
    memcpy(w->model, w->v.pool, V_BLOCKS * w->v.kv.block_bytes);
    for (uint32_t i = 0; i < N_SPANS; i++) {
        w->spans[i].handle = W_HANDLES - 2 - i;
        for (int32_t k = 0; k < SPAN_BLOCKS; k++) {
            w->spans[i].blocks[k] = 60 - (int32_t)i - k * N_SPANS;
        }
        renew(w, &w->spans[i]);
    }
    for (uint64_t i = 0; i < messages; i++) {
        if (raw_below(&w->rng, 3) == 0) {
            move_round(w);
        } else {
            query_round(w);
        }
        if (i % 32 == 0) {
            rude_round(w);
        }
        check_pool(w);
    }
    CHECK(messages < 1000 || (w->deaths > messages / 10 && w->answers > messages / 10));
    disconnect_debtor(w);
    honest_stop(&w->other);
    w_close(&w->v);
    free(w->model);
    free(w);
}

int main(int argc, char **argv) {
    messages = argc > 1 ? strtoull(argv[1], NULL, 10) : messages;
    seed = argc > 2 ? strtoull(argv[2], NULL, 10) | 1 : seed;
    for (uint32_t provider = INF_PROVIDER_SHM; provider <= INF_PROVIDER_TCP; provider++) {
        hostile_debtor(provider);
    }
    return 0;
}
