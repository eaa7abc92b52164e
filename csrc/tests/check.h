/* A test's assertion. A file may have one of its own that says more; it comes before this one. */
#ifndef INF_TESTS_CHECK_H
#define INF_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#ifndef CHECK
#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond);                             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#endif

#endif
