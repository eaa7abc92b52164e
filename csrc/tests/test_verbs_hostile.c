/* A peer that breaks the rules of a verbs link, over the wire: nothing it writes reaches beyond the
 * ring, and a broken credit rule is an error of ours, not of the device. The victim's queue pair is
 * kept alive by a table of functions that does not set it to ERR, so that one pair of endpoints
 * lasts for all mutations. */
#include "verbs_arrivals.h"

static rdma_ports ports;

/* A link whose queue pair nothing sets to ERR, and a bare endpoint that writes to it. */
typedef struct {
    inf_verbs_lib lib;
    const inf_verbs_lib *real;
    inf_verbs_link *v;
    inf_verbs_endpoint *evil;
    int sock;
} siege;

static const inf_verbs_lib *real_lib;

/* The evil end may send reads, which an honest one does not even allow itself. */
static int with_reads(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask) {
    attr->max_rd_atomic = attr->max_dest_rd_atomic = 1;
    return real_lib->modify_qp(qp, attr, mask);
}

static void evil_endpoints(pair_shape shape, inf_verbs_endpoint *ep[2]) {
    static inf_verbs_lib lib;
    inf_verbs_info info[2];
    inf_err err;
    for (int i = 0; i < 2; i++) {
        inf_verbs_config c = pair_config(&ports, i, shape);
        CHECK_OK(inf_verbs_endpoint_create(ports.device[i], &c, &ep[i], &info[i], &err));
    }
    real_lib = ep[0]->lib;
    lib = *real_lib;
    lib.modify_qp = with_reads;
    ep[1]->lib = &lib;
    for (int i = 0; i < 2; i++)
        CHECK_OK(inf_verbs_endpoint_to_rtr(ep[i], &info[1 - i], &err));
    for (int i = 0; i < 2; i++)
        CHECK_OK(inf_verbs_endpoint_to_rts(ep[i], &err));
}

static void begin_siege(siege *s, pair_shape shape) {
    inf_verbs_endpoint *ep[2];
    inf_link *link;
    inf_err err;
    int socks[2];
    evil_endpoints(shape, ep);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, socks) == 0);
    inf_link_config c = pair_link_config(0, shape, socks[0]);
    CHECK_OK(inf_link_open_verbs(&c, ep[0], &link, &err));
    s->v = (inf_verbs_link *)link;
    s->evil = ep[1];
    s->sock = socks[1];
    s->real = ep[0]->lib;
    s->lib = *s->real;
    s->lib.modify_qp = keep_alive;
    ep[0]->lib = &s->lib;
}

static void end_siege(siege *s) {
    s->v->ep->lib = s->real;
    inf_link_close(&s->v->base);
    inf_verbs_endpoint_destroy(s->evil);
    close(s->sock);
}

/* Posts one write of the evil end; the status of its completion. */
static enum ibv_wc_status evil_write(inf_verbs_endpoint *e, enum ibv_wr_opcode opcode, uint32_t imm,
                                     uint64_t to, uint32_t key, uint32_t bytes) {
    struct ibv_sge sge = {(uint64_t)(uintptr_t)e->tx, bytes, e->tx_mr->lkey};
    struct ibv_send_wr wr = {.opcode = opcode,
                             .imm_data = htonl(imm),
                             .sg_list = &sge,
                             .num_sge = bytes > 0,
                             .wr.rdma = {to, key}};
    CHECK(inf_verbs_post(e, &wr, 1, INF_WR_MESSAGE, 1, 0, true) == INF_OK);
    struct ibv_wc wc;
    double begun = now_s();
    int n;
    while ((n = ibv_poll_cq(e->send_cq, 1, &wc)) == 0)
        CHECK(now_s() - begun < 10);
    CHECK(n == 1);
    if (wc.status == IBV_WC_SUCCESS) {
        e->q.send_done = e->q.send_posted;
        e->q.done = e->q.posted;
        e->q.signaled = 0;
    }
    return wc.status;
}

/* Lets the victim look at what came; what it makes of it. */
static int victim_looks(siege *s, const uint8_t **msg, uint64_t *len) {
    uint64_t before = s->v->ep->q.recv_done;
    double begun = now_s();
    int rc;
    do
        rc = inf_link_poll(&s->v->base, (const void **)msg, len);
    while (rc == INF_AGAIN && s->v->ep->q.recv_done == before && now_s() - begun < 10);
    CHECK(s->v->ep->q.recv_done == before + 1);
    return rc;
}

static void test_mutations(uint64_t rounds) {
    pair_shape shape = {4, 4096, 0};
    siege s;
    begin_siege(&s, shape);
    inf_verbs_link *v = s.v;
    uint64_t messages = 0, refused = 0;
    double begun = now_s();
    for (uint64_t i = 0; i < rounds; i++) {
        uint32_t bytes, imm = make_imm(v, &bytes);
        bytes %= (uint32_t)v->ep->stride + 1;
        uint64_t at = draw(4) == 0 ? draw(v->ep->rx_bytes - bytes + 1)
                                   : v->rx_head % shape.slots * v->ep->stride + INF_VERBS_LINE;
        if (at + bytes > v->ep->rx_bytes)
            at = v->ep->rx_bytes - bytes;
        for (uint32_t k = 0; k < 8; k++) /* headers too, now and then */
            s.evil->tx[draw(64)] = (uint8_t)draw(256);
        CHECK(evil_write(s.evil, IBV_WR_RDMA_WRITE_WITH_IMM, imm, s.evil->remote.ring_address + at,
                         s.evil->remote.ring_key, bytes) == IBV_WC_SUCCESS);
        bool may = allowed(v, imm, bytes);
        const uint8_t *msg = NULL;
        uint64_t len = 0;
        int rc = victim_looks(&s, &msg, &len);
        if (rc == INF_OK) {
            CHECK(may && msg >= v->ep->rx && msg + len <= v->ep->rx + v->ep->rx_bytes);
            CHECK(len <= shape.slot_bytes && (uint64_t)(msg - v->ep->rx) % v->ep->stride == 64);
            messages++;
        } else if (rc == INF_EPROTO) {
            CHECK(!may && v->base.err.message[0]);
            refused++;
        } else {
            CHECK(may && (rc == INF_AGAIN || (rc == INF_EPEER && v->last_word)));
        }
        check_bounds(v);
        revive(v);
        while (v->rx_tail < v->rx_next && draw(4) != 0)
            inf_link_release(&v->base);
        v->base.held = (uint32_t)(v->rx_next - v->rx_tail);
        CHECK(inf_verbs_fill_recv(v->ep) == INF_OK && inf_verbs_poll_send(v->ep) == INF_OK);
        /* The evil end takes the victim's credits and says nothing. */
        struct ibv_wc wc[16];
        s.evil->q.recv_done += (uint64_t)ibv_poll_cq(s.evil->recv_cq, 16, wc);
        CHECK(inf_verbs_fill_recv(s.evil) == INF_OK);
    }
    printf("  %llu writes in %.1f s: %llu messages taken, %llu refused\n",
           (unsigned long long)rounds, now_s() - begun, (unsigned long long)messages,
           (unsigned long long)refused);
    CHECK(messages > rounds / 20 && refused > rounds / 20);
    end_siege(&s);
}

/* Beyond the ring, with a key that is not the window's, reading: the device refuses, the victim's
 * memory stays as it was. */
static void test_beyond(uint32_t flags) {
    pair_shape shape = {2, 4096, flags};
    for (int kind = 0; kind < 6; kind++) {
        siege s;
        begin_siege(&s, shape);
        inf_verbs_endpoint *e = s.evil, *victim = s.v->ep;
        uint64_t ring = e->remote.ring_address, to = ring;
        uint32_t key = e->remote.ring_key;
        enum ibv_wr_opcode opcode = IBV_WR_RDMA_WRITE;
        memset(victim->tx, 0x5a, victim->tx_bytes);
        memset(e->tx, 0xee, 256);
        if (kind == 0)
            to = ring + victim->rx_bytes - 255;
        else if (kind == 1)
            to = ring - 1;
        else if (kind == 2)
            key = flags ? key + 1 : victim->rx_mr->rkey;
        else if (kind == 3)
            key = victim->tx_mr->rkey, to = (uint64_t)(uintptr_t)victim->tx;
        else if (kind == 4)
            opcode = IBV_WR_RDMA_READ;
        else
            key ^= 0xff;
        enum ibv_wc_status status = evil_write(e, opcode, 0, to, key, 256);
        printf("  %s: %s\n", flags ? "no windows" : "windows", e->lib->wc_status_str(status));
        CHECK(status != IBV_WC_SUCCESS);
        for (uint64_t i = 0; i < victim->rx_bytes; i++)
            CHECK(victim->rx[i] == 0);
        for (uint64_t i = 0; i < victim->tx_bytes; i++)
            CHECK(victim->tx[i] == 0x5a);
        end_siege(&s);
    }
}

/* After close the ring's key is good for nothing. */
static void test_stale_key(void) {
    pair_shape shape = {2, 4096, 0};
    siege s;
    begin_siege(&s, shape);
    inf_verbs_info old = s.evil->remote;
    end_siege(&s);
    begin_siege(&s, shape);
    enum ibv_wc_status status =
        evil_write(s.evil, IBV_WR_RDMA_WRITE, 0, old.ring_address, old.ring_key, 64);
    CHECK(status == IBV_WC_REM_ACCESS_ERR);
    end_siege(&s);
}

/* --- broken credits --- */

static inf_verbs_link *inside(inf_link *link) { return (inf_verbs_link *)link; }

/* A sender that believes it has more credit than it was given. */
static void test_overrun_ring(void) {
    pair_shape shape = {4, 256, 0};
    inf_link *l[2];
    inf_err err;
    pair_links(&ports, shape, l, NULL);
    for (uint64_t i = 0; i < 4; i++)
        CHECK(try_send(l[0], i, 100) == INF_OK);
    CHECK(try_send(l[0], 4, 100) == INF_AGAIN);
    inside(l[0])->tx_released += 1;
    SEND(l[0], 4, 100);
    const void *msg;
    uint64_t len;
    int rc = INF_OK;
    for (int i = 0; i < 100000 && rc >= 0; i++)
        rc = inf_link_poll(l[1], &msg, &len);
    inf_link_status(l[1], &err);
    CHECK(rc == INF_EPROTO);
    printf("  %s\n", err.message);
    CHECK(strstr(err.message, "unreleased"));
    inf_link_close(l[0]);
    inf_link_close(l[1]);
}

/* An end that believes its work requests are complete when they are not known to be. */
static void test_overrun_queue(void) {
    pair_shape shape = {4, 256, 0};
    inf_link *l[2];
    inf_err err;
    pair_links(&ports, shape, l, NULL);
    inf_verbs_link *v = inside(l[0]);
    int rc = INF_OK, sent = 0;
    while (rc == INF_OK && sent < 1000) {
        v->tx_released = v->tx_sent;
        v->ep->q.done.messages = v->tx_sent;
        rc = try_send(l[0], 0, 10);
        sent++;
    }
    inf_link_status(l[0], &err);
    CHECK(rc == INF_EFULL && strstr(err.message, "credit rule is broken"));
    printf("  after %d messages: %s\n", sent - 1, err.message);
    inf_link_close(l[0]);
    inf_link_close(l[1]);
}

/* A peer that sends without end while nobody looks runs into its own error; who looks then finds
 * the first breach. */
static void test_flood(void) {
    pair_shape shape = {2, 256, 0};
    siege s;
    begin_siege(&s, shape);
    enum ibv_wc_status status = IBV_WC_SUCCESS;
    int sent = 0;
    for (; status == IBV_WC_SUCCESS && sent < 100; sent++)
        status = evil_write(s.evil, IBV_WR_RDMA_WRITE_WITH_IMM,
                            inf_imm_message(INF_IMM_MESSAGE, (uint64_t)sent, shape.slots, 0),
                            s.evil->remote.ring_address, s.evil->remote.ring_key, 64);
    CHECK(status == IBV_WC_RNR_RETRY_EXC_ERR && sent == (int)s.v->ep->q.recv_depth + 1);
    const void *msg;
    uint64_t len;
    CHECK(inf_link_poll(&s.v->base, &msg, &len) == INF_EPROTO);
    end_siege(&s);
}

/* Bytes on the socket, which is there for its end alone. */
static void test_socket(void) {
    inf_link *l[2];
    int sock[2];
    inf_err err;
    pair_links(&ports, (pair_shape){2, 64, 0}, l, sock);
    CHECK(send(sock[1], "x", 1, 0) == 1);
    expect_death(l[0], INF_EPROTO, &err);
    for (int i = 0; i < 2; i++) {
        inf_link_close(l[i]);
        close(sock[i]);
    }
}

int main(int argc, char **argv) {
    uint64_t rounds = argc > 1 ? strtoull(argv[1], NULL, 10) : 100000;
    rdma_find_or_skip(&ports);
    rdma_open(&ports);
    printf("mutations over the wire\n");
    fflush(stdout);
    test_mutations(rounds);
    printf("beyond the ring\n");
    test_beyond(0);
    test_beyond(INF_VERBS_NO_WINDOWS);
    test_stale_key();
    printf("broken credits\n");
    test_overrun_ring();
    test_overrun_queue();
    test_flood();
    test_socket();
    rdma_close(&ports);
    printf("ok\n");
    return 0;
}
