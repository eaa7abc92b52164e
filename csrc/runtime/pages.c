#include "runtime/pages.h"

#include <stdlib.h>
#include <sys/mman.h>

#define LARGE_PAGE (UINT64_C(2) << 20)

void inf_pages_large(void *memory, uint64_t bytes) {
#ifdef MADV_HUGEPAGE
    /* Refused where the kernel has none; nothing depends on it. */
    (void)madvise(memory, bytes, MADV_HUGEPAGE);
#else
    (void)memory;
    (void)bytes;
#endif
}

void *inf_pages_alloc(uint64_t bytes) {
    void *memory = NULL;
    int large = bytes >= 2 * LARGE_PAGE;
    if (posix_memalign(&memory, large ? LARGE_PAGE : 64, bytes > 0 ? bytes : 64) != 0) {
        return NULL;
    }
    if (large) {
        inf_pages_large(memory, bytes);
    }
    return memory;
}
