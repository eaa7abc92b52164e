#include "bench/cuda/tracer.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFER_BYTES = 4 << 20 };

/* CUPTI's callbacks come from its own thread, or from within a flush. */
static struct {
    pthread_mutex_t lock;
    activity *list;
    size_t n, room, lost;
    char *names[TRACER_NAMES];
    int32_t n_names;
} held = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct {
    int (*get_version)(uint32_t *version);
    int (*result_string)(int result, const char **text);
    int (*timestamp)(uint64_t *ns);
    int (*callbacks)(cupti_give_buffer give, cupti_take_buffer take);
    int (*enable)(int kind);
    int (*disable)(int kind);
    int (*flush)(uint32_t flag);
    int (*next)(uint8_t *buffer, size_t valid, void **record);
    int (*dropped)(void *context, uint32_t stream, size_t *n);
    uint32_t version;
} cupti;

static const int kinds[] = {CUPTI_CONCURRENT_KERNEL, CUPTI_MEMCPY, CUPTI_MEMSET};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* ---- records ---- */

/* Under the lock. */
static int32_t index_of(const char *name) {
    int32_t i = 0;
    name = name != NULL ? name : "?";
    while (i < held.n_names && strcmp(held.names[i], name) != 0) {
        i++;
    }
    if (i == held.n_names && i < TRACER_NAMES) {
        held.names[i] = strdup(i < TRACER_NAMES - 1 ? name : "(others)");
        held.n_names += held.names[i] != NULL;
    }
    return i < held.n_names ? i : held.n_names > 0 ? held.n_names - 1 : 0;
}

static const char *copy_name(const cupti_copy *c) {
    static const char *const names[] = {
        [1] = "copy, host to GPU", [2] = "copy, GPU to host", [8] = "copy, GPU to GPU"};
    if (c->kind == CUPTI_MEMSET) {
        return "memset";
    }
    size_t n = sizeof names / sizeof *names;
    return c->copy_kind < n && names[c->copy_kind] != NULL ? names[c->copy_kind] : "copy, other";
}

static void keep(const void *record) {
    uint32_t kind;
    memcpy(&kind, record, sizeof kind);
    const cupti_kernel *k = record;
    const cupti_copy *c = record;
    if (kind != CUPTI_CONCURRENT_KERNEL && kind != CUPTI_MEMCPY && kind != CUPTI_MEMSET) {
        return;
    }
    if (held.n == held.room) {
        size_t room = held.room == 0 ? 4096 : 2 * held.room;
        activity *list = realloc(held.list, room * sizeof *list);
        if (list == NULL) {
            held.lost++;
            return;
        }
        held.list = list, held.room = room;
    }
    held.list[held.n++] = kind == CUPTI_CONCURRENT_KERNEL
                              ? (activity){k->start, k->end, index_of(k->name), 1}
                              : (activity){c->start, c->end, index_of(copy_name(c)), 0};
}

static void give(uint8_t **buffer, size_t *bytes, size_t *most_records) {
    void *memory = NULL;
    *bytes = posix_memalign(&memory, 64, BUFFER_BYTES) == 0 ? BUFFER_BYTES : 0;
    *buffer = memory;
    *most_records = 0; /* as many as fit */
}

static void take(void *context, uint32_t stream, uint8_t *buffer, size_t bytes, size_t valid) {
    (void)context, (void)stream, (void)bytes;
    pthread_mutex_lock(&held.lock);
    void *record = NULL;
    while (valid > 0 && cupti.next(buffer, valid, &record) == CUPTI_OK) {
        keep(record);
    }
    pthread_mutex_unlock(&held.lock);
    free(buffer);
}

/* ---- the library ---- */

static int load(const char *name, char *why, size_t bytes) {
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        const char *error = dlerror();
        snprintf(why, bytes, "%s", error != NULL ? error : name);
        return -1;
    }
    struct {
        void *at;
        const char *name;
    } symbols[] = {{&cupti.get_version, "cuptiGetVersion"},
                   {&cupti.result_string, "cuptiGetResultString"},
                   {&cupti.timestamp, "cuptiGetTimestamp"},
                   {&cupti.callbacks, "cuptiActivityRegisterCallbacks"},
                   {&cupti.enable, "cuptiActivityEnable"},
                   {&cupti.disable, "cuptiActivityDisable"},
                   {&cupti.flush, "cuptiActivityFlushAll"},
                   {&cupti.next, "cuptiActivityGetNextRecord"},
                   {&cupti.dropped, "cuptiActivityGetNumDroppedRecords"}};
    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        void *symbol = dlsym(handle, symbols[i].name);
        if (symbol == NULL) {
            snprintf(why, bytes, "%s lacks %s", name, symbols[i].name);
            return -1;
        }
        memcpy(symbols[i].at, &symbol, sizeof symbol);
    }
    return 0;
}

static int failed(int result, const char *call, const char *name, char *why, size_t bytes) {
    const char *text = NULL;
    if (result != CUPTI_OK) {
        (void)cupti.result_string(result, &text);
        snprintf(why, bytes, "%s of %s: %s (%d)", call, name, text != NULL ? text : "?", result);
    }
    return result != CUPTI_OK;
}

static int begin(const char *name, char *why, size_t bytes) {
    if (load(name, why, bytes) != 0 ||
        failed(cupti.get_version(&cupti.version), "cuptiGetVersion", name, why, bytes)) {
        return -1;
    }
    if (!cupti_version_known(cupti.version)) {
        snprintf(why, bytes, "%s is of version %u, whose records may have changed", name,
                 cupti.version);
        return -1;
    }
    if (failed(cupti.callbacks(give, take), "cuptiActivityRegisterCallbacks", name, why, bytes)) {
        return -1;
    }
    for (int i = 0; i < KINDS; i++) {
        if (failed(cupti.enable(kinds[i]), "cuptiActivityEnable", name, why, bytes)) {
            while (i-- > 0) {
                (void)cupti.disable(kinds[i]);
            }
            return -1;
        }
    }
    return 0;
}

int tracer_open(char *why, size_t bytes) {
    static const char *const names[] = {"libcupti.so.13", "libcupti.so.12", "libcupti.so.11.8",
                                        "libcupti.so"};
    const char *named = getenv("INFINITE_CUPTI_LIBRARY");
    if (named != NULL && named[0] != 0) {
        return begin(named, why, bytes);
    }
    /* All that was tried is told: the newest may be there and too new for the driver. */
    size_t used = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char one[256] = "";
        if (begin(names[i], one, sizeof one) == 0) {
            return 0;
        }
        int n = snprintf(why + used, bytes - used, "%s%s", i > 0 ? "; " : "", one);
        used += n > 0 && (size_t)n < bytes - used ? (size_t)n : 0;
    }
    return -1;
}

void tracer_close(void) {
    for (int i = 0; i < KINDS; i++) {
        (void)cupti.disable(kinds[i]);
    }
}

uint32_t tracer_version(void) { return cupti.version; }

uint64_t tracer_now(void) {
    uint64_t ns = 0;
    return cupti.timestamp(&ns) == CUPTI_OK ? ns : 0;
}

activity *tracer_take(size_t *n, size_t *lost) {
    /* Complete buffers first, then whatever else there is. */
    (void)cupti.flush(0);
    (void)cupti.flush(CUPTI_FLUSH_FORCED);
    *lost = 0;
    (void)cupti.dropped(NULL, 0, lost);
    pthread_mutex_lock(&held.lock);
    activity *list = held.list;
    *n = held.n;
    *lost += held.lost;
    held.list = NULL;
    held.n = held.room = held.lost = 0;
    pthread_mutex_unlock(&held.lock);
    return list;
}

const char *tracer_name(int32_t name) {
    return name >= 0 && name < held.n_names ? held.names[name] : NULL;
}
