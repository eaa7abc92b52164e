/* A peer that lies, over shm and tcp: its control words, its frames and its socket. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "link_ends.h"
#include "link_messages.h"

#include <stdatomic.h>

/* Control words of shm: the server's head, tail at 256 and 320; its first slot after the client's.
 */
static void test_lying_shm(void) {
    const uint32_t slots = 2;
    const uint64_t bytes = 64, wrong[] = {3, UINT64_MAX, UINT64_C(1) << 63};
    for (int kind = 0; kind < 7; kind++) {
        link_ends e = make_ends(INF_PROVIDER_SHM, slots, bytes);
        uint64_t size = inf_link_shm_bytes(slots, bytes);
        uint8_t *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, e.mem, 0);
        CHECK(m != MAP_FAILED);
        inf_link *c, *s;
        open_ends(&e, &c, &s);
        _Atomic uint64_t *head = (_Atomic uint64_t *)(void *)(m + 256), *tail = head + 8;
        if (kind < 3) {
            atomic_store(head, wrong[kind]);
        } else if (kind < 6) {
            CHECK(try_send(c, 1, 1) == INF_OK && try_send(c, 2, 1) == INF_OK);
            atomic_store(tail, wrong[kind - 3]);
            void *buf;
            CHECK(inf_link_prepare(c, &buf) == INF_EPROTO);
        } else {
            CHECK(try_send(s, 1, 1) == INF_OK);
            uint64_t len = bytes + 1;
            memcpy(m + 4096 + slots * (64 + bytes), &len, sizeof len);
        }
        expect_end(c, INF_EPROTO, 7);
        inf_link_close(c);
        inf_link_close(s);
        munmap(m, size);
    }
    link_ends e = make_ends(INF_PROVIDER_SHM, slots, bytes);
    int socket = dup(e.server.sock_fd);
    inf_link *c, *s;
    open_ends(&e, &c, &s);
    CHECK(send(socket, "x", 1, 0) == 1);
    expect_end(c, INF_EPROTO, 7);
    close(socket);
    inf_link_close(c);
    inf_link_close(s);
}

static void test_lying_tcp(void) {
    const struct {
        uint32_t magic, flags;
        uint64_t len;
    } wrong[] = {
        {0x4c464e48, 0, 1}, {0x4c464e49, 1, 1}, {0x4c464e49, 0, 65}, {0x4c464e49, 0, UINT64_MAX}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        link_ends e = make_ends(INF_PROVIDER_TCP, 2, 64);
        inf_link *c;
        inf_err err;
        CHECK(inf_link_open(&e.client, &c, &err) == INF_OK);
        CHECK(send(e.server.sock_fd, &wrong[i], sizeof wrong[i], 0) == sizeof wrong[i]);
        expect_end(c, INF_EPROTO, 7);
        inf_link_close(c);
        close(e.server.sock_fd);
    }
    /* A frame in single bytes is a frame; one that breaks off is a dead peer. */
    link_ends e = make_ends(INF_PROVIDER_TCP, 2, 64);
    inf_link *c;
    CHECK(inf_link_open(&e.client, &c, NULL) == INF_OK);
    uint8_t frame[16 + 3] = {0x49, 0x4e, 0x46, 0x4c, 0, 0, 0, 0, 3};
    fill_pattern(&frame[16], 5, 3);
    for (size_t i = 0; i < sizeof frame; i++) {
        CHECK(try_take(c, 5, 3) == INF_AGAIN);
        CHECK(send(e.server.sock_fd, &frame[i], 1, 0) == 1);
    }
    TAKE(c, 5, 3);
    CHECK(send(e.server.sock_fd, frame, 17, 0) == 17);
    close(e.server.sock_fd);
    expect_end(c, INF_EPEER, 7);
    inf_link_close(c);
}

int main(void) {
    test_lying_shm();
    test_lying_tcp();
    printf("ok\n");
    return 0;
}
