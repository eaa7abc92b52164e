/* Door 2, RDMA: devices, and the endpoints from which links of provider INF_PROVIDER_VERBS are
 * made.
 *
 *   list ports and GIDs, choose -> device_open
 *   per link, on both sides:
 *     create -> local info         exchanged by the caller over a channel that it trusts
 *     to_rtr(remote info)          then both sides tell each other that they are there
 *     to_rts                       then again: from here on the peer may write
 *     inf_link_open_verbs          an ordinary link
 *
 * Neither side may go to_rts before both are in RTR, nor open its link before both are in RTS: what
 * arrives too early would be lost, and be sent again only after a timeout.
 *
 * Ownership:
 *  1. Devices are counted: every successful device_open needs one device_close. An endpoint, a link
 *     made of it, and a region each count as one more user of their device.
 *  2. An endpoint belongs to who created it until inf_link_open_verbs, which takes it, also when it
 *     fails; else endpoint_destroy ends it.
 *  3. An endpoint is used by one thread at a time. Devices may be used by any number.
 *  4. The info of a peer is checked here; who sent it is the caller's to know.
 *
 * Without the library (libibverbs.so.1 is loaded at the first call), or in a build without its
 * headers, every function says INF_EUNSUPPORTED, and why. */
#ifndef INFINITE_VERBS_H
#define INFINITE_VERBS_H

#include "infinite/link.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct inf_verbs_device inf_verbs_device;
typedef struct inf_verbs_endpoint inf_verbs_endpoint;

enum { INF_VERBS_NAME = 64 };
enum { INF_VERBS_INFINIBAND = 1, INF_VERBS_ETHERNET = 2 };
enum { INF_VERBS_GID_IB = 0, INF_VERBS_GID_ROCE_V1 = 1, INF_VERBS_GID_ROCE_V2 = 2 };

/* A port of a device, as it is now. */
typedef struct inf_verbs_port {
    char device[INF_VERBS_NAME]; /* NUL-terminated */
    uint32_t port;               /* counted from 1 */
    uint32_t link_layer;         /* INF_VERBS_INFINIBAND | INF_VERBS_ETHERNET */
    uint32_t active;             /* 1: packets can travel */
    uint32_t mtu;                /* active path MTU, bytes */
    uint32_t speed;              /* Mbit/s, 0: unknown */
    uint32_t lid;                /* InfiniBand */
    uint32_t gids;               /* size of the GID table */
    uint32_t windows;            /* 1: has type-2 memory windows, so that puts are possible */
} inf_verbs_port;

typedef struct inf_verbs_gid {
    uint8_t bytes[16];
    uint32_t index;   /* of no meaning to anyone but this port, and only for now */
    uint32_t type;    /* INF_VERBS_GID_* */
    uint32_t netdev;  /* interface index, 0: none */
    uint32_t is_link; /* 1: link-local (fe80::/10), which does not do for RoCE here */
} inf_verbs_gid;

enum { INF_VERBS_NO_WINDOWS = 1 }; /* as if the device had no memory windows */

typedef struct inf_verbs_config {
    uint32_t port;
    uint32_t slots;      /* as in inf_link_config */
    uint64_t slot_bytes; /* likewise */
    uint8_t gid[16];     /* local GID, by its bytes; all 0: the port's first that is good */
    int32_t peer;        /* peer index, for error records */
    uint32_t service_level;
    uint32_t traffic_class; /* of the IP header (RoCE) or the GRH */
    uint32_t timeout;       /* 1..20: an unanswered packet is repeated after 4.096 us << timeout; */
    uint32_t retries;       /* 1..6: so many times. 0 and 0: 14 and 6, a dead peer shows in 0.5 s */
    uint32_t flags;         /* INF_VERBS_NO_WINDOWS */
} inf_verbs_config;

/* What the two ends of a link tell each other. It travels as it lies in memory, little-endian. */
typedef struct inf_verbs_info {
    uint32_t magic; /* INF_VERBS_MAGIC */
    uint16_t version;
    uint16_t link_layer;
    uint32_t qp_number; /* 24 bits */
    uint32_t psn;       /* 24 bits, random */
    uint8_t gid[16];
    uint32_t mtu; /* active, bytes */
    uint32_t lid; /* 16 bits */
    uint32_t ring_key;
    uint32_t slots;
    uint64_t ring_address;
    uint64_t slot_bytes;
    uint64_t reserved[2]; /* 0 */
} inf_verbs_info;

#define INF_VERBS_MAGIC 0x56464e49u /* "INFV" */
enum { INF_VERBS_VERSION = 1 };

_Static_assert(sizeof(inf_verbs_port) == 96, "inf_verbs_port is mirrored in Go");
_Static_assert(sizeof(inf_verbs_gid) == 32, "inf_verbs_gid is mirrored in Go");
_Static_assert(sizeof(inf_verbs_config) == 56, "inf_verbs_config is mirrored in Go");
_Static_assert(sizeof(inf_verbs_info) == 80, "on the wire");

/* INF_OK if the library is there; INF_EUNSUPPORTED and why if not. Devices may still be none. */
int inf_verbs_available(inf_err *err);

/* Fills at most max; n is how many there are. */
int inf_verbs_ports(inf_verbs_port *out, uint32_t max, uint32_t *n, inf_err *err);
int inf_verbs_gids(const char *device, uint32_t port, inf_verbs_gid *out, uint32_t max, uint32_t *n,
                   inf_err *err);

/* Memory that an endpoint of this shape locks, 0 if the shape is not allowed. */
uint64_t inf_verbs_endpoint_bytes(uint32_t slots, uint64_t slot_bytes);

/* Can this process lock so many bytes of memory? INF_ENOMEM and the remedy if not. */
int inf_verbs_memlock(uint64_t bytes, inf_err *err);

/* One context per device and process, and in it one protection domain per trust domain (the
 * cluster's name): keys of one are of no use in another. */
int inf_verbs_device_open(const char *name, const char *domain, inf_verbs_device **out,
                          inf_err *err);
void inf_verbs_device_close(inf_verbs_device *device);

/* The port's GID with this address: 16 bytes, an IPv4 address as ::ffff:a.b.c.d; all 0: any that is
 * good, which means RoCE v2 and not link-local on Ethernet, IPv4 before IPv6. */
int inf_verbs_gid_for(inf_verbs_device *device, uint32_t port, const uint8_t address[16],
                      inf_verbs_gid *out, inf_err *err);

int inf_verbs_endpoint_create(inf_verbs_device *device, const inf_verbs_config *config,
                              inf_verbs_endpoint **out, inf_verbs_info *local, inf_err *err);
/* May take a second: the peer's hardware address is looked up. */
int inf_verbs_endpoint_to_rtr(inf_verbs_endpoint *endpoint, const inf_verbs_info *remote,
                              inf_err *err);
int inf_verbs_endpoint_to_rts(inf_verbs_endpoint *endpoint, inf_err *err);
void inf_verbs_endpoint_destroy(inf_verbs_endpoint *endpoint); /* Safe on NULL. */

/* inf_link_open for an endpoint in RTS. config has the endpoint's shape, provider
 * INF_PROVIDER_VERBS, and in sock_fd a connected stream socket on which nothing is ever sent: its
 * end is the peer's death. The other descriptors are -1. Takes endpoint and descriptors, also when
 * it fails. */
int inf_link_open_verbs(const inf_link_config *config, inf_verbs_endpoint *endpoint, inf_link **out,
                        inf_err *err);

/* The device of a verbs link, on which regions for its puts are opened; NULL for other links. It is
 * there as long as the link or such a region is. */
inf_verbs_device *inf_link_verbs_device(const inf_link *link);

enum { INF_CPU_WORDS = 16 }; /* a set of 1,024 CPUs, a bit each */

/* The CPUs near the device: those of its NUMA node, of which this thread may use any.
 * INF_EUNSUPPORTED where the kernel does not tell, or where all are near. */
int inf_verbs_device_cpus(const inf_verbs_device *device, uint64_t cpus[INF_CPU_WORDS]);

/* Keeps the calling thread to a set of CPUs, as far as it may use them. */
void inf_verbs_pin(const uint64_t cpus[INF_CPU_WORDS]);

/* --- regions: memory for puts ---
 *
 * A region is a stretch of memory, the KV pool, registered once per device and domain. Host memory
 * is pinned by its address. GPU memory is registered in the first way that works:
 *
 *   dma-buf        the GPU driver exports the memory, the RDMA driver imports it
 *   peer memory    a kernel module (nvidia-peermem) lets the RDMA core pin GPU addresses
 *   bounce         neither: no puts. Data travels in messages, whose slots are pinned host memory;
 *                  inf_region_load and inf_region_store copy between them and the GPU
 *
 * A GPU may still hold remote writes back from its own kernels when the message that tells of them
 * has arrived: inf_region_flush comes before they are read. For host memory it does nothing. */
enum { INF_MEMORY_HOST = 1, INF_MEMORY_DEVICE = 2 };
enum { INF_WAY_HOST = 1, INF_WAY_DMABUF = 2, INF_WAY_PEERMEM = 3, INF_WAY_BOUNCE = 4 };

/* What the backend of device memory does for a region; arg is handed to each. NULL: it cannot. They
 * return 0, or an errno. */
typedef struct inf_memory_ops {
    void *arg;
    /* A dma-buf in which [address, address + bytes) begins at *offset. The region closes *fd. */
    int (*export_dmabuf)(void *arg, uint64_t address, uint64_t bytes, int *fd, uint64_t *offset);
    /* 0 if the module is loaded. */
    int (*has_peermem)(void *arg);
    /* Makes remote writes to the stretch visible to the device. */
    int (*flush)(void *arg, uint64_t address, uint64_t bytes);
    int (*copy_out)(void *arg, void *host, uint64_t address, uint64_t bytes);
    int (*copy_in)(void *arg, uint64_t address, const void *host, uint64_t bytes);
    /* Makes host memory fast to copy from and to; undone by unpin. Both may be NULL. */
    int (*pin)(void *arg, void *host, uint64_t bytes);
    void (*unpin)(void *arg, void *host);
} inf_memory_ops;

typedef struct inf_memory {
    uint64_t address;
    uint64_t bytes;
    uint32_t kind;             /* INF_MEMORY_* */
    uint32_t without;          /* bits 1 << INF_WAY_*: ways not to try */
    const inf_memory_ops *ops; /* for INF_MEMORY_DEVICE; outlives the region */
} inf_memory;

/* The memory stays where it is until inf_region_close. */
int inf_region_open(inf_verbs_device *device, const inf_memory *memory, inf_region **out,
                    inf_err *err);

/* INF_WAY_*; why, if not NULL, gets what was tried before and why it was not taken. */
uint32_t inf_region_way(const inf_region *region, const char **why);

/* Both check the stretch against the region; INF_EINVAL, INF_EIO with the backend's error in err.
 */
int inf_region_flush(inf_region *region, uint64_t offset, uint64_t bytes, inf_err *err);
int inf_region_load(inf_region *region, void *to, uint64_t offset, uint64_t bytes, inf_err *err);
int inf_region_store(inf_region *region, uint64_t offset, const void *from, uint64_t bytes,
                     inf_err *err);

/* INF_EFULL, and nothing happens, while a link uses it. Safe on NULL. */
int inf_region_close(inf_region *region);

#ifdef __cplusplus
}
#endif
#endif
