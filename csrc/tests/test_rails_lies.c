/* A sender of moves that lies, or was granted blocks and falls silent: over shm and tcp, and over
 * verbs where there are RDMA ports. */
#include "rail_ends.h"

typedef struct {
    inst v;
    inf_link *lane[2];
    raw_msg msg;
} victim;

static victim *open_victim(uint32_t provider) {
    inf_link *server[2];
    inf_err err;
    victim *v = aligned_alloc(64, sizeof *v);
    CHECK(v != NULL);
    memset(v, 0, sizeof *v);
    v->v = w_open(BLOCKS);
    for (int i = 0; i < 2; i++) {
        inf_link *end[2];
        uint64_t bytes = i == 0 ? inf_dist_query_slot_bytes(&v->v.config)
                                : inf_dist_move_slot_bytes(&v->v.config);
        rail_ends(provider, bytes, false, end);
        v->lane[i] = end[0];
        server[i] = end[1];
    }
    CHECK_OK(inf_dist_peer_serve(v->v.d, PEER, server[0], server[1], &err));
    CHECK_OK(inf_dist_span_set(v->v.d, PEER, 1, 1, (int32_t[]){9, 10, 11, 40, 41, 3}, 6, &err));
    return v;
}

static void close_victim(victim *v) {
    inf_link_close(v->lane[0]);
    inf_link_close(v->lane[1]);
    w_close(&v->v);
    free(v);
}

static void say(victim *v, uint32_t kind, uint32_t first, uint32_t n, int32_t status) {
    inf_wire_move m = {.handle = 1, .generation = 1, .first = first, .n = n, .ticket = 8};
    m.status = status;
    memset(v->msg.data, 0, inf_wire_move_head());
    v->msg.len = inf_wire_move_head();
    *raw_head(&v->msg) =
        (inf_wire_head){.magic = INF_WIRE_MAGIC, .kind = kind, .bytes = v->msg.len};
    *raw_move(&v->msg) = m;
    CHECK(raw_send(v->lane[1], v->msg.data, v->msg.len) == INF_OK);
}

static uint32_t landed; /* of the answer that was heard last */

/* The answer's status; grants gets what was granted. */
static int32_t hear(victim *v, uint32_t kind, inf_grant *grants, uint32_t *n) {
    const uint8_t *msg;
    uint64_t len;
    inf_wire_head h;
    inf_wire_move m;
    CHECK(raw_receive(v->lane[1], &msg, &len) == INF_OK);
    memcpy(&h, msg, sizeof h);
    memcpy(&m, msg + sizeof h, sizeof m);
    CHECK(h.kind == kind && len == inf_wire_grant_bytes(h.n_entries) && h.bytes == len);
    if (grants != NULL) {
        memcpy(grants, msg + inf_wire_move_head(), h.n_entries * sizeof *grants);
        *n = h.n_entries;
    }
    inf_link_release(v->lane[1]);
    landed = m.landed;
    return m.status;
}

/* What no honest sender says ends the link and is counted. */
static void test_lies(uint32_t provider) {
    bool puts = provider == INF_PROVIDER_VERBS;
    inf_grant grants[INF_WIRE_PIECE_BLOCKS];
    uint32_t n;
    for (int lie = 0; lie < 7; lie++) {
        victim *v = open_victim(provider);
        inf_device_stats s = {0};
        say(v, INF_WIRE_ASK, 0, 4, 0);
        CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == (puts ? 2 : 0));
        if (puts) { /* runs of blocks are one grant */
            CHECK(grants[0].bytes == 3 * v->v.kv.block_bytes &&
                  grants[1].bytes == v->v.kv.block_bytes);
            say(v, INF_WIRE_ASK, 4, 3, 0); /* beyond the span */
            CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_ESTALE && n == 0);
            say(v, INF_WIRE_ASK, 3, 2, 0); /* over what is granted */
            CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_ESTALE && n == 0);
            say(v, INF_WIRE_ASK, 4, 2, 0);
            CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == 2);
        }
        switch (lie) {
        case 0: /* not what was asked for */
            say(v, INF_WIRE_LANDED, 0, 3, 0);
            break;
        case 1: /* not granted */
            say(v, INF_WIRE_LANDED, 2, 1, 0);
            break;
        case 2: /* a status that is none */
            say(v, INF_WIRE_LANDED, 0, 4, INF_EIO);
            break;
        case 3:
            say(v, INF_WIRE_ASK, 0, 0, 0);
            break;
        case 4: /* a third piece; or a status in an ask */
            say(v, INF_WIRE_ASK, puts ? 5 : 0, 1, puts ? 0 : INF_ESTALE);
            break;
        case 5: /* an answer */
            say(v, INF_WIRE_GRANT, 0, 4, 0);
            break;
        default: /* landed twice */
            say(v, INF_WIRE_LANDED, 0, 4, 0);
            if (puts) {
                CHECK(hear(v, INF_WIRE_ACK, NULL, NULL) == INF_OK);
                say(v, INF_WIRE_LANDED, 0, 4, 0);
            }
        }
        raw_expect_death(v->lane[1], INF_EPEER);
        w_expect_status(&v->v, PEER, INF_EPROTO);
        inf_dist_stats(v->v.d, &s);
        CHECK(s.refused_messages == (puts ? 3 : 1)); /* two asks, and the end */
        close_victim(v);
    }
}

/* A sender that was granted blocks and falls silent: its rail ends, and the span can be closed. */
static void test_silence(uint32_t provider) {
    inf_grant grants[INF_WIRE_PIECE_BLOCKS];
    uint32_t n;
    inf_err err;
    victim *v = open_victim(provider);
    say(v, INF_WIRE_ASK, 0, 4, 0);
    CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == 2);
    CHECK_OK(inf_dist_span_close(v->v.d, 1, 1, &err));
    w_expect_status(&v->v, PEER, INF_ETIMEOUT);
    raw_expect_death(v->lane[1], INF_EPEER);
    close_victim(v);
    v = open_victim(provider); /* one that gives up says so */
    say(v, INF_WIRE_ASK, 0, 4, 0);
    CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == 2);
    say(v, INF_WIRE_LANDED, 0, 4, INF_ESTALE);
    CHECK(hear(v, INF_WIRE_ACK, NULL, NULL) == INF_ESTALE);
    say(v, INF_WIRE_ASK, 0, 4, 0); /* and may ask again */
    CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == 2);
    say(v, INF_WIRE_LANDED, 0, 4, 0);
    CHECK(hear(v, INF_WIRE_ACK, NULL, NULL) == INF_OK && landed == 4);
    say(v, INF_WIRE_ASK, 0, 4, 0); /* what is there, it hears, and cannot write any more */
    CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_OK && n == 0 && landed == 4);
    say(v, INF_WIRE_ASK, 2, 3, 0); /* but no honest piece is there in part */
    CHECK(hear(v, INF_WIRE_GRANT, grants, &n) == INF_ESTALE && n == 0);
    close_victim(v);
}

static void run(uint32_t provider) {
    test_lies(provider);
    if (provider == INF_PROVIDER_VERBS) {
        test_silence(provider);
    }
}

int main(void) {
    each_provider(run);
    return 0;
}
