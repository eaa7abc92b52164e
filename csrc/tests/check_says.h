/* A test's assertion that says what was seen. */
#ifndef INF_TESTS_CHECK_SAYS_H
#define INF_TESTS_CHECK_SAYS_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(cond, ...)                                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s:", __FILE__, __LINE__, #cond);                              \
            fprintf(stderr, " " __VA_ARGS__);                                                      \
            fprintf(stderr, "\n");                                                                 \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

#endif
