/* The race detector's records: each access is held against the last ones to the same bytes. */
#ifdef INF_EMU_RACES

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <set>
#include <string>

#include "kernels/cuda/emu/race_inside.h"
#include "kernels/cuda/emu/state.h"

namespace {

/* Of all OS threads. */
struct common {
    std::mutex lock;
    std::map<uintptr_t, emu_region> allocations;
    std::atomic<uint32_t> version{1}; /* of the allocations */
    std::set<std::pair<const void *, const void *>> seen;
    std::set<std::string> told;
    std::mutex cells; /* of allocations: kernels of other OS threads may touch them too */
};

common *all() {
    static common *c = new common;
    return c;
}

/* ---- telling ---- */

/* File and line, and where that was inlined. */
std::string source_of(const void *pc) {
    Dl_info info;
    std::string text;
    char line[1024];
    if (dladdr(pc, &info) == 0 || info.dli_fname == NULL) {
        return text;
    }
    snprintf(line, sizeof line, "addr2line -ie '%s' %#lx 2>/dev/null", info.dli_fname,
             (unsigned long)((uintptr_t)pc - (uintptr_t)info.dli_fbase - 1));
    FILE *f = popen(line, "r");
    for (int n = 0; f != NULL && fgets(line, sizeof line, f) != NULL && n < 6; n++) {
        line[strcspn(line, " \n")] = 0;
        text += std::string("      ") + line + "\n";
    }
    if (f != NULL) {
        pclose(f);
    }
    return text;
}

void fail_at_exit() {
    fflush(NULL);
    fprintf(stderr, "emu: %zu races\n", all()->told.size());
    _exit(1);
}

void tell(const emu_detector *d, const emu_thread *t, const emu_region &at, uintptr_t p,
          const emu_record &now, const emu_record &then) {
    common *c = all();
    std::lock_guard<std::mutex> guard(c->lock);
    if (!c->seen.insert({now.from, then.from}).second) {
        return;
    }
    std::string here = source_of(now.from), there = source_of(then.from);
    if (!c->told.insert(here + there).second) {
        return; /* of another instance of a template */
    }
    if (c->told.size() == 1) {
        atexit(fail_at_exit);
    }
    static const char *const names[] = {"reads", "writes", "atomically reads", "atomically writes"};
    fprintf(stderr, "emu: a race on byte %#zx of %s\n", (size_t)(p - at.from),
            at.shared ? "shared memory" : "an allocation");
    fprintf(stderr, "    thread %u %s, at\n%s", t->number, names[now.flags], here.c_str());
    if (then.launch != d->launch) {
        fprintf(stderr, "    before it has waited for the kernels in front, one of which %s, at\n",
                names[then.flags]);
    } else {
        fprintf(stderr, "    thread %u of %s %s, at\n", then.thread,
                then.block == d->block ? "the same block" : "another block", names[then.flags]);
    }
    fprintf(stderr, "%s", there.c_str());
    emu_print_place(t->block->machine);
}

/* ---- what is watched ---- */

size_t cells_bytes(size_t bytes) { return (bytes / 8 + 2) * sizeof(emu_cell); }

emu_region watch(uintptr_t from, size_t bytes, bool shared) {
    void *p = mmap(NULL, cells_bytes(bytes), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        fprintf(stderr, "emu: no memory for the records of accesses\n");
        abort();
    }
    return {from, from + bytes, (emu_cell *)p, shared};
}

void unwatch(const emu_region &r) {
    if (r.cells != NULL) {
        munmap(r.cells, cells_bytes(r.to - r.from));
    }
}

/* The OS thread's variables of this library: static __shared__ ones are among them. */
int find_statics(struct dl_phdr_info *info, size_t, void *out) {
    emu_region *r = (emu_region *)out;
    uintptr_t code = (uintptr_t)(void *)all;
    bool here = false;
    *r = {};
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &h = info->dlpi_phdr[i];
        uintptr_t from = info->dlpi_addr + h.p_vaddr;
        here |= h.p_type == PT_LOAD && code >= from && code < from + h.p_memsz;
        if (h.p_type == PT_TLS && info->dlpi_tls_data != NULL) {
            r->from = (uintptr_t)info->dlpi_tls_data;
            r->to = r->from + h.p_memsz;
        }
    }
    return here;
}

const emu_region *find_allocation(emu_detector *d, uintptr_t p) {
    common *c = all();
    if (d->recent_version == c->version && p >= d->recent.from && p < d->recent.to) {
        return &d->recent;
    }
    uintptr_t from = 0;
    size_t bytes = emu_allocation_of((const void *)p, &from);
    if (bytes == 0) {
        return NULL;
    }
    std::lock_guard<std::mutex> guard(c->lock);
    emu_region &r = c->allocations[from];
    if (r.cells == NULL) {
        r = watch(from, bytes, false);
    }
    d->recent = r;
    d->recent_version = c->version;
    return &d->recent;
}

/* NULL: nobody cares. Among the OS thread's variables are the emulator's own, too. */
const emu_region *find_region(emu_detector *d, const emu_thread *t, uintptr_t p) {
    const emu_machine *m = t->block->machine;
    if (p >= d->dynamic.from && p < d->dynamic.to) {
        return &d->dynamic;
    }
    if (p >= d->statics.from && p < d->statics.to) {
        bool own = (p >= (uintptr_t)m && p < (uintptr_t)(m + 1)) || p == (uintptr_t)&emu_self;
        return own ? NULL : &d->statics;
    }
    return emu_fiber_holds(t->fiber, (const void *)p) ? NULL : find_allocation(d, p);
}

/* ---- accesses ---- */

/* Where a new record goes when none is free: a read's place, or in turn. */
int take_place(const emu_cell *c) {
    static thread_local unsigned turn;
    turn++;
    for (unsigned i = 0; i < EMU_RECORDS; i++) {
        unsigned at = (turn + i) % EMU_RECORDS;
        if ((c->records[at].flags & EMU_WRITES) == 0) {
            return (int)at;
        }
    }
    return (int)(turn % EMU_RECORDS);
}

/* Bytes of one cell. */
void look(const emu_detector *d, const emu_thread *t, const emu_region &at, emu_cell *c,
          uintptr_t p, const emu_record &now) {
    int place = -1;
    for (int i = 0; i < EMU_RECORDS; i++) {
        emu_record &r = c->records[i];
        bool over = at.shared ? r.launch != now.launch || r.block != now.block
                              : r.launch != now.launch && emu_is_ordered(d, t, r);
        if (r.from == NULL || over) {
            place = i;
            continue;
        }
        bool ordered = emu_is_ordered(d, t, r);
        bool both_atomic = (r.flags & now.flags & EMU_ATOMIC) != 0;
        if (!ordered && !both_atomic && ((r.flags | now.flags) & EMU_WRITES) != 0 &&
            (r.bytes & now.bytes) != 0) {
            tell(d, t, at, p, now, r);
        }
        /* A write takes the place of what came before it, a read that of a read, and an atomic
         * change that of another, whoever made it: those of one word have an order. */
        bool covers = (r.bytes & ~now.bytes) == 0 && (ordered || both_atomic) &&
                      ((now.flags & EMU_WRITES) != 0 || (r.flags & EMU_WRITES) == 0) &&
                      r.launch == now.launch && (r.flags & EMU_ATOMIC) == (now.flags & EMU_ATOMIC);
        if (covers) {
            r.from = NULL;
            place = i;
        }
    }
    c->records[place >= 0 ? place : take_place(c)] = now;
}

void access(const void *address, size_t bytes, unsigned flags, const void *from) {
    const emu_thread *t = emu_self;
    if (t == NULL || bytes == 0) {
        return;
    }
    emu_detector *d = emu_detector_of_thread();
    uintptr_t p = (uintptr_t)address, end = p + bytes;
    const emu_region *found = find_region(d, t, p);
    if (found == NULL) {
        return;
    }
    emu_region at = *found;
    std::unique_lock<std::mutex> guard(all()->cells, std::defer_lock);
    if (!at.shared) {
        guard.lock();
    }
    emu_record now = {
        from, d->launch,     d->block, d->racers[t->number].epoch, (uint16_t)t->number,
        0,    (uint8_t)flags};
    for (end = end < at.to ? end : at.to; p < end;) {
        uintptr_t base = p & ~(uintptr_t)7, upto = base + 8 < end ? base + 8 : end;
        now.bytes = (uint8_t)(((1u << (upto - p)) - 1) << (p - base));
        look(d, t, at, &at.cells[base / 8 - at.from / 8], p, now);
        p = upto;
    }
}

} // namespace

void emu_watch_shared(emu_detector *d, const emu_machine *m) {
    unwatch(d->dynamic);
    d->dynamic = watch((uintptr_t)m->block.shared, m->block.grid->shared, true);
    if (d->statics.cells == NULL) {
        dl_iterate_phdr(find_statics, &d->statics);
        d->statics = watch(d->statics.from, d->statics.to - d->statics.from, true);
    }
}

void emu_race_note(const void *p, size_t bytes, bool writes, const void *from) {
    access(p, bytes, writes ? EMU_WRITES : 0, from);
}

void emu_race_forget(const void *p) {
    common *c = all();
    std::lock_guard<std::mutex> guard(c->lock);
    auto it = c->allocations.find((uintptr_t)p);
    if (it != c->allocations.end()) {
        unwatch(it->second);
        c->allocations.erase(it);
    }
    c->version++;
}

/* ---- what the compiler calls ---- */

#define EMU_FROM __builtin_return_address(0)
#define EMU_ACCESS(bytes)                                                                          \
    void __tsan_read##bytes(void *p) { access(p, bytes, 0, EMU_FROM); }                            \
    void __tsan_write##bytes(void *p) { access(p, bytes, EMU_WRITES, EMU_FROM); }                  \
    void __tsan_unaligned_read##bytes(void *p) { access(p, bytes, 0, EMU_FROM); }                  \
    void __tsan_unaligned_write##bytes(void *p) { access(p, bytes, EMU_WRITES, EMU_FROM); }
/* Those that change memory, before they do. */
#define EMU_ATOMIC_CHANGE(type, p)                                                                 \
    if (emu_self != NULL) {                                                                        \
        access((const void *)(p), sizeof(type), EMU_WRITES | EMU_ATOMIC, EMU_FROM);                \
        emu_race_atomic((const void *)(p));                                                        \
    }
#define EMU_ATOMIC_ACCESS(bits, type)                                                              \
    type __tsan_atomic##bits##_load(const volatile type *p, int) {                                 \
        access((const void *)p, sizeof(type), EMU_ATOMIC, EMU_FROM);                               \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                               \
    }                                                                                              \
    void __tsan_atomic##bits##_store(volatile type *p, type next, int) {                           \
        EMU_ATOMIC_CHANGE(type, p)                                                                 \
        __atomic_store_n(p, next, __ATOMIC_SEQ_CST);                                               \
    }                                                                                              \
    type __tsan_atomic##bits##_fetch_add(volatile type *p, type more, int) {                       \
        EMU_ATOMIC_CHANGE(type, p)                                                                 \
        return __atomic_fetch_add(p, more, __ATOMIC_SEQ_CST);                                      \
    }                                                                                              \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile type *p, type *expected, type next, \
                                                      int, int) {                                  \
        EMU_ATOMIC_CHANGE(type, p)                                                                 \
        return __atomic_compare_exchange_n(p, expected, next, false, __ATOMIC_SEQ_CST,             \
                                           __ATOMIC_SEQ_CST);                                      \
    }

#pragma GCC visibility push(hidden)
extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
void __tsan_read_range(void *p, unsigned long bytes) { access(p, bytes, 0, EMU_FROM); }
void __tsan_write_range(void *p, unsigned long bytes) { access(p, bytes, EMU_WRITES, EMU_FROM); }
EMU_ACCESS(1)
EMU_ACCESS(2)
EMU_ACCESS(4)
EMU_ACCESS(8)
EMU_ACCESS(16)
EMU_ATOMIC_ACCESS(8, uint8_t)
EMU_ATOMIC_ACCESS(32, uint32_t)
EMU_ATOMIC_ACCESS(64, unsigned long)
}
#pragma GCC visibility pop

#endif
