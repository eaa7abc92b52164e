/* A peer that breaks the rules of a verbs link: what it may send is told from what it may not,
 * nothing it writes reaches beyond the ring, and a broken credit rule is an error of ours, not of
 * the device.
 *
 * The first part needs no RDMA device: arrivals, valid and mutated, against a plain reference of
 * the rules. The others do; there the victim's queue pair is kept alive by a table of functions
 * that does not set it to ERR, so that one pair of endpoints lasts for all mutations. */
#include "verbs_pair.h"

#include <arpa/inet.h>

#include "transport/verbs/ring.h"

static rdma_ports ports;
static uint64_t seed = 1;

static uint64_t draw(uint64_t below) { return mix(seed++) % below; }

/* --- arrivals without a device --- */

static int keep_alive(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask) {
    (void)qp, (void)attr, (void)mask;
    return 0;
}

static void revive(inf_verbs_link *v) {
    v->base.err = v->ep->err = (inf_err){0};
    v->ep->state = INF_ENDPOINT_RTS;
    v->last_word = v->gone = false;
}

/* What the victim may accept, written down a second time and in another way: by going through all
 * that an honest peer could send now. */
static bool allowed(const inf_verbs_link *v, uint32_t imm, uint32_t bytes) {
    uint32_t slots = v->base.config.slots;
    if (imm == inf_imm_count(INF_IMM_LAST, v->rx_head))
        return bytes == 0;
    for (uint64_t r = v->tx_released; r <= v->tx_sent; r++) {
        if (r > v->tx_released && imm == inf_imm_count(INF_IMM_CREDIT, r))
            return bytes == 0;
        if (v->rx_head - v->rx_tail == slots)
            continue;
        if (imm == inf_imm_message(INF_IMM_MESSAGE, v->rx_head, slots, r))
            return bytes <= v->base.config.slot_bytes && bytes <= INF_VERBS_LONG;
        if (imm == inf_imm_message(INF_IMM_LONG, v->rx_head, slots, r)) {
            inf_verbs_header h;
            memcpy(&h, v->ep->rx + v->rx_head % slots * v->ep->stride + INF_VERBS_LINE - sizeof h,
                   sizeof h);
            return bytes == sizeof h && h.magic == INF_VERBS_HEADER_MAGIC &&
                   h.slot == v->rx_head % slots && h.number == v->rx_head && h.released == r &&
                   h.length > INF_VERBS_LONG && h.length <= v->base.config.slot_bytes;
        }
    }
    return false;
}

static void write_header(inf_verbs_link *v, uint64_t released) {
    uint32_t slots = v->base.config.slots;
    inf_verbs_header h = {.magic = INF_VERBS_HEADER_MAGIC,
                          .slot = (uint32_t)(v->rx_head % slots),
                          .number = v->rx_head,
                          .released = released,
                          .length = INF_VERBS_LONG + draw(1000)};
    if (draw(2) == 0) /* one bit is wrong, or one number */
        ((uint8_t *)&h)[draw(sizeof h)] ^= (uint8_t)(1 << draw(8));
    if (draw(8) == 0)
        h.length = draw(4) == 0 ? UINT64_MAX - draw(64) : v->base.config.slot_bytes + draw(3) - 1;
    memcpy(v->ep->rx + v->rx_head % slots * v->ep->stride + INF_VERBS_LINE - sizeof h, &h,
           sizeof h);
}

/* Something that an honest peer would send now, or nearly that, or anything. */
static uint32_t make_imm(inf_verbs_link *v, uint32_t *bytes) {
    uint32_t slots = v->base.config.slots, imm;
    uint64_t r = v->tx_released + draw(v->tx_sent - v->tx_released + 2);
    *bytes = (uint32_t)draw(v->base.config.slot_bytes + 2);
    switch (draw(6)) {
    case 0:
        imm = inf_imm_count(INF_IMM_CREDIT, r);
        *bytes = draw(8) == 0;
        break;
    case 1:
        write_header(v, r);
        imm = inf_imm_message(INF_IMM_LONG, v->rx_head, slots, r);
        *bytes = draw(8) == 0 ? (uint32_t)draw(100) : sizeof(inf_verbs_header);
        break;
    case 2:
        imm = inf_imm_count(INF_IMM_LAST, draw(4) == 0 ? v->rx_head + draw(3) : draw(1 << 30));
        *bytes = 0;
        break;
    default:
        imm = inf_imm_message(INF_IMM_MESSAGE, v->rx_head, slots, r);
        break;
    }
    if (draw(3) == 0)
        imm ^= UINT32_C(1) << draw(32);
    if (draw(64) == 0)
        imm = (uint32_t)draw(UINT64_C(1) << 32);
    if (draw(64) == 0)
        *bytes = (uint32_t)draw(UINT64_C(1) << 32);
    return imm;
}

static void check_bounds(const inf_verbs_link *v) {
    uint32_t slots = v->base.config.slots;
    CHECK(v->rx_head - v->rx_tail <= slots && v->rx_next - v->rx_tail <= v->rx_head - v->rx_tail);
    CHECK(v->tx_sent - v->tx_released <= slots);
    for (uint64_t n = v->rx_tail; n < v->rx_head; n++)
        CHECK(v->rx_len[n % slots] <= v->base.config.slot_bytes);
}

/* The consumer's part and the sender's, at random. */
static void live_on(inf_verbs_link *v) {
    uint32_t slots = v->base.config.slots;
    while (v->rx_tail < v->rx_head && draw(2) == 0)
        v->rx_next = ++v->rx_tail;
    while (v->tx_sent - v->tx_released < slots && draw(2) == 0)
        v->tx_sent++;
}

static void test_arrivals(uint32_t slots, uint64_t slot_bytes, uint64_t rounds) {
    const inf_verbs_lib lib = {.modify_qp = keep_alive};
    inf_verbs_endpoint ep = {
        .lib = &lib, .state = INF_ENDPOINT_RTS, .stride = INF_VERBS_LINE + slot_bytes};
    inf_verbs_link v = {.base.config = {.slots = slots, .slot_bytes = slot_bytes, .peer = 7},
                        .ep = &ep};
    uint64_t accepted = 0;
    ep.rx = malloc(slots * ep.stride);
    CHECK(ep.rx);
    v.rx_head = v.rx_next = v.rx_tail = draw(UINT64_C(1) << 40);
    v.tx_sent = v.tx_released = draw(UINT64_C(1) << 40);
    for (uint64_t i = 0; i < rounds; i++) {
        uint32_t bytes, imm = make_imm(&v, &bytes);
        bool may = allowed(&v, imm, bytes);
        int rc = inf_verbs_arrival(&v, imm, bytes);
        if (rc != (may ? INF_OK : INF_EPROTO)) {
            fprintf(stderr, "immediate %#x of %u bytes: %d (%s), expected %d\n", imm, bytes, rc,
                    v.base.err.message, may);
            exit(1);
        }
        accepted += may;
        if (v.last_word)
            CHECK(inf_verbs_arrival(&v, imm, bytes) == INF_EPROTO);
        check_bounds(&v);
        revive(&v);
        live_on(&v);
    }
    printf("  %u slots of %llu bytes: %llu of %llu arrivals were allowed\n", slots,
           (unsigned long long)slot_bytes, (unsigned long long)accepted,
           (unsigned long long)rounds);
    CHECK(accepted > rounds / 10 && accepted < rounds);
    free(ep.rx);
}

/* --- over the wire --- */

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
    printf("arrivals\n");
    test_arrivals(2, 64, 200000);
    test_arrivals(64, 4096, 200000);
    test_arrivals(5, (9 << 20) + 128, 200000);
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
