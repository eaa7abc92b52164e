/* A fixed team of threads for parallel loops.
 *
 * inf_pool_run executes task(arg, index, thread) for every index in [0, n) on the caller (thread 0)
 * and on threads - 1 workers, and returns when all calls have returned; what they wrote is visible
 * then. Indexes are claimed one by one, so no order and no placement is promised: a task writes
 * only what belongs to its index, and the result does not depend on the number of threads.
 *
 * One run at a time per pool, from any thread; a task must not run the same pool. A pool of one
 * thread and the NULL pool run everything on the caller. A run allocates nothing. Idle workers spin
 * for a few microseconds and then sleep, because cores are often shared, unless told otherwise. */
#ifndef INF_POOL_H
#define INF_POOL_H

#include <stdint.h>

typedef void (*inf_task)(void *arg, int32_t index, int32_t thread);

typedef struct inf_pool inf_pool;

enum { INF_POOL_MAX_THREADS = 1024 };

/* threads: 1..INF_POOL_MAX_THREADS, the caller included. INF_EINVAL, INF_ENOMEM; *out is NULL then.
 */
int inf_pool_open(int32_t threads, inf_pool **out);

/* Idle workers, and a caller that waits for them, look for so long before they sleep; a few
 * microseconds if that is longer. For runs that follow each other closely. NULL is allowed. */
void inf_pool_stay_awake(inf_pool *pool, int64_t ns);

void inf_pool_run(inf_pool *pool, inf_task task, void *arg, int32_t n);

/* Threads that may call a task, hence the bound of `thread`; 1 for NULL. */
int32_t inf_pool_threads(const inf_pool *pool);

/* Memory for whoever runs the pool, which is one at a time, from one of his runs to the next, and
 * its size; NULL and 0 where one thread runs all. Pages that nobody touches cost nothing. */
enum { INF_POOL_SCRATCH = 4 << 20 }; /* bytes per thread */
void *inf_pool_scratch(inf_pool *pool, uint64_t *bytes);

/* Ends and joins the workers. NULL is allowed. No run may be in progress. */
void inf_pool_close(inf_pool *pool);

#endif
