/* The sender's side of a piece of a move, over one rail.
 *
 *   puts       free -> ASKED (ask; grant) -> PUTTING (puts.c; landed) -> SENT (ack) -> free
 *   messages   free -> SENT (move; ack) -> free
 *
 * An acknowledgement says more than the completions of puts, so nobody waits for these. What fails
 * at this end ends the move, or has the piece sent another way; it is nothing to the lane, the
 * peer, or the queries beside it. */
#include "dist/send.h"
#include "dist/internal.h"
#include "dist/marks.h"

#include <string.h>

/* A peer that answers nothing for so long has failed. */
#define STALL_NS UINT64_C(5000000000)

/* --- what comes next --- */

/* Blocks that one piece may have. */
static int32_t most(const inf_dist *d, const inf_rail *r) {
    uint64_t room = inf_link_slot_bytes(r->link) - inf_wire_move_head(),
             n = (atomic_load(&r->puts) ? INF_PIECE_BYTES : room) / d->kv.block_bytes;
    if (!atomic_load(&r->puts)) {
        return (int32_t)(n < INT32_MAX ? n : INT32_MAX);
    }
    return (int32_t)(n < 1 ? 1 : n > INF_WIRE_PIECE_BLOCKS ? INF_WIRE_PIECE_BLOCKS : n);
}

static void mark(inf_piece *c, uint8_t state) {
    memset(c->move->state + c->part.first, state, (size_t)c->part.n);
}

/* The next blocks of the peer's moves that wait. */
static bool next_part(inf_peer *p, int32_t max, inf_piece *c) {
    for (inf_move *m = p->active.head; m != NULL; m = m->next) {
        while (m->begun < m->n && m->state[m->begun] >= INF_MOVE_BEGUN) {
            m->begun++;
        }
        if (m->status != INF_OK || m->begun == m->n) {
            continue;
        }
        int32_t n = 1;
        uint8_t kind = m->state[m->begun] == INF_MOVE_WAITS ? INF_MOVE_WAITS : INF_MOVE_AGAIN;
        while (n < max && m->begun + n < m->n && m->state[m->begun + n] == kind) {
            n++;
        }
        c->move = m;
        c->part = (inf_stretch){m->begun, n};
        m->begun += n;
        m->pieces++;
        mark(c, INF_MOVE_BEGUN);
        return true;
    }
    return false;
}

/* The piece is over: its blocks have landed (ACKED), or it has to be begun again. */
static void end_piece(inf_piece *c, uint8_t state) {
    inf_move *m = c->move;
    mark(c, state);
    m->pieces--;
    if (state == INF_MOVE_ACKED) {
        m->acked += c->part.n;
    } else {
        m->state[c->part.first] = INF_MOVE_AGAIN_FIRST;
        m->begun = c->part.first < m->begun ? c->part.first : m->begun;
    }
    c->state = INF_PIECE_FREE;
}

/* What a tracer is told of a piece. */
#define SEEN(stage, r, c, bytes)                                                                   \
    (void)inf_mark_move_##stage((r)->peer, (r)->lane, (c)->move->ticket,                           \
                                (c)->move->first + (uint32_t)(c)->part.first,                      \
                                (uint64_t)(c)->part.n, bytes)

/* --- messages --- */

void inf_send_head(const inf_rail *r, const inf_piece *c, uint32_t kind, uint64_t bytes,
                   uint8_t *buf) {
    const inf_move *m = c->move;
    inf_wire_head h = {.magic = INF_WIRE_MAGIC, .kind = kind, .bytes = bytes, .lane = r->lane};
    inf_wire_move w = {.handle = m->handle,
                       .generation = m->generation,
                       .first = m->first + (uint32_t)c->part.first,
                       .n = (uint32_t)c->part.n,
                       .ticket = m->ticket,
                       .status = kind == INF_WIRE_LANDED && (m->status | c->given_up) != INF_OK
                                     ? INF_ESTALE /* whatever it was: of the two that there are */
                                     : INF_OK};
    memset(buf, 0, inf_wire_move_head());
    memcpy(buf, &h, sizeof h);
    memcpy(buf + sizeof h, &w, sizeof w);
}

int inf_send_post(inf_dist *d, inf_rail *r, inf_piece *c, int32_t state, uint64_t bytes) {
    if (c->state == INF_PIECE_FREE) {
        SEEN(posted, r, c, inf_piece_bytes(d, c));
    }
    int status = inf_link_post(r->link, bytes);
    if (status == INF_OK) {
        if (state == INF_PIECE_SENT) {
            SEEN(wire, r, c, inf_piece_bytes(d, c));
        }
        bool waits = false;
        for (int i = 0; i < INF_WIRE_PIECES; i++) {
            waits = waits || r->pieces[i].state == INF_PIECE_ASKED ||
                    r->pieces[i].state == INF_PIECE_SENT;
        }
        if (!waits) {
            r->heard_ns = inf_now();
        }
        c->state = state;
        c->order = ++r->order;
    }
    return status;
}

/* Blocks into the message; INF_EIO: the lane failed. */
static int copy_blocks(inf_dist *d, const inf_piece *c, uint8_t *at) {
    int status = inf_lane_take(d, &d->moving);
    uint64_t block = d->kv.block_bytes;
    if (status != INF_OK) {
        return status;
    }
    for (int32_t i = 0; i < c->part.n; i++, at += block) {
        const uint8_t *from = d->pool + (uint64_t)c->move->blocks[c->part.first + i] * block;
        d->ops->copy_out(d->moving.lane, at, from, block);
    }
    return inf_lane_sync(d, &d->moving);
}

/* Sends the piece, or ends its move, whose blocks cannot be read. INF_AGAIN: the lane rests. */
static int post_blocks(inf_dist *d, inf_rail *r, inf_piece *c, uint8_t *buf) {
    uint64_t bytes = inf_wire_move_head() + inf_piece_bytes(d, c);
    inf_send_head(r, c, INF_WIRE_MOVE, bytes, buf);
    int status = copy_blocks(d, c, buf + inf_wire_move_head());
    if (status == INF_EIO) { /* the lane's fault, or the blocks': that shows on another lane */
        status = copy_blocks(d, c, buf + inf_wire_move_head());
    }
    if (status == INF_EIO && inf_dist_fault(d, NULL) == INF_OK) {
        c->move->status = INF_EIO;
        status = INF_AGAIN;
    }
    if (status != INF_OK) {
        return status == INF_ENOMEM ? INF_AGAIN : status;
    }
    return inf_send_post(d, r, c, INF_PIECE_SENT, bytes);
}

/* Begins pieces while there is room and something to send. */
static int begin_pieces(inf_dist *d, inf_rail *r) {
    inf_peer *p = &d->peers[r->peer];
    if (r->wants && p->active.head != NULL) {
        inf_direct_open(d, r);
    }
    for (int i = 0; i < INF_WIRE_PIECES; i++) {
        inf_piece *c = &r->pieces[i];
        if (c->state != INF_PIECE_FREE) {
            continue;
        }
        /* Also when there is nothing to send: after a prepare that found no room, a wait returns at
         * once whenever there is room, until another prepare has taken note of it. */
        void *buf = NULL;
        int status = inf_link_prepare(r->link, &buf);
        if (status != INF_OK || inf_lane_rests(&d->moving) > 0 || !next_part(p, most(d, r), c)) {
            return status == INF_AGAIN ? INF_OK : status;
        }
        c->put = 0;
        c->given_up = INF_OK;
        c->asked_ns = inf_now();
        if (atomic_load(&r->puts)) {
            inf_send_head(r, c, INF_WIRE_ASK, inf_wire_move_head(), buf);
            status = inf_send_post(d, r, c, INF_PIECE_ASKED, inf_wire_move_head());
        } else {
            status = post_blocks(d, r, c, buf);
        }
        if (status != INF_OK) {
            end_piece(c, INF_MOVE_AGAIN);
            return status == INF_AGAIN ? INF_OK : status;
        }
        atomic_fetch_add(&d->moved_blocks, (uint64_t)c->part.n);
        atomic_fetch_add(&d->moved_bytes, inf_piece_bytes(d, c));
    }
    return INF_OK;
}

/* --- answers --- */

static inf_piece *oldest(inf_rail *r) {
    inf_piece *best = NULL;
    for (int i = 0; i < INF_WIRE_PIECES; i++) {
        inf_piece *c = &r->pieces[i];
        if ((c->state == INF_PIECE_ASKED || c->state == INF_PIECE_SENT) &&
            (best == NULL || c->order < best->order)) {
            best = c;
        }
    }
    return best;
}

/* The piece landed on a rail that died before it could say so. */
static bool is_there(const inf_wire_move *w, uint32_t grants) {
    return grants == 0 && w->status == INF_OK && w->landed == w->first + w->n;
}

/* Is the message the answer that must come next? */
static bool answer_ok(const inf_rail *r, const inf_piece *c, const uint8_t *msg, uint64_t len,
                      inf_wire_head *h, inf_wire_move *w) {
    if (c == NULL || len < inf_wire_move_head()) {
        return false;
    }
    memcpy(h, msg, sizeof *h);
    memcpy(w, msg + sizeof *h, sizeof *w);
    bool grant = c->state == INF_PIECE_ASKED;
    uint32_t grants = grant ? h->n_entries : 0;
    const inf_wire_head want = {.magic = INF_WIRE_MAGIC,
                                .kind = grant ? INF_WIRE_GRANT : INF_WIRE_ACK,
                                .n_entries = grants,
                                .bytes = len,
                                .lane = r->lane};
    const inf_move *m = c->move;
    return memcmp(h, &want, sizeof want) == 0 && grants <= (uint32_t)c->part.n &&
           len == inf_wire_grant_bytes(grants) && w->ticket == m->ticket &&
           w->handle == m->handle && w->generation == m->generation &&
           w->first == m->first + (uint32_t)c->part.first && w->n == (uint32_t)c->part.n &&
           inf_wire_status_ok(w->status) && (w->status == INF_OK || grants == 0) &&
           (!grant || w->landed == 0 || is_there(w, grants)) &&
           (w->status != INF_OK || w->landed <= m->first + (uint32_t)m->n);
}

/* Takes the grants, which must be as many bytes as the blocks are. */
static bool take_grants(inf_dist *d, inf_piece *c, const uint8_t *msg, uint32_t n) {
    uint64_t sum = 0;
    memcpy(c->grants, msg + inf_wire_move_head(), n * sizeof *c->grants);
    for (uint32_t i = 0; i < n; i++) {
        const inf_grant *g = &c->grants[i];
        if (g->bytes == 0 || g->bytes > inf_piece_bytes(d, c) ||
            g->address > UINT64_MAX - g->bytes) {
            return false;
        }
        sum += g->bytes;
    }
    c->n_grants = n;
    return sum == inf_piece_bytes(d, c);
}

static int take_answer(inf_dist *d, inf_rail *r, const uint8_t *msg, uint64_t len) {
    inf_piece *c = oldest(r);
    inf_wire_head h;
    inf_wire_move w;
    if (!answer_ok(r, c, msg, len, &h, &w)) {
        return INF_EPROTO;
    }
    r->heard_ns = inf_now();
    if (c->state == INF_PIECE_SENT) {
        SEEN(back, r, c, len);
    }
    inf_move *m = c->move;
    if (c->state == INF_PIECE_SENT && c->given_up != INF_OK) {
        int32_t why = c->given_up == INF_AGAIN ? INF_OK : c->given_up;
        m->status = m->status != INF_OK ? m->status : why;
        end_piece(c, INF_MOVE_AGAIN);
    } else if (w.status != INF_OK) {
        m->status = m->status != INF_OK ? m->status : w.status;
        end_piece(c, INF_MOVE_AGAIN);
    } else if (c->state == INF_PIECE_SENT || is_there(&w, h.n_entries)) {
        end_piece(c, INF_MOVE_ACKED);
    } else if (h.n_entries == 0) { /* the peer cannot be put to */
        atomic_store(&r->puts, false);
        end_piece(c, INF_MOVE_AGAIN);
    } else if (take_grants(d, c, msg, h.n_entries)) {
        c->state = INF_PIECE_PUTTING;
    } else {
        return INF_EPROTO;
    }
    return INF_OK;
}

static int take_answers(inf_dist *d, inf_rail *r) {
    for (;;) {
        const void *msg = NULL;
        uint64_t len = 0;
        int status = inf_link_poll(r->link, &msg, &len);
        if (status != INF_OK) {
            return status == INF_AGAIN ? INF_OK : status;
        }
        status = take_answer(d, r, msg, len);
        inf_link_release(r->link);
        if (status != INF_OK) {
            return status;
        }
    }
}

int inf_send_run(inf_dist *d, inf_rail *r) {
    int status = take_answers(d, r);
    for (int i = 0; status == INF_OK && i < INF_WIRE_PIECES; i++) {
        if (r->pieces[i].state == INF_PIECE_PUTTING) {
            status = inf_puts_run(d, r, &r->pieces[i]);
            status = status == INF_AGAIN ? INF_OK : status;
        }
    }
    status = status == INF_OK ? begin_pieces(d, r) : status;
    bool stalled = oldest(r) != NULL && inf_now() - r->heard_ns > STALL_NS;
    return status == INF_OK && stalled ? INF_ETIMEOUT : status;
}

void inf_send_give_up(inf_rail *r) {
    for (int i = 0; i < INF_WIRE_PIECES; i++) {
        if (r->pieces[i].state != INF_PIECE_FREE) {
            end_piece(&r->pieces[i], INF_MOVE_AGAIN);
        }
    }
}
