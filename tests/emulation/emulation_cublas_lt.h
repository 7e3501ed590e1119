/* What a test may ask the emulated cuBLASLt. */
#ifndef FORESIGHT_TESTS_EMULATION_EMULATION_CUBLAS_LT_H
#define FORESIGHT_TESTS_EMULATION_EMULATION_CUBLAS_LT_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Products that were made by the algorithm for few rows. */
uint64_t emulation_few_rows_products(void);

#ifdef __cplusplus
}
#endif

#endif
