/* A libnccl for tests: it sums, and takes what is sent to where it is received, in host memory when
 * a group ends, and fails where it is told to. Declared as NCCL's public API has it (NVIDIA, nccl.h
 * of NCCL 2). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { MOST = 8, MOST_CALLS = 2 * MOST };
enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };
enum { FLOAT16 = 6, FLOAT32 = 7, BFLOAT16 = 9 };

typedef struct comm {
    int rank, n, aborted;
} comm;

typedef enum call_kind { ALL_REDUCE, SEND, RECEIVE } call_kind;

typedef struct call {
    call_kind kind;
    void *y;
    size_t count;
    int type, peer;
    comm *c;
    void *stream;
} call;

/* What the test sets and reads. */
EXPORT void (*fake_nccl_sync)(void *stream); /* waits for what is in a stream; NULL: nothing */
EXPORT void (*fake_nccl_hold)(void *stream); /* instead of what a group is; NULL: there is that */
EXPORT int (*fake_nccl_block)(
    void); /* the call that ends a group, and its result; NULL: there is one */
EXPORT int fake_nccl_fail_init, fake_nccl_fail_call, fake_nccl_fail_end; /* results, 0: none */
EXPORT int fake_nccl_fail_later; /* what communicators say of what went wrong since */
EXPORT int fake_nccl_take; /* 1: what was sent is lost where it was, as if memories were apart */
EXPORT int fake_nccl_open_comms, fake_nccl_aborts, fake_nccl_depth;
EXPORT int fake_nccl_sums, fake_nccl_sends; /* groups, and messages in groups */

static call calls[MOST_CALLS];
static int n_calls;

EXPORT int ncclCommInitAll(void **out, int n, const int *devices) {
    for (int i = 0; i < n; i++) {
        if (devices[i] < 0) {
            return INVALID_ARGUMENT;
        }
    }
    if (n < 1 || n > MOST || fake_nccl_fail_init != SUCCESS) {
        return n < 1 || n > MOST ? INVALID_ARGUMENT : fake_nccl_fail_init;
    }
    for (int i = 0; i < n; i++) {
        comm *c = calloc(1, sizeof *c);
        c->rank = i;
        c->n = n;
        out[i] = c;
        fake_nccl_open_comms++;
    }
    return SUCCESS;
}

EXPORT int ncclGroupStart(void) {
    fake_nccl_depth++;
    n_calls = 0;
    return SUCCESS;
}

static int take(call c) {
    if (fake_nccl_depth != 1 || n_calls == MOST_CALLS || c.count == 0) {
        return INVALID_ARGUMENT;
    }
    if (fake_nccl_fail_call != SUCCESS) {
        return fake_nccl_fail_call;
    }
    calls[n_calls++] = c;
    return SUCCESS;
}

EXPORT int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *comm_,
                         void *stream) {
    return from == to && op == 0 ? take((call){ALL_REDUCE, to, count, type, -1, comm_, stream})
                                 : INVALID_ARGUMENT;
}

EXPORT int ncclSend(const void *from, size_t count, int type, int peer, void *comm_, void *stream) {
    void *y;
    memcpy(&y, &from, sizeof y);
    return take((call){SEND, y, count, type, peer, comm_, stream});
}

EXPORT int ncclRecv(void *to, size_t count, int type, int peer, void *comm_, void *stream) {
    return take((call){RECEIVE, to, count, type, peer, comm_, stream});
}

static float get(const void *y, size_t i, int type) {
    uint16_t h;
    uint32_t bits;
    float f;
    if (type == FLOAT32) {
        return ((const float *)y)[i];
    }
    memcpy(&h, (const uint16_t *)y + i, sizeof h);
    if (type == FLOAT16) {
        _Float16 half;
        memcpy(&half, &h, sizeof half);
        return (float)half;
    }
    bits = (uint32_t)h << 16;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static void put(void *y, size_t i, int type, float f) {
    uint16_t h;
    uint32_t bits;
    if (type == FLOAT32) {
        ((float *)y)[i] = f;
        return;
    }
    if (type == FLOAT16) {
        _Float16 half = (_Float16)f;
        memcpy(&h, &half, sizeof h);
    } else { /* to the nearest, ties to even */
        memcpy(&bits, &f, sizeof bits);
        h = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
    memcpy((uint16_t *)y + i, &h, sizeof h);
}

/* Every rank once, all about the same. */
static int may_sum(void) {
    for (int r = 0; r < n_calls; r++) {
        const call *c = &calls[r];
        if (c->kind != ALL_REDUCE || c->c->rank != r || c->c->n != n_calls ||
            c->count != calls[0].count || c->type != calls[0].type) {
            return 0;
        }
    }
    return 1;
}

/* What the call's peer says of the same message; NULL unless there is one such, and no other
 * between the two. */
static const call *other_end(const call *c) {
    const call *found = NULL;
    for (int i = 0; i < n_calls; i++) {
        const call *o = &calls[i];
        if (o->kind != c->kind && o->c->rank == c->peer && o->peer == c->c->rank) {
            if (found != NULL || o->count != c->count || o->type != c->type) {
                return NULL;
            }
            found = o;
        }
    }
    return found;
}

/* Every message has two ends, in streams of two ranks. */
static int may_send(void) {
    for (int i = 0; i < n_calls; i++) {
        const call *c = &calls[i], *o = other_end(c);
        if (c->kind == ALL_REDUCE || c->peer < 0 || c->peer >= c->c->n || c->peer == c->c->rank ||
            o == NULL || other_end(o) != c || (c->stream == o->stream && c->stream != NULL)) {
            return 0;
        }
    }
    return 1;
}

static void send_all(void) {
    for (int i = 0; i < n_calls; i++) {
        const call *c = &calls[i];
        if (c->kind == SEND) {
            size_t bytes = c->count * (c->type == FLOAT32 ? 4 : 2);
            memcpy(other_end(c)->y, c->y, bytes);
            memset(c->y, 0xff, fake_nccl_take ? bytes : 0);
            fake_nccl_sends++;
        }
    }
}

/* Once for each stream. */
static void in_streams(void (*what)(void *stream)) {
    for (int i = 0; i < n_calls; i++) {
        int seen = 0;
        for (int k = 0; k < i; k++) {
            seen |= calls[k].stream == calls[i].stream;
        }
        if (!seen) {
            what(calls[i].stream);
        }
    }
}

static void sum_all(void) {
    for (size_t i = 0; i < calls[0].count; i++) {
        float sum = get(calls[0].y, i, calls[0].type);
        for (int r = 1; r < n_calls; r++) {
            sum += get(calls[r].y, i, calls[0].type);
        }
        for (int r = 0; r < n_calls; r++) {
            put(calls[r].y, i, calls[0].type, sum);
        }
    }
    fake_nccl_sums++;
}

EXPORT int ncclGroupEnd(void) {
    fake_nccl_depth--;
    if (fake_nccl_fail_end != SUCCESS || n_calls == 0) {
        return fake_nccl_fail_end;
    }
    if (fake_nccl_block != NULL) {
        return fake_nccl_block();
    }
    int sums = calls[0].kind == ALL_REDUCE, may = sums ? may_sum() : may_send();
    for (int i = 0; i < n_calls; i++) {
        may = may && !calls[i].c->aborted;
    }
    if (!may) {
        return INVALID_USAGE;
    }
    if (fake_nccl_hold != NULL) {
        in_streams(fake_nccl_hold);
        return SUCCESS;
    }
    if (fake_nccl_sync != NULL) {
        in_streams(fake_nccl_sync);
    }
    if (sums) {
        sum_all();
    } else {
        send_all();
    }
    return SUCCESS;
}

EXPORT int ncclCommGetAsyncError(void *comm_, int *error) {
    const comm *c = comm_;
    *error = c->rank == c->n - 1 ? fake_nccl_fail_later : SUCCESS;
    return SUCCESS;
}

/* Both ways to end a communicator belong in a group when one thread has several. */
static int end(void *comm_) {
    if (fake_nccl_depth != 1) {
        return INVALID_USAGE;
    }
    fake_nccl_open_comms--;
    free(comm_);
    return SUCCESS;
}

EXPORT int ncclCommAbort(void *comm_) {
    __atomic_fetch_add(&fake_nccl_aborts, 1, __ATOMIC_SEQ_CST); /* any thread reads it */
    return end(comm_);
}

EXPORT int ncclCommDestroy(void *comm_) { return end(comm_); }

EXPORT const char *ncclGetErrorString(int result) {
    return result == SYSTEM_ERROR    ? "unhandled system error"
           : result == INVALID_USAGE ? "invalid usage"
           : result == REMOTE_ERROR  ? "remote process exited or there was a network error"
                                     : "internal error";
}
