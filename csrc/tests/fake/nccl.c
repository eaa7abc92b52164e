/* A libnccl for tests: it sums in host memory when a group ends, and fails where it is told to.
 * Declared as NCCL's public API has it (NVIDIA, nccl.h of NCCL 2). */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { MOST = 8 };
enum { SUCCESS = 0, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };
enum { FLOAT16 = 6, FLOAT32 = 7, BFLOAT16 = 9 };

typedef struct comm {
    int rank, n, aborted;
} comm;

typedef struct call {
    void *y;
    size_t count;
    int type;
    comm *c;
    void *stream;
} call;

/* What the test sets and reads. */
EXPORT void (*fake_nccl_sync)(void *stream); /* waits for what is in a stream; NULL: nothing */
EXPORT void (*fake_nccl_hold)(void *stream); /* instead of a sum; NULL: there is one */
EXPORT int (*fake_nccl_block)(
    void); /* the call that gives a sum, and its result; NULL: there is one */
EXPORT int fake_nccl_fail_init, fake_nccl_fail_call, fake_nccl_fail_end; /* results, 0: none */
EXPORT int fake_nccl_fail_later; /* what communicators say of what went wrong since */
EXPORT int fake_nccl_open_comms, fake_nccl_aborts, fake_nccl_sums, fake_nccl_depth;

static call calls[MOST];
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

EXPORT int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *comm_,
                         void *stream) {
    if (fake_nccl_depth != 1 || from != to || op != 0 || n_calls == MOST) {
        return INVALID_ARGUMENT;
    }
    if (fake_nccl_fail_call != SUCCESS) {
        return fake_nccl_fail_call;
    }
    calls[n_calls++] = (call){to, count, type, comm_, stream};
    return SUCCESS;
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

EXPORT int ncclGroupEnd(void) {
    fake_nccl_depth--;
    if (fake_nccl_fail_end != SUCCESS || n_calls == 0) {
        return fake_nccl_fail_end;
    }
    if (fake_nccl_block != NULL) {
        return fake_nccl_block();
    }
    for (int r = 0; r < n_calls; r++) { /* every rank once, all about the same */
        const call *c = &calls[r];
        if (c->c->rank != r || c->c->n != n_calls || c->c->aborted || c->count != calls[0].count ||
            c->type != calls[0].type) {
            return INVALID_USAGE;
        }
        if (fake_nccl_hold != NULL) {
            fake_nccl_hold(c->stream);
        } else if (fake_nccl_sync != NULL) {
            fake_nccl_sync(c->stream);
        }
    }
    if (fake_nccl_hold != NULL) {
        return SUCCESS;
    }
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
