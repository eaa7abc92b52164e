/* Fibers: stacks between which one OS thread switches by hand. A fiber is born once, keeps its
 * stack, and is used again; all belong to the OS thread that made them. */
#ifndef INF_EMU_FIBER_H
#define INF_EMU_FIBER_H

#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#else
#define EMU_ASAN 0
#endif

struct emu_fiber;

/* The fiber runs entry() when it is first switched to; entry never returns. shade: stacks that are
 * used in turn have different ones, so that they do not lie on the same lines of the cache. */
emu_fiber *emu_fiber_new(void (*entry)(), unsigned shade);
void emu_fiber_free(emu_fiber *f);
bool emu_fiber_holds(const emu_fiber *f, const void *p); /* on its stack */
/* A fiber for the OS thread's own stack. */
emu_fiber *emu_fiber_of_thread();
/* Leaves `from`, which is running, and goes on in `to`. */
void emu_fiber_switch(emu_fiber *from, emu_fiber *to);

#endif
