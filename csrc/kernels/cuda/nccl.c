/* The part of NCCL's C interface that is used here (NVIDIA, "NCCL: API", nccl.h of NCCL 2; names
 * and numbers are the same from 2.10, which brought bf16, on). The library is loaded at run time
 * and declared here, so that a build needs neither it nor its header, and machines with one GPU do
 * not need it at all. */
#include "kernels/cuda/nccl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "infinite/device.h"
#include "kernels/backend.h"
#include "runtime/fail.h"

enum { NCCL_SUCCESS = 0, NCCL_INVALID_USAGE = 5, NCCL_IN_PROGRESS = 7 };
enum { NCCL_FLOAT16 = 6, NCCL_FLOAT32 = 7, NCCL_BFLOAT16 = 9 };
enum { NCCL_SUM = 0 };

typedef struct nccl_api {
    int (*init_all)(void **comms, int n, const int *devices);
    int (*group_start)(void);
    int (*group_end)(void);
    int (*all_reduce)(const void *from, void *to, size_t count, int type, int op, void *comm,
                      void *stream);
    int (*send)(const void *from, size_t count, int type, int peer, void *comm, void *stream);
    int (*receive)(void *to, size_t count, int type, int peer, void *comm, void *stream);
    int (*async_error)(void *comm, int *error);
    int (*abort)(void *comm);
    int (*destroy)(void *comm);
    const char *(*error_string)(int result);
} nccl_api;

struct inf_nccl {
    nccl_api api;
    int32_t n;
    void *comms[INF_MAX_RANKS];
    int ended; /* they are no more */
    /* An abort and a call that it ends may both have one. */
    pthread_mutex_t lock;
    int result;    /* under lock: the first failure */
    char why[160]; /* written once, with result */
};

/* Never closed: what it started outlives a communicator. */
static void *load_library(char *why, size_t bytes) {
    const char *name = getenv(INF_NCCL_LIBRARY);
    name = name != NULL && name[0] != 0 ? name : "libnccl.so.2";
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        const char *error = dlerror();
        snprintf(why, bytes, "%s", error != NULL ? error : name);
    }
    return handle;
}

static int load_api(nccl_api *api, char *why, size_t bytes) {
    void *handle = load_library(why, bytes);
    struct {
        void *at;
        const char *name;
    } symbols[] = {{&api->init_all, "ncclCommInitAll"},
                   {&api->group_start, "ncclGroupStart"},
                   {&api->group_end, "ncclGroupEnd"},
                   {&api->all_reduce, "ncclAllReduce"},
                   {&api->send, "ncclSend"},
                   {&api->receive, "ncclRecv"},
                   {&api->async_error, "ncclCommGetAsyncError"},
                   {&api->abort, "ncclCommAbort"},
                   {&api->destroy, "ncclCommDestroy"},
                   {&api->error_string, "ncclGetErrorString"}};
    for (size_t i = 0; handle != NULL && i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = dlsym(handle, symbols[i].name);
        if (symbol == NULL) {
            snprintf(why, bytes, "it lacks %s", symbols[i].name);
            return 0;
        }
        memcpy(symbols[i].at, &symbol, sizeof symbol);
    }
    return handle != NULL;
}

/* Notes the first failure; the result. text NULL: result says it. */
static int note(inf_nccl *c, int result, const char *at, const char *text) {
    pthread_mutex_lock(&c->lock);
    if (result != NCCL_SUCCESS && c->result == NCCL_SUCCESS) {
        text = text != NULL ? text : c->api.error_string(result);
        snprintf(c->why, sizeof c->why, "NCCL: %s%s%s", at, at[0] != 0 ? ": " : "", text);
        c->result = result;
    }
    int first = c->result;
    pthread_mutex_unlock(&c->lock);
    return first;
}

static int noted(inf_nccl *c) { return note(c, NCCL_SUCCESS, "", NULL); }

int inf_nccl_open(const int32_t *ordinals, int32_t n, inf_nccl **out, inf_err *err) {
    char why[160] = "";
    int devices[INF_MAX_RANKS];
    *out = NULL;
    if (n < 1 || n > INF_MAX_RANKS) {
        return inf_fail(err, INF_EINVAL, -1, -1, "cannot sum over %d GPUs", n);
    }
    inf_nccl *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return inf_fail(err, INF_ENOMEM, -1, -1, "cannot allocate the sum over GPUs");
    }
    if (!load_api(&c->api, why, sizeof why)) {
        free(c);
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                        "cannot sum over %d GPUs without NCCL: cannot load it: %s", n, why);
    }
    for (int32_t r = 0; r < n; r++) {
        devices[r] = ordinals[r];
        for (int32_t k = 0; k < r; k++) {
            if (devices[k] == devices[r]) { /* the user guide: may lead to hangs */
                free(c);
                return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                                "cannot sum over %d ranks by NCCL: two are on CUDA device %d", n,
                                devices[r]);
            }
        }
    }
    c->n = n;
    (void)pthread_mutex_init(&c->lock, NULL);
    int result = c->api.init_all(c->comms, n, devices);
    if (note(c, result, "cannot connect the GPUs", NULL) != NCCL_SUCCESS) {
        int status =
            inf_fail(err, INF_EUNSUPPORTED, -1, -1, "cannot sum over %d GPUs: %s", n, c->why);
        (void)pthread_mutex_destroy(&c->lock);
        free(c); /* its communicators are not made when it fails */
        return status;
    }
    *out = c;
    return INF_OK;
}

static int type_of(int32_t dtype) {
    return dtype == INF_DTYPE_F32   ? NCCL_FLOAT32
           : dtype == INF_DTYPE_F16 ? NCCL_FLOAT16
                                    : NCCL_BFLOAT16;
}

/* What is asked of all ranks as one group. */
typedef struct work {
    void *const *y; /* of a sum */
    uint64_t count;
    int32_t dtype;
    const inf_nccl_piece *pieces; /* of a gather */
    void *const *streams;
} work;

static int sum_rank(const inf_nccl *c, const work *w, int32_t rank) {
    return c->api.all_reduce(w->y[rank], w->y[rank], (size_t)w->count, type_of(w->dtype), NCCL_SUM,
                             c->comms[rank], w->streams[rank]);
}

/* Both ends of what a rank sends, in its own stream and in rank 0's. */
static int gather_rank(const inf_nccl *c, const work *w, int32_t rank) {
    const inf_nccl_piece *p = &w->pieces[rank];
    if (rank == 0 || p->count == 0) {
        return NCCL_SUCCESS;
    }
    int result =
        c->api.send(p->from, (size_t)p->count, NCCL_FLOAT32, 0, c->comms[rank], w->streams[rank]);
    return result != NCCL_SUCCESS ? result
                                  : c->api.receive(p->to, (size_t)p->count, NCCL_FLOAT32, rank,
                                                   c->comms[0], w->streams[0]);
}

static int ask_all(inf_nccl *c, const work *w,
                   int (*ask)(const inf_nccl *c, const work *w, int32_t rank), const char *at) {
    int result = noted(c);
    if (result != NCCL_SUCCESS) {
        return result;
    }
    result = c->api.group_start();
    if (result == NCCL_SUCCESS) {
        for (int32_t r = 0; r < c->n && result == NCCL_SUCCESS; r++) {
            result = ask(c, w, r);
        }
        int ended = c->api.group_end(); /* also after a failure, or the thread's group stays open */
        result = result != NCCL_SUCCESS ? result : ended;
    }
    return note(c, result, at, NULL);
}

int inf_nccl_sum(inf_nccl *c, void *const *y, uint64_t count, int32_t dtype, void *const *streams) {
    work w = {.y = y, .count = count, .dtype = dtype, .streams = streams};
    return ask_all(c, &w, sum_rank, "cannot sum");
}

int inf_nccl_gather(inf_nccl *c, const inf_nccl_piece *pieces, void *const *streams) {
    work w = {.pieces = pieces, .streams = streams};
    return ask_all(c, &w, gather_rank, "cannot gather");
}

int inf_nccl_failed(inf_nccl *c) {
    int first = noted(c);
    for (int32_t r = 0; r < c->n && first == NCCL_SUCCESS; r++) {
        int error = NCCL_SUCCESS;
        int result = c->api.async_error(c->comms[r], &error);
        result = result != NCCL_SUCCESS ? result : error;
        first = note(c, result == NCCL_IN_PROGRESS ? NCCL_SUCCESS : result, "a sum failed", NULL);
    }
    return first;
}

/* NCCL says of both ways to end a communicator that all of a host take part in it; so one thread
 * ends them as a group, where none waits for the next. */
static void end_all(inf_nccl *c, int (*end)(void *comm)) {
    if (c->ended) {
        return;
    }
    c->ended = 1;
    (void)c->api.group_start();
    for (int32_t r = 0; r < c->n; r++) {
        (void)end(c->comms[r]);
    }
    (void)c->api.group_end();
}

/* Noted first: what a call says that it ends is no cause, and none begins any more. */
void inf_nccl_abort(inf_nccl *c) {
    (void)note(c, NCCL_INVALID_USAGE, "", "it was aborted");
    end_all(c, c->api.abort);
}

const char *inf_nccl_why(const inf_nccl *c) { return c->why; }

void inf_nccl_close(inf_nccl *c) {
    if (c == NULL) {
        return;
    }
    end_all(c, c->api.destroy);
    (void)pthread_mutex_destroy(&c->lock);
    free(c);
}
