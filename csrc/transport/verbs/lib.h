/* libibverbs as a table of functions, filled at run time.
 *
 * The header's inline functions (post, poll, windows) go through tables of the device's own driver
 * and are used directly; what the library itself exports is called through this table only, so that
 * the program starts on machines that do not have it. Tests put their own functions in. */
#ifndef INF_VERBS_LIB_H
#define INF_VERBS_LIB_H

#include <infiniband/verbs.h>
#include <sys/types.h>

#include "infinite/status.h"

/* The header makes these names macros. */
#undef ibv_query_port
#undef ibv_reg_mr

typedef struct inf_verbs_lib {
    struct ibv_device **(*get_device_list)(int *n);
    void (*free_device_list)(struct ibv_device **list);
    const char *(*get_device_name)(struct ibv_device *device);
    struct ibv_context *(*open_device)(struct ibv_device *device);
    int (*close_device)(struct ibv_context *context);
    int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attr);
    /* Fills all but the last fields, which nobody here needs; zero the structure before. */
    int (*query_port)(struct ibv_context *context, uint8_t port, void *port_attr);
    ssize_t (*query_gid_table)(struct ibv_context *context, struct ibv_gid_entry *entries,
                               size_t max, uint32_t flags, size_t entry_size);
    int (*query_gid)(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid);
    int (*get_async_event)(struct ibv_context *context, struct ibv_async_event *event);
    void (*ack_async_event)(struct ibv_async_event *event);
    const char *(*event_type_str)(enum ibv_event_type event);
    struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
    int (*dealloc_pd)(struct ibv_pd *pd);
    struct ibv_mr *(*reg_mr)(struct ibv_pd *pd, void *address, size_t bytes, int access);
    struct ibv_mr *(*reg_dmabuf_mr)(struct ibv_pd *pd, uint64_t offset, size_t bytes, uint64_t iova,
                                    int fd, int access); /* NULL: the library is too old */
    int (*dereg_mr)(struct ibv_mr *mr);
    struct ibv_comp_channel *(*create_comp_channel)(struct ibv_context *context);
    int (*destroy_comp_channel)(struct ibv_comp_channel *channel);
    struct ibv_cq *(*create_cq)(struct ibv_context *context, int cqe, void *cq_context,
                                struct ibv_comp_channel *channel, int vector);
    int (*destroy_cq)(struct ibv_cq *cq);
    int (*get_cq_event)(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context);
    void (*ack_cq_events)(struct ibv_cq *cq, unsigned int n);
    const char *(*wc_status_str)(enum ibv_wc_status status);
    struct ibv_qp *(*create_qp)(struct ibv_pd *pd, struct ibv_qp_init_attr *attr);
    int (*modify_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask);
    int (*destroy_qp)(struct ibv_qp *qp);
} inf_verbs_lib;

/* The table, NULL and why in err if the library cannot be had. It is never unloaded. */
const inf_verbs_lib *inf_verbs_lib_get(inf_err *err);

#endif
