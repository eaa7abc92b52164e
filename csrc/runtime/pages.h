/* Memory that is read at random or in streams of megabytes: large pages spare most of its address
 * translations, of which a decode step over a scattered pool would otherwise need one per 4 KiB. */
#ifndef INF_PAGES_H
#define INF_PAGES_H

#include <stdint.h>

/* At least bytes, aligned to 64 or more, to be given to free(); NULL when there is none. */
void *inf_pages_alloc(uint64_t bytes);

/* Asks for large pages in mapped memory; without them it works too. */
void inf_pages_large(void *memory, uint64_t bytes);

#endif
