/* Finding the CUDA backend: a library of its own, so that one program runs on machines with GPUs
 * and without, and so that it can be built for the CUDA version that a machine has. */
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/backend.h"
#include "runtime/fail.h"

static const char library[] = "libinfinite_cuda.so";

/* Where the environment says, beside the program, or where the linker looks. */
static void *find_library(char *why, size_t why_bytes) {
    const char *named = getenv("INFINITE_CUDA_LIBRARY");
    char path[PATH_MAX];
    void *handle = NULL;
    if (named != NULL && named[0] != 0) {
        handle = dlopen(named, RTLD_NOW | RTLD_LOCAL);
    } else {
        ssize_t n = readlink("/proc/self/exe", path, sizeof path - sizeof library - 1);
        if (n > 0) {
            path[n] = 0;
            char *slash = strrchr(path, '/');
            memcpy(slash != NULL ? slash + 1 : path, library, sizeof library);
            if (access(path, R_OK) == 0) {
                named = path;
                handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            }
        }
        if (named == NULL || named[0] == 0) {
            handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        }
    }
    if (handle == NULL) {
        const char *error = dlerror();
        snprintf(why, why_bytes, "%s", error != NULL ? error : "unknown");
    }
    return handle;
}

int inf_backend_cuda(int32_t ordinal, const inf_device_config *config, inf_backend **out,
                     inf_err *err) {
    char why[160] = "";
    *out = NULL;
    /* Never closed: kernels and their driver state do not survive it. */
    void *handle = find_library(why, sizeof why);
    if (handle == NULL) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1, "cannot load %s: %s", library, why);
    }
    inf_cuda_open_fn open = NULL;
    void *symbol = dlsym(handle, INF_CUDA_OPEN);
    if (symbol == NULL) {
        return inf_fail(err, INF_EUNSUPPORTED, -1, -1,
                        "%s is of another version: it lacks " INF_CUDA_OPEN, library);
    }
    memcpy(&open, &symbol, sizeof open);
    return open(ordinal, config, sizeof *config, sizeof(inf_backend_ops), out, err);
}
