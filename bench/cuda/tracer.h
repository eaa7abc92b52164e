/* What ran on the GPU, and when, by CUPTI's activity records: kernels (those of graphs one by one),
 * copies and memsets of this process. The library is loaded at run time, and what is used of its
 * interface declared here and compared with its header by test_gaps.c where there is one: so a GPU
 * machine needs no header, and without the library only the trace is missing. */
#ifndef INF_BENCH_CUDA_TRACER_H
#define INF_BENCH_CUDA_TRACER_H

#include "bench/cuda/gaps.h"

enum { CUPTI_OK = 0, CUPTI_LAST_RECORD = 12, CUPTI_FLUSH_FORCED = 1 };
enum { TRACER_NAMES = 512 }; /* of activities; those past them are of the last */
enum { CUPTI_MEMCPY = 1, CUPTI_MEMSET = 2, CUPTI_CONCURRENT_KERNEL = 10 };

/* The first bytes of CUpti_ActivityKernel8 to 10, CUpti_ActivityMemcpy5 and 6, and
 * CUpti_ActivityMemset4, those of CUDA 11.8 to 13. */
typedef struct cupti_kernel {
    uint32_t kind;
    uint8_t unused[12];
    uint64_t start, end;
    uint8_t more[72];
    const char *name;
} cupti_kernel;

typedef struct cupti_copy {
    uint32_t kind;
    uint8_t copy_kind; /* CUpti_ActivityMemcpyKind; a memset's value */
    uint8_t more[3];
    uint64_t bytes, start, end;
} cupti_copy;

typedef void (*cupti_give_buffer)(uint8_t **buffer, size_t *bytes, size_t *most_records);
typedef void (*cupti_take_buffer)(void *context, uint32_t stream, uint8_t *buffer, size_t bytes,
                                  size_t valid);

/* The versions whose records are those above, as cuptiGetVersion has them: 11.8, 12.0 to 12.9,
 * 13.x. */
static inline int cupti_version_known(uint32_t version) {
    return (version >= 18 && version < 100) || (version >= 130000 && version < 140000);
}

/* Loads CUPTI (INFINITE_CUPTI_LIBRARY, else the newest that the linker finds) and begins to trace;
 * not 0: it cannot, and why says so. Once in a process. */
int tracer_open(char *why, size_t bytes);

/* Ends the trace; what was taken stays. */
void tracer_close(void);

uint32_t tracer_version(void);

/* On the clock of the records, in ns. */
uint64_t tracer_now(void);

/* All activities since the last call, in no order; the caller frees them. Nothing may be under way
 * on the GPU. lost counts records that CUPTI had no room for. */
activity *tracer_take(size_t *n, size_t *lost);

/* Of an activity, as the linker has it; NULL: there is none. */
const char *tracer_name(int32_t name);

#endif
