/* What a build without <infiniband/verbs.h> has in place of the verbs provider. */
#include "infinite/verbs.h"
#include "transport/link_impl.h"

static int unsupported(inf_err *err) {
    return inf_link_error(err, -1, INF_EUNSUPPORTED,
                          "cannot use RDMA: this build was made without libibverbs' headers");
}

int inf_verbs_available(inf_err *err) { return unsupported(err); }

int inf_verbs_ports(inf_verbs_port *out, uint32_t max, uint32_t *n, inf_err *err) {
    (void)out, (void)max, (void)n;
    return unsupported(err);
}

int inf_verbs_gids(const char *device, uint32_t port, inf_verbs_gid *out, uint32_t max, uint32_t *n,
                   inf_err *err) {
    (void)device, (void)port, (void)out, (void)max, (void)n;
    return unsupported(err);
}

uint64_t inf_verbs_endpoint_bytes(uint32_t slots, uint64_t slot_bytes) {
    (void)slots, (void)slot_bytes;
    return 0;
}

int inf_verbs_memlock(uint64_t bytes, inf_err *err) {
    (void)bytes;
    return unsupported(err);
}

int inf_verbs_device_open(const char *name, const char *domain, inf_verbs_device **out,
                          inf_err *err) {
    (void)name, (void)domain, (void)out;
    return unsupported(err);
}

void inf_verbs_device_close(inf_verbs_device *device) { (void)device; }

int inf_verbs_gid_for(inf_verbs_device *device, uint32_t port, const uint8_t address[16],
                      inf_verbs_gid *out, inf_err *err) {
    (void)device, (void)port, (void)address, (void)out;
    return unsupported(err);
}

int inf_verbs_endpoint_create(inf_verbs_device *device, const inf_verbs_config *config,
                              inf_verbs_endpoint **out, inf_verbs_info *local, inf_err *err) {
    (void)device, (void)config, (void)out, (void)local;
    return unsupported(err);
}

int inf_verbs_endpoint_to_rtr(inf_verbs_endpoint *endpoint, const inf_verbs_info *remote,
                              inf_err *err) {
    (void)endpoint, (void)remote;
    return unsupported(err);
}

int inf_verbs_endpoint_to_rts(inf_verbs_endpoint *endpoint, inf_err *err) {
    (void)endpoint;
    return unsupported(err);
}

void inf_verbs_endpoint_destroy(inf_verbs_endpoint *endpoint) { (void)endpoint; }

inf_verbs_device *inf_link_verbs_device(const inf_link *link) {
    (void)link;
    return NULL;
}

int inf_verbs_device_cpus(const inf_verbs_device *device, uint64_t cpus[INF_CPU_WORDS]) {
    (void)device, (void)cpus;
    return INF_EUNSUPPORTED;
}

void inf_verbs_pin(const uint64_t cpus[INF_CPU_WORDS]) { (void)cpus; }

int inf_region_open(inf_verbs_device *device, const inf_memory *memory, inf_region **out,
                    inf_err *err) {
    (void)device, (void)memory, (void)out;
    return unsupported(err);
}

uint32_t inf_region_way(const inf_region *region, const char **why) {
    (void)region, (void)why;
    return 0;
}

int inf_region_flush(inf_region *region, uint64_t offset, uint64_t bytes, inf_err *err) {
    (void)region, (void)offset, (void)bytes;
    return unsupported(err);
}

int inf_region_load(inf_region *region, void *to, uint64_t offset, uint64_t bytes, inf_err *err) {
    (void)region, (void)to, (void)offset, (void)bytes;
    return unsupported(err);
}

int inf_region_store(inf_region *region, uint64_t offset, const void *from, uint64_t bytes,
                     inf_err *err) {
    (void)region, (void)offset, (void)from, (void)bytes;
    return unsupported(err);
}

int inf_region_close(inf_region *region) {
    (void)region;
    return INF_EUNSUPPORTED;
}

int inf_link_attach_verbs(const inf_link_config *config, inf_verbs_endpoint *ep, inf_link **out,
                          inf_err *err) {
    (void)config, (void)ep, (void)out;
    return unsupported(err);
}
