/* The measuring loops: figures of both providers, and ends that break what was agreed on. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "infinite/linkbench.h"

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s (provider %u)\n", __FILE__, __LINE__, #cond, provider);     \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

enum { SLOTS = 4, SLOT_BYTES = 65536, ROUNDS = 50 };

static uint32_t provider;
static const int64_t LONG_NS = INT64_C(60000000000);
static const int64_t SHORT_NS = 50000000;

#include "link_ends.h"

typedef struct {
    inf_link *client, *server;
} pair;

static pair open_pair(void) {
    link_ends e = make_ends(provider, SLOTS, SLOT_BYTES);
    pair p;
    open_ends(&e, &p.client, &p.server);
    return p;
}

static void close_pair(pair p) {
    inf_link_close(p.client);
    inf_link_close(p.server);
}

typedef struct {
    inf_link *link;
    inf_bench bench;
    int rc;
    inf_err err;
} server;

static void *serve(void *arg) {
    server *s = arg;
    s->rc = inf_link_bench(s->link, &s->bench, NULL, NULL, &s->err);
    return NULL;
}

static inf_bench bench_of(uint32_t kind, uint32_t flags) {
    return (inf_bench){.kind = kind,
                       .flags = flags,
                       .bytes = 1000,
                       .warmup = 3,
                       .rounds = ROUNDS,
                       .silence_ns = LONG_NS};
}

/* Runs both ends; the client's status. */
static int run_both(pair p, const inf_bench *client, server *s, int64_t *ns, inf_bench_result *out,
                    inf_err *err) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, serve, s) == 0);
    int rc = inf_link_bench(p.client, client, ns, out, err);
    if (rc != INF_OK) /* as who calls it does: the server's end is over then */
        inf_link_close(p.client);
    pthread_join(thread, NULL);
    return rc;
}

static void test_figures(void) {
    pair p = open_pair();
    for (uint32_t kind = INF_BENCH_LATENCY; kind <= INF_BENCH_BANDWIDTH; kind++)
        for (uint32_t flags = 0; flags < 4; flags++) {
            inf_bench b = bench_of(kind, flags);
            server s = {.link = p.server, .bench = b};
            int64_t ns[ROUNDS] = {0}, sum = 0;
            inf_bench_result out;
            inf_err err;
            CHECK(run_both(p, &b, &s, ns, &out, &err) == INF_OK && s.rc == INF_OK);
            CHECK(out.rounds == ROUNDS && out.took_ns > 0);
            for (int i = 0; i < ROUNDS; i++) {
                CHECK((ns[i] > 0) == (kind == INF_BENCH_LATENCY));
                sum += ns[i];
            }
            CHECK(sum <= out.took_ns);
        }
    close_pair(p);
}

/* The client ends by time, after at least one round. */
static void test_duration(void) {
    pair p = open_pair();
    inf_bench b = bench_of(INF_BENCH_BANDWIDTH, INF_BENCH_WAITS);
    b.rounds = UINT64_MAX;
    b.duration_ns = SHORT_NS;
    server s = {.link = p.server, .bench = b};
    inf_bench_result out;
    inf_err err;
    CHECK(run_both(p, &b, &s, NULL, &out, &err) == INF_OK && s.rc == INF_OK);
    CHECK(out.rounds > 0 && out.took_ns >= SHORT_NS);
    close_pair(p);
}

static void test_refusals(void) {
    pair p = open_pair();
    inf_bench_result out;
    inf_err err;
    inf_bench good = bench_of(INF_BENCH_BANDWIDTH, 0), bad[7];
    for (int i = 0; i < 7; i++)
        bad[i] = good;
    bad[0].kind = 0;
    bad[1].kind = INF_BENCH_PUTS + 1;
    bad[2].bytes = SLOT_BYTES + 1;
    bad[3].bytes = 0;
    bad[4].rounds = 0;
    bad[5].silence_ns = 0;
    bad[6].flags = 4;
    for (int i = 0; i < 7; i++)
        CHECK(inf_link_bench(p.client, &bad[i], NULL, &out, &err) == INF_EINVAL);
    good.kind = INF_BENCH_LATENCY;
    CHECK(inf_link_bench(p.client, &good, NULL, &out, &err) == INF_EINVAL);
    CHECK(inf_link_bench(NULL, &good, NULL, &out, &err) == INF_EINVAL);
    /* No provider here has puts. */
    good.kind = INF_BENCH_PUTS;
    CHECK(inf_link_bench(p.server, &good, NULL, NULL, &err) == INF_EUNSUPPORTED);
    close_pair(p);
}

/* The two ends were told different things. */
static void test_disagreement(void) {
    for (int i = 0; i < 2; i++) {
        pair p = open_pair();
        inf_bench b = bench_of(INF_BENCH_LATENCY, INF_BENCH_WAITS);
        server s = {.link = p.server, .bench = b};
        if (i == 0)
            s.bench.bytes = 999;
        else
            s.bench.rounds = ROUNDS - 1;
        s.bench.silence_ns = b.silence_ns = 4 * SHORT_NS; /* the server's link stays open */
        int64_t ns[ROUNDS];
        inf_bench_result out;
        inf_err err;
        CHECK(run_both(p, &b, &s, ns, &out, &err) == INF_ETIMEOUT);
        CHECK(s.rc == INF_EPROTO && s.err.code == INF_EPROTO && s.err.message[0]);
        inf_link_close(p.server);
    }
}

/* A peer that says nothing, one that is gone, and a caller that gives up. */
static void test_ends(void) {
    for (uint32_t flags = 0; flags <= INF_BENCH_WAITS; flags++) {
        pair p = open_pair();
        inf_bench b = bench_of(INF_BENCH_BANDWIDTH, flags);
        inf_bench_result out;
        inf_err err;
        b.silence_ns = SHORT_NS;
        CHECK(inf_link_bench(p.client, &b, NULL, &out, &err) == INF_ETIMEOUT);
        uint32_t stop = 1;
        b.silence_ns = LONG_NS;
        b.stop = &stop;
        CHECK(inf_link_bench(p.server, &b, NULL, NULL, &err) == INF_ETIMEOUT);
        CHECK(strstr(err.message, "stopped"));
        b.stop = NULL;
        inf_link_close(p.client);
        CHECK(inf_link_bench(p.server, &b, NULL, NULL, &err) == INF_EPEER && err.code == INF_EPEER);
        inf_link_close(p.server);
    }
}

int main(void) {
    for (provider = INF_PROVIDER_SHM; provider <= INF_PROVIDER_TCP; provider++) {
        test_figures();
        test_duration();
        test_refusals();
        test_disagreement();
        test_ends();
    }
    printf("ok\n");
    return 0;
}
