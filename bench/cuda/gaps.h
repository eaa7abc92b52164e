/* How much of a step a GPU is busy, from the times of what ran on it: plain arithmetic, which knows
 * neither CUDA nor who took the times. */
#ifndef INF_BENCH_CUDA_GAPS_H
#define INF_BENCH_CUDA_GAPS_H

#include <stddef.h>
#include <stdint.h>

/* A kernel, a copy or a memset; times in ns. */
typedef struct activity {
    uint64_t from, upto;
    int32_t name; /* index of a name, the caller's */
    int32_t kernel;
} activity;

/* When the host began a step and had its end. */
typedef struct step_window {
    uint64_t from, upto;
} step_window;

/* One step, in ns. */
typedef struct step_gaps {
    uint64_t span;    /* from the first activity's begin to the last one's end */
    uint64_t busy;    /* at least one activity runs */
    uint64_t gaps;    /* the rest of the span */
    uint64_t longest; /* gap */
    int32_t n_gaps, kernels, copies;
} step_gaps;

/* All activities of one name. Kernels overlap where one is launched before the last one's end and
 * waits for it: so `whole` counts some times twice, and `own`, what an activity adds to the busy
 * time of those that began before it, does not. `gap` is the time before them in which nothing ran.
 */
typedef struct name_time {
    uint64_t whole, own, gap;
    int32_t calls, name;
} name_time;

/* Sorted by begin. What has no times, or ends before it begins, is left out; returns how many stay.
 */
size_t gaps_sort(activity *a, size_t n);

/* Cuts sorted activities into steps: first[i] to first[i + 1] is step i's, first has steps + 1
 * entries. An activity goes to the step whose window is nearest to its begin, since the clocks of
 * host and GPU agree to some microseconds only: pauses between steps should be longer than that.
 * What is further than `slack` before the first step or behind the last one is in none. Returns how
 * many of the steps' activities began outside of their window. */
size_t gaps_cut(const activity *a, size_t n, const step_window *steps, size_t n_steps,
                uint64_t slack, size_t *first);

/* Of one step's activities, sorted; adds to times, indexed by name, unless it is NULL. */
step_gaps gaps_of(const activity *a, size_t n, name_time *times);

#endif
