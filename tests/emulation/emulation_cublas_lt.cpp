/* cuBLASLt on the emulated GPU: takes the place of kernels/cuda/cublas_lt.cu. Descriptors are held
 * against what the library's documentation asks; what does not fit ends the test. The heuristic
 * offers algorithms that kernels/cuda must refuse before those that it must take: one that splits
 * the depth, one that does not run for few columns of d, one that asks for workspace, and for few
 * columns (a test may say: for many too) one that adds up in another order. Sums are made 8
 * products at a time, in ascending order, with bf16 as tensor cores do. */
#include "kernels/cuda/cublas_lt.h"

#include "tests/emulation/emulation.h"
#include "tests/emulation/emulation_cublas_lt.h"
#include "tests/emulation/tensor_emulation.h"

#include <algorithm>
#include <atomic>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

enum algorithm { SPLITS = 1, MANY_ROWS, WORKSPACE, OTHER, FEW_ROWS, WHOLE, ALGORITHMS };
enum { ALIGNMENT = 16, DEPTH_STEP = TENSOR_PRODUCTS, ELEMENTS = 8, FEW = 64 };
enum { HANDLE = 0x4c74, LAYOUT = 0x4c61, OPERATION = 0x4f70, PREFERENCE = 0x5072, CHOICE = 0x416c };

struct layout {
    uint64_t tag, type, rows, cols;
    int64_t ld;
};
struct operation {
    uint64_t tag, compute, scale;
    int32_t transpose_a, transpose_b, epilogue, unused;
    const float *bias;
};
struct preference {
    uint64_t tag, workspace, reduction, aligned;
};
struct choice {
    uint64_t tag, algorithm, compute, type;
    int32_t transpose_a, transpose_b;
};
struct cublasLtContext {
    uint64_t tag;
};

static std::atomic<uint64_t> few_rows_products;

/* FORESIGHT_EMULATED_ORDERS=orders:rank: one rank of a job whose library adds up otherwise. */
static enum emulation_orders first_orders(void)
{
    const char *text = getenv("FORESIGHT_EMULATED_ORDERS");
    const char *mine = getenv("OMPI_COMM_WORLD_RANK");
    int value = 0;
    int rank = 0;
    if (text == nullptr || mine == nullptr || sscanf(text, "%d:%d", &value, &rank) != 2) {
        return EMULATION_ORDERS_ONE;
    }
    return rank == (int)strtol(mine, nullptr, 10) ? (enum emulation_orders)value
                                                  : EMULATION_ORDERS_ONE;
}

static std::atomic<enum emulation_orders> orders{first_orders()};

void emulation_set_orders(enum emulation_orders value)
{
    orders = value;
}

uint64_t emulation_few_rows_products(void)
{
    return few_rows_products;
}

#define EXPECT(condition)                                                                          \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            emulation_fail("cuBLASLt, line %d: expected %s", __LINE__, #condition);                \
        }                                                                                          \
    } while (0)

/* The struct of ours that an opaque one holds. */
template <typename Ours, typename Opaque> static Ours opened(const Opaque *opaque, uint64_t tag)
{
    static_assert(sizeof(Ours) <= sizeof(Opaque), "fits into what the library reserves");
    EXPECT(opaque != nullptr);
    Ours ours;
    memcpy(&ours, opaque, sizeof ours);
    EXPECT(ours.tag == tag);
    return ours;
}

template <typename T> static T value_of(const void *value, size_t bytes)
{
    EXPECT(value != nullptr && bytes == sizeof(T));
    T out;
    memcpy(&out, value, sizeof out);
    return out;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = new cublasLtContext{HANDLE};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    EXPECT(handle != nullptr && handle->tag == HANDLE);
    handle->tag = 0;
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return status == CUBLAS_STATUS_SUCCESS ? "success" : "emulated failure";
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size,
                                                 cudaDataType type, uint64_t rows, uint64_t cols,
                                                 int64_t ld)
{
    EXPECT(size == sizeof *layout && rows > 0 && cols > 0 && ld >= (int64_t)rows);
    EXPECT(type == CUDA_R_32F || type == CUDA_R_16BF);
    const struct layout ours = {LAYOUT, (uint64_t)type, rows, cols, ld};
    memcpy(layout, &ours, sizeof ours);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t operation, size_t size,
                                               cublasComputeType_t compute, cudaDataType_t scale)
{
    EXPECT(size == sizeof *operation && scale == CUDA_R_32F);
    EXPECT(compute == CUBLAS_COMPUTE_32F || compute == CUBLAS_COMPUTE_32F_PEDANTIC);
    const struct operation ours = {OPERATION,
                                   (uint64_t)compute,
                                   (uint64_t)scale,
                                   CUBLAS_OP_N,
                                   CUBLAS_OP_N,
                                   CUBLASLT_EPILOGUE_DEFAULT,
                                   0,
                                   nullptr};
    memcpy(operation, &ours, sizeof ours);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes)
{
    struct operation ours = opened<struct operation>(operation, OPERATION);
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
        ours.transpose_a = value_of<int32_t>(value, bytes);
        break;
    case CUBLASLT_MATMUL_DESC_TRANSB:
        ours.transpose_b = value_of<int32_t>(value, bytes);
        break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        ours.epilogue = value_of<int32_t>(value, bytes);
        EXPECT(ours.epilogue == CUBLASLT_EPILOGUE_DEFAULT ||
               ours.epilogue == CUBLASLT_EPILOGUE_BIAS);
        break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        ours.bias = value_of<const float *>(value, bytes);
        EXPECT((uintptr_t)ours.bias % ALIGNMENT == 0);
        break;
    default:
        emulation_fail("cuBLASLt: attribute %d of an operation is not emulated", (int)attribute);
    }
    memcpy(operation, &ours, sizeof ours);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference,
                                                     size_t size)
{
    EXPECT(size == sizeof *preference);
    const struct preference ours = {PREFERENCE, 1, 7, 0};
    memcpy(preference, &ours, sizeof ours);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes)
{
    struct preference ours = opened<struct preference>(preference, PREFERENCE);
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) {
        ours.workspace = value_of<uint64_t>(value, bytes);
    } else if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) {
        ours.reduction = value_of<uint32_t>(value, bytes);
    } else {
        EXPECT(attribute >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
               attribute <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
        EXPECT(value_of<uint32_t>(value, bytes) == ALIGNMENT);
        ours.aligned |= 1U << (attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
    }
    memcpy(preference, &ours, sizeof ours);
    return CUBLAS_STATUS_SUCCESS;
}

/* One product, with what its descriptors must satisfy. */
struct product {
    struct operation operation;
    struct layout a, b, d;
    int64_t m, n, depth;
};

static int64_t width_of(uint64_t type)
{
    return type == CUDA_R_16BF ? 2 : 4;
}

/* Rows begin at multiples of 16 bytes, and the lines of the operands are whole ones. */
static void expect_aligned(const struct layout *x)
{
    EXPECT(x->ld * width_of(x->type) % ALIGNMENT == 0);
}

static struct product product_of(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                 cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                 cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d)
{
    EXPECT(handle != nullptr && handle->tag == HANDLE);
    struct product p;
    p.operation = opened<struct operation>(operation, OPERATION);
    p.a = opened<struct layout>(a, LAYOUT);
    p.b = opened<struct layout>(b, LAYOUT);
    p.d = opened<struct layout>(d, LAYOUT);
    const struct layout old = opened<struct layout>(c, LAYOUT);
    EXPECT(memcmp(&old, &p.d, sizeof old) == 0);
    EXPECT(p.a.type == p.b.type && p.d.type == CUDA_R_32F);
    EXPECT(p.operation.compute ==
           (p.a.type == CUDA_R_16BF ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC));
    const bool ta = p.operation.transpose_a == CUBLAS_OP_T;
    const bool tb = p.operation.transpose_b == CUBLAS_OP_T;
    p.m = (int64_t)(ta ? p.a.cols : p.a.rows);
    p.n = (int64_t)(tb ? p.b.rows : p.b.cols);
    p.depth = (int64_t)(ta ? p.a.rows : p.a.cols);
    EXPECT(p.depth == (int64_t)(tb ? p.b.cols : p.b.rows));
    EXPECT(p.m == (int64_t)p.d.rows && p.n == (int64_t)p.d.cols);
    EXPECT(p.a.rows % ELEMENTS == 0 && p.b.rows % ELEMENTS == 0 && p.d.rows % ELEMENTS == 0);
    EXPECT((p.operation.epilogue == CUBLASLT_EPILOGUE_BIAS) == (p.operation.bias != nullptr));
    expect_aligned(&p.a);
    expect_aligned(&p.b);
    expect_aligned(&p.d);
    return p;
}

static bool runs(const struct product *p, uint64_t algorithm)
{
    return (algorithm != MANY_ROWS || p->n >= FEW) && (algorithm != FEW_ROWS || p->n <= FEW);
}

/* Does the heuristic propose it? */
static bool proposed(const struct product *p, uint64_t algorithm)
{
    const bool other = orders != EMULATION_ORDERS_ONE;
    if (orders == EMULATION_ORDERS_NONE) {
        return algorithm == SPLITS || algorithm == WORKSPACE;
    }
    return p->n < FEW || ((other || algorithm != OTHER) && algorithm != FEW_ROWS);
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle,
                                              cublasLtMatmulDesc_t operation,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int most,
                                              cublasLtMatmulHeuristicResult_t results[], int *count)
{
    const struct product p = product_of(handle, operation, a, b, c, d);
    const struct preference asked = opened<struct preference>(preference, PREFERENCE);
    EXPECT(asked.workspace == 0 && asked.reduction == 0 && asked.aligned == 0xf);
    *count = 0;
    for (uint64_t id = SPLITS; id < ALGORITHMS && *count < most; id++) {
        if (!proposed(&p, id)) {
            continue;
        }
        const struct choice ours = {CHOICE,
                                    id,
                                    p.operation.compute,
                                    p.a.type,
                                    p.operation.transpose_a,
                                    p.operation.transpose_b};
        cublasLtMatmulHeuristicResult_t *result = &results[(*count)++];
        memset(result, 0, sizeof *result);
        memcpy(&result->algo, &ours, sizeof ours);
        result->state = runs(&p, id) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
    }
    return CUBLAS_STATUS_SUCCESS;
}

/* The algorithm, which must have been made for such a product. */
static struct choice choice_of(const struct product *p, const cublasLtMatmulAlgo_t *algorithm)
{
    const struct choice ours = opened<struct choice>(algorithm, CHOICE);
    EXPECT(ours.compute == p->operation.compute && ours.type == p->a.type);
    EXPECT(ours.transpose_a == p->operation.transpose_a);
    EXPECT(ours.transpose_b == p->operation.transpose_b);
    return ours;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algorithm,
                                       cublasLtMatmulHeuristicResult_t *result)
{
    const struct product p = product_of(handle, operation, a, b, c, d);
    const struct choice ours = choice_of(&p, algorithm);
    memset(result, 0, sizeof *result);
    result->algo = *algorithm;
    result->workspaceSize = ours.algorithm == WORKSPACE ? 1024 : 0;
    return runs(&p, ours.algorithm) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void *value, size_t bytes, size_t *written)
{
    const struct choice ours = opened<struct choice>(algorithm, CHOICE);
    EXPECT(value != nullptr && bytes == sizeof(int32_t) && written == nullptr);
    int32_t out = ours.algorithm == SPLITS ? 4 : 1;
    if (attribute == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) {
        out = ours.algorithm == SPLITS ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : 0;
    }
    memcpy(value, &out, sizeof out);
    return CUBLAS_STATUS_SUCCESS;
}

/* Operand in fp32, the depth along its lines. */
static std::vector<float> operand_of(const struct layout *layout, const void *data,
                                     bool depth_is_rows)
{
    std::vector<float> out(layout->rows * layout->cols);
    for (uint64_t col = 0; col < layout->cols; col++) {
        for (uint64_t row = 0; row < layout->rows; row++) {
            const uint64_t from = col * (uint64_t)layout->ld + row;
            const uint64_t to = depth_is_rows ? col * layout->rows + row : row * layout->cols + col;
            out[to] = layout->type == CUDA_R_16BF
                          ? __uint_as_float((uint32_t)((const uint16_t *)data)[from] << 16)
                          : ((const float *)data)[from];
        }
    }
    return out;
}

static float dot(const float *x, const float *y, int64_t depth, int64_t width)
{
    float sum = 0.0f;
    for (int64_t r = 0; r < depth; r += width) {
        double step = 0.0;
        for (int64_t i = r; i < r + width && i < depth; i++) {
            step += (double)x[i] * (double)y[i];
        }
        sum = (float)((double)sum + step);
    }
    return sum;
}

/* The same with bf16, on tensor cores: `width` of 8 products at a time, or fewer. */
static float tensor_dot(const float *x, const float *y, int64_t depth, int64_t width)
{
    float sum = 0.0f;
    for (int64_t r = 0; r < depth; r += width) {
        sum = tensor_sum(sum, x + r, y + r, (int)std::min(width, depth - r));
    }
    return sum;
}

static void multiply(const struct product *p, const void *a, const void *b, float beta, float *d,
                     int64_t step)
{
    const std::vector<float> x = operand_of(&p->a, a, p->operation.transpose_a == CUBLAS_OP_T);
    const std::vector<float> y = operand_of(&p->b, b, p->operation.transpose_b == CUBLAS_OP_N);
    for (int64_t j = 0; j < p->n; j++) {
        for (int64_t i = 0; i < p->m; i++) {
            float *out = &d[j * p->d.ld + i];
            const float *row = &x[(size_t)(i * p->depth)];
            const float *column = &y[(size_t)(j * p->depth)];
            float sum = p->a.type == CUDA_R_16BF ? tensor_dot(row, column, p->depth, step)
                                                 : dot(row, column, p->depth, step);
            sum += beta != 0.0f ? beta * *out : 0.0f;
            *out = sum + (p->operation.bias != nullptr ? p->operation.bias[i] : 0.0f);
        }
    }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation,
                              const void *alpha, const void *a, cublasLtMatrixLayout_t a_layout,
                              const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,
                              const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream)
{
    const struct product p = product_of(handle, operation, a_layout, b_layout, c_layout, d_layout);
    const uint64_t chosen = choice_of(&p, algorithm).algorithm;
    EXPECT(runs(&p, chosen) && chosen != SPLITS && chosen != WORKSPACE);
    EXPECT(workspace == nullptr && workspace_bytes == 0 && c == d);
    EXPECT(*(const float *)alpha == 1.0f);
    EXPECT((uintptr_t)a % ALIGNMENT == 0 && (uintptr_t)b % ALIGNMENT == 0);
    EXPECT((uintptr_t)d % ALIGNMENT == 0);
    const float scale = *(const float *)beta;
    const bool other = chosen == MANY_ROWS || chosen == OTHER || orders == EMULATION_ORDERS_FOREIGN;
    const int64_t step = other ? DEPTH_STEP / 2 : DEPTH_STEP;
    few_rows_products += chosen == FEW_ROWS ? 1 : 0;
    emulation_enqueue(stream, [=] { multiply(&p, a, b, scale, (float *)d, step); });
    return CUBLAS_STATUS_SUCCESS;
}

rl_status cublas_lt_load(struct cublas_lt *out)
{
#define CUBLAS_LT_FUNCTION(field, symbol) out->field = symbol;
    CUBLAS_LT_FUNCTIONS(CUBLAS_LT_FUNCTION)
#undef CUBLAS_LT_FUNCTION
    return RL_OK;
}
