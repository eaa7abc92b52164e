/* The inside of a device; only runtime/ sees it. */
#ifndef INF_RUNTIME_RUNTIME_H
#define INF_RUNTIME_RUNTIME_H

#include <pthread.h>
#include <stdatomic.h>

#include "dist/dist.h"
#include "infinite/device.h"
#include "kernels/backend.h"
#include "model/forward.h"
#include "model/sampling.h"
#include "model/weights.h"

/* One step in flight at a time:  idle -submit-> running -step thread-> done -wait-> idle */
typedef enum inf_step_state { INF_STEP_IDLE, INF_STEP_RUNNING, INF_STEP_DONE } inf_step_state;

struct inf_device {
    inf_device_config config;
    float *inv_freq;
    int32_t *windows;
    inf_backend *backend;
    inf_weights *weights;
    int ready;

    inf_pool *threads;
    inf_kv_shape kv;
    uint8_t *pool; /* [num_blocks] blocks, the backend's memory */
    uint64_t pool_bytes;
    inf_dist *dist;
    inf_forward *forward;

    inf_step_buffers step;
    void *step_memory;
    /* [num_blocks], zero between validations: who lists a block in this step (validate.c) */
    uint32_t *block_marks;
    uint8_t *slot_marks; /* [max_seqs], 1 while the slot is in the step in flight */

    /* Guarded by mutex: state, fault, quit, slots, slot_marks, weights while loading. state and
     * quit are looked at without it by who is awake, and then with it. */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_t thread;
    int thread_started;
    atomic_int quit;
    _Atomic inf_step_state state;
    inf_err fault;    /* of the device itself: code 0 while it works */
    inf_slot **slots; /* [max_seqs] */

    atomic_uint_least64_t steps, tokens, step_ns;
};

/* INF_EINVAL, or INF_EUNSUPPORTED, and the reason if no device can be like that. */
int inf_check_config(const inf_device_config *config, inf_err *err);

/* INF_EINVAL and the reason if the step buffers hold anything that a step may not be. The mutex is
 * held. */
int inf_validate_step(inf_device *device, inf_err *err);

int inf_step_thread_start(inf_device *device, inf_err *err);
/* Lets the step in flight finish, then ends the thread. */
void inf_step_thread_stop(inf_device *device);

#endif
