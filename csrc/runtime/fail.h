/* Filling the caller's error record. */
#ifndef INF_RUNTIME_FAIL_H
#define INF_RUNTIME_FAIL_H

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "infinite/status.h"

/* Fills err (may be NULL) and returns code, so that a failing function ends with `return
 * inf_fail(...)`. */
__attribute__((format(printf, 5, 6))) static inline int
inf_fail(inf_err *err, int code, int instance, int layer, const char *format, ...) {
    if (err == NULL) {
        return code;
    }
    memset(err, 0, sizeof(*err));
    err->code = code;
    err->instance = instance;
    err->layer = layer;
    va_list args;
    va_start(args, format);
    (void)vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    return code;
}

#endif
