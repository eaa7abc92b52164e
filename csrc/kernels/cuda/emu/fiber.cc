/* Fibers. On x86-64 a switch is a dozen instructions; elsewhere, or with INF_EMU_UCONTEXT, it is
 * ucontext, which asks the kernel for the signal mask each time. The address sanitizer is told of
 * each switch, since it wants to know which stack is current. */
#include "kernels/cuda/emu/fiber.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#if !defined(__x86_64__) && !defined(INF_EMU_UCONTEXT)
#define INF_EMU_UCONTEXT
#endif

/* The address sanitizer's red zones make frames several times as large. */
enum { STACK_BYTES = EMU_ASAN ? 256 << 10 : 64 << 10 };

struct emu_fiber {
    void *sp;
    ucontext_t context;
    void (*entry)();
    uint8_t *map; /* guard page, then the stack; NULL: the OS thread's own */
    const void *bottom;
    size_t bytes;
    void *fake; /* the sanitizer's, while the fiber is left */
};

/* Where the fiber that was just entered came from: it learns there how to finish the switch. */
static thread_local emu_fiber *came_from;
static thread_local emu_fiber *running;

static void arrive() {
#if EMU_ASAN
    const void *bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(running->fake, &bottom, &bytes);
    if (came_from->map == NULL) {
        came_from->bottom = bottom;
        came_from->bytes = bytes;
    }
#endif
}

extern "C" __attribute__((noreturn, used, visibility("hidden"))) void inf_emu_fiber_entry() {
    arrive();
    running->entry();
    abort();
}

#ifndef INF_EMU_UCONTEXT
extern "C" void inf_emu_stack_switch(void **from, void *to);
asm(".text\n"
    ".globl inf_emu_stack_switch\n"
    ".hidden inf_emu_stack_switch\n"
    ".type inf_emu_stack_switch, @function\n"
    "inf_emu_stack_switch:\n"
    "    pushq %rbp\n"
    "    pushq %rbx\n"
    "    pushq %r12\n"
    "    pushq %r13\n"
    "    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n"
    "    popq %r14\n"
    "    popq %r13\n"
    "    popq %r12\n"
    "    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size inf_emu_stack_switch, . - inf_emu_stack_switch\n");
#endif

static void no_memory() {
    fprintf(stderr, "emu: no memory for the stacks of a block's threads\n");
    abort();
}

emu_fiber *emu_fiber_new(void (*entry)()) {
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
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->map + page;
    f->context.uc_stack.ss_size = STACK_BYTES;
    f->context.uc_link = NULL;
    makecontext(&f->context, inf_emu_fiber_entry, 0);
#else
    /* As if it had been left: six registers, where to go on, and no caller beyond. */
    uintptr_t *top = (uintptr_t *)(f->map + page + STACK_BYTES);
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

emu_fiber *emu_fiber_of_thread() {
    emu_fiber *f = (emu_fiber *)calloc(1, sizeof *f);
    if (f == NULL) {
        no_memory();
    }
    return f;
}

void emu_fiber_switch(emu_fiber *from, emu_fiber *to) {
    came_from = from;
    running = to;
#if EMU_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->bottom, to->bytes);
#endif
#ifdef INF_EMU_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    inf_emu_stack_switch(&from->sp, to->sp);
#endif
    arrive();
}
