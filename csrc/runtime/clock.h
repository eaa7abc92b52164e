/* The clock of deadlines and measurements. */
#ifndef INF_CLOCK_H
#define INF_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds since some point in the past; nobody sets this clock back. */
static inline int64_t inf_now(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

#endif
