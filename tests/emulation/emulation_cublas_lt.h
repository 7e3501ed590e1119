/* What a test may ask the emulated cuBLASLt. */
#ifndef FORESIGHT_TESTS_EMULATION_EMULATION_CUBLAS_LT_H
#define FORESIGHT_TESTS_EMULATION_EMULATION_CUBLAS_LT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How the algorithms that run for many columns add up. */
enum emulation_orders {
    EMULATION_ORDERS_ONE,     /* as tensor cores do; this at first */
    EMULATION_ORDERS_TWO,     /* the first that the heuristic proposes otherwise */
    EMULATION_ORDERS_FOREIGN, /* all otherwise, for few columns too */
    EMULATION_ORDERS_NONE     /* there is none but what kernels/cuda must refuse */
};

/* For algorithms that are proposed from now on, and all products. */
void emulation_set_orders(enum emulation_orders orders);

/* Products that were made by the algorithm for few rows. */
uint64_t emulation_few_rows_products(void);

#ifdef __cplusplus
}
#endif

#endif
