/* The image with int8 weights, made from one with fp32 or bf16 weights. Whoever generates with it
 * has the other one at hand; it never travels. */
#include "model/params.h"

#include <assert.h>

void model_image_quantize(const struct model_layout *layout, const void *image,
                          const struct model_quantize_args *to, struct rl_pool *pool)
{
    const struct model_layout *narrow = to->layout;
    assert(narrow->dtype == KERNEL_INT8 && narrow->tensor_count == layout->tensor_count);
    for (int32_t i = 0; i < layout->tensor_count; i++) {
        const struct model_tensor *tensor = &layout->tensors[i];
        const void *from = (const unsigned char *)image + tensor->image_offset;
        void *place = (unsigned char *)to->image + narrow->tensors[i].image_offset;
        if (tensor->matrix) {
            struct kernel_linear_quantize_args args = {.w = from,
                                                       .dtype = layout->dtype,
                                                       .packed = place,
                                                       .n = tensor->rows,
                                                       .k = tensor->cols};
            to->kernels->linear_quantize(&args, pool);
        } else {
            struct kernel_copy_args copy = {.to = place,
                                            .from = from,
                                            .rows = 1,
                                            .bytes = (size_t)tensor->cols * sizeof(float)};
            to->kernels->copy_rows(&copy, pool);
        }
    }
}
