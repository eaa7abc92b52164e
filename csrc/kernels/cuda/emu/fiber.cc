/* Fibers. On x86-64 a switch is a dozen instructions; elsewhere, or with INF_EMU_UCONTEXT, it is
 * ucontext, which asks the kernel for the signal mask each time. The address sanitizer is told of
 * each switch, since it wants to know which stack is current. */
#include "kernels/cuda/emu/fiber.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__) && !defined(INF_EMU_UCONTEXT)
#define INF_EMU_UCONTEXT
#endif
#ifdef INF_EMU_UCONTEXT
#include <ucontext.h>
#endif

/* The address sanitizer's red zones make frames several times as large. */
enum { STACK_BYTES = EMU_ASAN ? 256 << 10 : 64 << 10 };

struct emu_fiber {
    void *sp;     /* first: the switch knows it */
    uint8_t *map; /* guard page, then the stack; NULL: the OS thread's own */
    void (*entry)();
    const void *bottom;
    size_t bytes;
    void *fake; /* the sanitizer's, while the fiber is left */
#ifdef INF_EMU_UCONTEXT
    ucontext_t context;
#endif
};

static_assert(offsetof(emu_fiber, sp) == 0, "");

/* In fiber `me`, which was just switched to. */
static inline void arrive(emu_fiber *came_from, emu_fiber *me) {
#if EMU_ASAN
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(me->fake, &bottom, &bytes);
    if (came_from->map == NULL) {
        came_from->bottom = bottom;
        came_from->bytes = bytes;
    }
#else
    (void)came_from;
    (void)me;
#endif
}

extern "C" __attribute__((noreturn, used, visibility("hidden"))) void
inf_emu_fiber_entry(emu_fiber *came_from, emu_fiber *me) {
    arrive(came_from, me);
    me->entry();
    abort();
}

#ifdef INF_EMU_UCONTEXT

static thread_local emu_fiber *left, *entered;

static void first_entry() { inf_emu_fiber_entry(left, entered); }

static emu_fiber *switch_stacks(emu_fiber *from, emu_fiber *to) {
    left = from;
    entered = to;
    swapcontext(&from->context, &to->context);
    return left;
}

#else

/* Leaves `from` for `to`; returns, in from again, the fiber that switched back. A fiber's first
 * entry finds both as its arguments. */
extern "C" emu_fiber *inf_emu_switch_stacks(emu_fiber *from, emu_fiber *to);
asm(".text\n"
    ".globl inf_emu_switch_stacks\n"
    ".hidden inf_emu_switch_stacks\n"
    ".type inf_emu_switch_stacks, @function\n"
    "inf_emu_switch_stacks:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq (%rsi), %rsp\n"
    "    movq %rdi, %rax\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size inf_emu_switch_stacks, . - inf_emu_switch_stacks\n");

static inline emu_fiber *switch_stacks(emu_fiber *from, emu_fiber *to) {
    return inf_emu_switch_stacks(from, to);
}

#endif

static void no_memory() {
    fprintf(stderr, "emu: no memory for the stacks of a block's threads\n");
    abort();
}

emu_fiber *emu_fiber_new(void (*entry)(), unsigned shade) {
    emu_fiber *f = (emu_fiber *)calloc(1, sizeof *f);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (f == NULL) {
        no_memory();
    }
    void *map = mmap(NULL, page + STACK_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED || mprotect(map, page, PROT_NONE) != 0) {
        no_memory();
    }
    f->map = (uint8_t *)map;
    f->bottom = f->map + page;
    f->bytes = STACK_BYTES;
    f->entry = entry;
#ifdef INF_EMU_UCONTEXT
    (void)shade;
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->map + page;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = NULL;
    makecontext(&f->context, first_entry, 0);
#else
    /* As if it had been left: six registers, where to go on, and no caller beyond. */
    uintptr_t *top = (uintptr_t *)(f->map + page + STACK_BYTES - 128 * (shade % 32));
    *--top = 0;
    *--top = (uintptr_t)inf_emu_fiber_entry;
    for (int i = 0; i < 6; i++) {
        *--top = 0;
    }
    f->sp = top;
#endif
    return f;
}

void emu_fiber_free(emu_fiber *f) {
    if (f != NULL && f->map != NULL) {
#if EMU_ASAN
        /* Its frames never returned, and what comes to lie there next is not theirs. */
        ASAN_UNPOISON_MEMORY_REGION(f->bottom, f->bytes);
#endif
        munmap(f->map, (size_t)sysconf(_SC_PAGESIZE) + STACK_BYTES);
    }
    free(f);
}

bool emu_fiber_holds(const emu_fiber *f, const void *p) {
    return f != NULL && (uintptr_t)p - (uintptr_t)f->bottom < f->bytes;
}

emu_fiber *emu_fiber_of_thread() {
    emu_fiber *f = (emu_fiber *)calloc(1, sizeof *f);
    if (f == NULL) {
        no_memory();
    }
    return f;
}

void emu_fiber_switch(emu_fiber *from, emu_fiber *to) {
#if EMU_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->bottom, to->bytes);
#endif
    emu_fiber *back = switch_stacks(from, to);
    arrive(back, from);
}
