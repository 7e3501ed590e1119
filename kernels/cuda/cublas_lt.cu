/* Owns the loading of cuBLASLt; knows nothing of what its functions are used for. */
#include "kernels/cuda/cublas_lt.h"

#include "core/log.h"

#include <dlfcn.h>
#include <string.h>

#define TEXT_OF(value) #value
#define TEXT(value) TEXT_OF(value)
#define LIBRARY "libcublasLt.so." TEXT(CUBLAS_VER_MAJOR)

/* *slot [a function pointer] = address of `symbol`. */
static rl_status load_symbol(void *library, const char *symbol, void *slot)
{
    void *address = dlsym(library, symbol);
    if (address == NULL) {
        return rl_fail(RL_UNSUPPORTED, "%s: expected it to have the function %s", LIBRARY, symbol);
    }
    memcpy(slot, &address, sizeof address);
    return RL_OK;
}

rl_status cublas_lt_load(struct cublas_lt *out)
{
    struct cublas_lt lt;
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return rl_fail(RL_UNSUPPORTED, "%s: expected the CUDA Toolkit's matrix library: %s",
                       LIBRARY, dlerror());
    }
#define CUBLAS_LT_FUNCTION(field, symbol) RL_TRY(load_symbol(library, #symbol, &lt.field));
    CUBLAS_LT_FUNCTIONS(CUBLAS_LT_FUNCTION)
#undef CUBLAS_LT_FUNCTION
    *out = lt;
    return RL_OK;
}
