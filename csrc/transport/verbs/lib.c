/* Loads libibverbs.so.1. The version in the name is its ABI's, stable for more than a decade;
 * symbols that came later are looked for one by one. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "transport/verbs/lib.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "transport/link_impl.h"

static const char *const FILE_NAME = "libibverbs.so.1";

static const struct {
    const char *name;
    size_t offset;
    bool optional;
} SYMBOLS[] = {
#define SYMBOL(symbol, field)                                                                      \
    { symbol, offsetof(inf_verbs_lib, field), false }
    SYMBOL("ibv_get_device_list", get_device_list),
    SYMBOL("ibv_free_device_list", free_device_list),
    SYMBOL("ibv_get_device_name", get_device_name),
    SYMBOL("ibv_open_device", open_device),
    SYMBOL("ibv_close_device", close_device),
    SYMBOL("ibv_query_device", query_device),
    SYMBOL("ibv_query_port", query_port),
    SYMBOL("_ibv_query_gid_table", query_gid_table),
    SYMBOL("ibv_query_gid", query_gid),
    SYMBOL("ibv_get_async_event", get_async_event),
    SYMBOL("ibv_ack_async_event", ack_async_event),
    SYMBOL("ibv_event_type_str", event_type_str),
    SYMBOL("ibv_alloc_pd", alloc_pd),
    SYMBOL("ibv_dealloc_pd", dealloc_pd),
    SYMBOL("ibv_reg_mr", reg_mr),
    SYMBOL("ibv_dereg_mr", dereg_mr),
    SYMBOL("ibv_create_comp_channel", create_comp_channel),
    SYMBOL("ibv_destroy_comp_channel", destroy_comp_channel),
    SYMBOL("ibv_create_cq", create_cq),
    SYMBOL("ibv_destroy_cq", destroy_cq),
    SYMBOL("ibv_get_cq_event", get_cq_event),
    SYMBOL("ibv_ack_cq_events", ack_cq_events),
    SYMBOL("ibv_wc_status_str", wc_status_str),
    SYMBOL("ibv_create_qp", create_qp),
    SYMBOL("ibv_modify_qp", modify_qp),
    SYMBOL("ibv_destroy_qp", destroy_qp),
#undef SYMBOL
    {"ibv_reg_dmabuf_mr", offsetof(inf_verbs_lib, reg_dmabuf_mr), true},
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static inf_verbs_lib table;
static bool loaded;

static int load(inf_err *err) {
    void *library = dlopen(FILE_NAME, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *why = dlerror();
        return inf_link_error(err, -1, INF_EUNSUPPORTED, "cannot load the RDMA library: %s",
                              why ? why : FILE_NAME);
    }
    for (size_t i = 0; i < sizeof SYMBOLS / sizeof SYMBOLS[0]; i++) {
        void *symbol = dlsym(library, SYMBOLS[i].name);
        if (!symbol && !SYMBOLS[i].optional) {
            dlclose(library);
            return inf_link_error(err, -1, INF_EUNSUPPORTED,
                                  "cannot use %s: it is too old, %s is not in it", FILE_NAME,
                                  SYMBOLS[i].name);
        }
        memcpy((char *)&table + SYMBOLS[i].offset, &symbol, sizeof symbol);
    }
    loaded = true;
    return INF_OK;
}

const inf_verbs_lib *inf_verbs_lib_get(inf_err *err) {
    pthread_mutex_lock(&lock);
    int rc = loaded ? INF_OK : load(err);
    pthread_mutex_unlock(&lock);
    return rc == INF_OK ? &table : NULL;
}
