/* The test's side of fake/nccl.c: finds it, and what it lets the test set and read. */
#ifndef INF_TESTS_FAKE_NCCL_H
#define INF_TESTS_FAKE_NCCL_H

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct fake_nccl {
    void (**sync)(void *stream), (**hold)(void *stream);
    int (**block)(void);
    int *fail_init, *fail_call, *fail_end, *fail_later;
    int *take, *open_comms, *aborts, *sums, *sends, *depth;
} fake_nccl;

static inline fake_nccl fake_nccl_at(const char *path) {
    fake_nccl f;
    const struct {
        void *at;
        const char *name;
    } symbols[] = {{&f.sync, "fake_nccl_sync"},
                   {&f.hold, "fake_nccl_hold"},
                   {&f.block, "fake_nccl_block"},
                   {&f.fail_init, "fake_nccl_fail_init"},
                   {&f.fail_call, "fake_nccl_fail_call"},
                   {&f.fail_end, "fake_nccl_fail_end"},
                   {&f.fail_later, "fake_nccl_fail_later"},
                   {&f.take, "fake_nccl_take"},
                   {&f.open_comms, "fake_nccl_open_comms"},
                   {&f.aborts, "fake_nccl_aborts"},
                   {&f.sums, "fake_nccl_sums"},
                   {&f.sends, "fake_nccl_sends"},
                   {&f.depth, "fake_nccl_depth"}};
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = handle != NULL ? dlsym(handle, symbols[i].name) : NULL;
        if (symbol == NULL) {
            fprintf(stderr, "%s: %s\n", path, dlerror());
            exit(1);
        }
        memcpy(symbols[i].at, &symbol, sizeof symbol);
    }
    return f;
}

#endif
