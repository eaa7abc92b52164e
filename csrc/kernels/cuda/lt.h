/* The part of cuBLASLt's C interface that is used here (NVIDIA, "cuBLAS library", chapter
 * cuBLASLt). The library is loaded at run time and declared here, so that a build needs neither its
 * half a gigabyte nor one version of it: names and numbers below are the same from CUDA 11.8 to 13.
 */
#ifndef INF_CUDA_LT_H
#define INF_CUDA_LT_H

#include <stddef.h>
#include <stdint.h>

enum { LT_R_32F = 0, LT_R_16F = 2, LT_R_16BF = 14 }; /* cudaDataType */
enum { LT_COMPUTE_32F = 68 };
enum { LT_OP_N = 0, LT_OP_T = 1 };
enum { LT_DESC_TRANSA = 3, LT_DESC_EPILOGUE = 7, LT_DESC_BIAS_POINTER = 8 };
enum { LT_EPILOGUE_DEFAULT = 1, LT_EPILOGUE_BIAS = 4 };
enum { LT_PREF_MAX_WORKSPACE_BYTES = 1 };

typedef struct lt_algo {
    uint64_t data[8];
} lt_algo;

typedef struct lt_heuristic {
    lt_algo algo;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
} lt_heuristic;

typedef struct lt_api {
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*desc_create)(void **desc, int compute, int scale);
    int (*desc_destroy)(void *desc);
    int (*desc_set)(void *desc, int attribute, const void *value, size_t bytes);
    int (*layout_create)(void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld);
    int (*layout_destroy)(void *layout);
    int (*pref_create)(void **pref);
    int (*pref_destroy)(void *pref);
    int (*pref_set)(void *pref, int attribute, const void *value, size_t bytes);
    int (*heuristic)(void *handle, void *desc, void *a, void *b, void *c, void *d, void *pref,
                     int wanted, lt_heuristic *results, int *found);
    int (*matmul)(void *handle, void *desc, const void *alpha, const void *a, void *a_layout,
                  const void *b, void *b_layout, const void *beta, const void *c, void *c_layout,
                  void *d, void *d_layout, const lt_algo *algo, void *workspace, size_t bytes,
                  void *stream);
} lt_api;

#endif
