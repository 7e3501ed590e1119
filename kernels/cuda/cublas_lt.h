/* The handful of functions of cuBLASLt that the linear maps need, loaded at run time, so that the
 * program starts fast and runs where CUDA is not installed. Prototypes are the toolkit's. */
#ifndef FORESIGHT_KERNELS_CUDA_CUBLAS_LT_H
#define FORESIGHT_KERNELS_CUDA_CUBLAS_LT_H

#include "core/status.h"

#include <cublasLt.h>

#ifdef __cplusplus
extern "C" {
#endif

/* CUBLAS_LT_FUNCTION(field, symbol) */
#define CUBLAS_LT_FUNCTIONS(CUBLAS_LT_FUNCTION)                                                    \
    CUBLAS_LT_FUNCTION(create, cublasLtCreate)                                                     \
    CUBLAS_LT_FUNCTION(destroy, cublasLtDestroy)                                                   \
    CUBLAS_LT_FUNCTION(status_text, cublasLtGetStatusString)                                       \
    CUBLAS_LT_FUNCTION(layout_init, cublasLtMatrixLayoutInit_internal)                             \
    CUBLAS_LT_FUNCTION(operation_init, cublasLtMatmulDescInit_internal)                            \
    CUBLAS_LT_FUNCTION(operation_set, cublasLtMatmulDescSetAttribute)                              \
    CUBLAS_LT_FUNCTION(preference_init, cublasLtMatmulPreferenceInit_internal)                     \
    CUBLAS_LT_FUNCTION(preference_set, cublasLtMatmulPreferenceSetAttribute)                       \
    CUBLAS_LT_FUNCTION(heuristic, cublasLtMatmulAlgoGetHeuristic)                                  \
    CUBLAS_LT_FUNCTION(check, cublasLtMatmulAlgoCheck)                                             \
    CUBLAS_LT_FUNCTION(algorithm_get, cublasLtMatmulAlgoConfigGetAttribute)                        \
    CUBLAS_LT_FUNCTION(multiply, cublasLtMatmul)

struct cublas_lt {
#define CUBLAS_LT_FUNCTION(field, symbol) __typeof__(&symbol) field;
    CUBLAS_LT_FUNCTIONS(CUBLAS_LT_FUNCTION)
#undef CUBLAS_LT_FUNCTION
};

/* Load the library of the version that the program was built with; it stays loaded for the
 * process's life. Any thread. Errors: RL_UNSUPPORTED: not found, or without one of the functions.
 */
rl_status cublas_lt_load(struct cublas_lt *out);

#ifdef __cplusplus
}
#endif

#endif
