/* Staying awake: looking again and again, for a limited time, for what is to come, where a sleep
 * and a wake-up would take longer than it does to come.
 *
 *     inf_vigil v = inf_vigil_begin(ns);
 *     while (!there() && inf_vigil_goes_on(&v)) ..
 *
 * A thread that was held up between two looks has its CPU not to itself, and its vigils are over at
 * once for a while from then on: who sleeps and is woken is let in before those who are always
 * there. */
#ifndef INF_VIGIL_H
#define INF_VIGIL_H

#include <stdint.h>

/* For who looks again and again: lets the core's other thread go on. */
static inline void inf_cpu_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

typedef struct inf_vigil {
    int64_t seen, until; /* over when they are equal */
} inf_vigil;

inf_vigil inf_vigil_begin(int64_t ns);
/* Whether to look again, after a pause of some instructions; reads the clock. */
int inf_vigil_goes_on(inf_vigil *v);
/* What the thread did since was work of its own, which takes up to ns: no hold-up, if that is all.
 */
void inf_vigil_worked(inf_vigil *v, int64_t ns);

#endif
