/* Status codes and the error record that both doors share. */
#ifndef INFINITE_STATUS_H
#define INFINITE_STATUS_H

#include <stdint.h>

#if defined(__cplusplus) && !defined(_Static_assert)
#define _Static_assert static_assert /* the CUDA files are C++ */
#endif

/* 0 is success, 1 is "in progress, ask again", below 0 is an error. */
enum {
    INF_OK = 0,
    INF_AGAIN = 1,
    INF_EINVAL = -1,       /* an argument is out of its documented range */
    INF_ENOMEM = -2,       /* memory could not be had */
    INF_EPEER = -3,        /* the peer is gone: its end closed, or its process died */
    INF_ETIMEOUT = -4,     /* a deadline passed; inf_err.instance names the peer */
    INF_EPROTO = -5,       /* the peer sent what the protocol does not allow */
    INF_EIO = -6,          /* a system call failed */
    INF_ESTALE = -7,       /* a span handle whose generation is over */
    INF_EFULL = -8,        /* a table or a queue is at its limit */
    INF_EUNSUPPORTED = -9, /* this build or this device cannot do it */
    INF_ENOTFINITE = -10,  /* a logit is NaN or infinite: damaged weights, or too narrow a dtype */
};

/* inf_err is owned by the caller; C fills it when a call returns a status < 0.
 * instance is the peer index the error speaks of, -1 where none; layer likewise. */
typedef struct inf_err {
    int32_t code;
    int32_t instance;
    int32_t layer;
    int32_t reserved;
    char message[240]; /* NUL-terminated */
} inf_err;

_Static_assert(sizeof(inf_err) == 256, "inf_err is mirrored in Go");

#endif
