/* The choice of algorithms: what the heuristic proposes, less what splits sums, does not run at
 * every size that may come, or adds up in another order than its fellow. */
#include "kernels/cuda/matmul_choose_cuda.h"

#include "kernels/cuda/float_cuda.h"

enum {
    MATMUL_CANDIDATES = 32, /* of the heuristic */
    MATMUL_ALIGNMENT = 16,  /* bytes */
    MATMUL_NOMINAL = 4096,  /* a size that an algorithm is chosen for, where it does not matter */
    MATMUL_NOMINAL_ROWS = 512,
    MATMUL_NOMINAL_FEW = 16,
    PROBE_M = 256, /* outputs of the product that tells two algorithms apart */
    PROBE_THREADS = 256
};

static struct matmul_key matmul_key_of(const struct matmul_args *a)
{
    struct matmul_key key = {a->kind, a->dtype, a->depth, 0};
    if (a->kind == MATMUL_INPUT) {
        key.second = a->m;
    } else if (a->kind == MATMUL_WEIGHT) {
        key.first = a->m;
        key.second = a->n;
    }
    return key;
}

static bool key_equal(const struct matmul_key *x, const struct matmul_key *y)
{
    return x->kind == y->kind && x->dtype == y->dtype && x->first == y->first &&
           x->second == y->second;
}

/* Does the algorithm run at these sizes? */
static bool algorithm_fits(const struct cuda_matmul *matmul, const struct matmul_args *a,
                           const cublasLtMatmulAlgo_t *algorithm)
{
    struct matmul_plan plan;
    cublasLtMatmulHeuristicResult_t result;
    return matmul_plan_make(&matmul->lt, a, &plan) == CUBLAS_STATUS_SUCCESS &&
           matmul->lt.check(matmul->handle, &plan.operation, &plan.a, &plan.b, &plan.d, &plan.d,
                            algorithm, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize == 0;
}

/* n (WEIGHT: depth in units of 8), m of FORWARD */
static const int64_t check_sizes[][2] = {{1, 8},      {2, 64},   {7, 4864},   {32, 1024}, {64, 8},
                                         {1, 152064}, {96, 896}, {500, 8192}, {4099, 96}};

/* Does it, with and without a bias, at all sizes up to `most` that may come with this key? */
static bool algorithm_fits_all(const struct cuda_matmul *matmul, const struct matmul_args *nominal,
                               int64_t most, const cublasLtMatmulAlgo_t *algorithm)
{
    for (size_t i = 0; i < sizeof check_sizes / sizeof check_sizes[0]; i++) {
        struct matmul_args a = *nominal;
        if (check_sizes[i][0] > most) {
            continue;
        }
        if (a.kind == MATMUL_WEIGHT) {
            a.depth = check_sizes[i][0] * RUN;
        } else {
            a.n = check_sizes[i][0];
        }
        if (a.kind == MATMUL_FORWARD) {
            a.m = check_sizes[i][1];
            a.ldd = a.m;
        }
        const float *bias[2] = {NULL, nominal->bias};
        for (int with = 0; with < (nominal->bias != NULL ? 2 : 1); with++) {
            a.bias = bias[with];
            if (!algorithm_fits(matmul, &a, algorithm)) {
                return false;
            }
        }
    }
    return true;
}

/* The depth must be summed up by one block, in one run. */
static bool algorithm_is_whole(const struct cublas_lt *lt, const cublasLtMatmulAlgo_t *algorithm)
{
    int32_t parts = 0;
    uint32_t reduction = 0;
    return lt->algorithm_get(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts, sizeof parts,
                             NULL) == CUBLAS_STATUS_SUCCESS &&
           lt->algorithm_get(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                             sizeof reduction, NULL) == CUBLAS_STATUS_SUCCESS &&
           parts <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
}

static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};

/* Candidates of the heuristic that need no workspace: what splits the depth does. */
static int matmul_candidates(const struct cuda_matmul *matmul, const struct matmul_args *nominal,
                             cublasLtMatmulHeuristicResult_t *found)
{
    const struct cublas_lt *lt = &matmul->lt;
    const uint64_t workspace = 0;
    const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE;
    const uint32_t bytes = MATMUL_ALIGNMENT;
    cublasLtMatmulPreferenceOpaque_t preference;
    struct matmul_plan plan;
    int count = 0;
    bool good = matmul_plan_make(lt, nominal, &plan) == CUBLAS_STATUS_SUCCESS &&
                lt->preference_init(&preference, sizeof preference) == CUBLAS_STATUS_SUCCESS &&
                lt->preference_set(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                   &workspace, sizeof workspace) == CUBLAS_STATUS_SUCCESS &&
                lt->preference_set(&preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                   &reduction, sizeof reduction) == CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; good && i < sizeof alignments / sizeof alignments[0]; i++) {
        good = lt->preference_set(&preference, alignments[i], &bytes, sizeof bytes) ==
               CUBLAS_STATUS_SUCCESS;
    }
    good = good &&
           lt->heuristic(matmul->handle, &plan.operation, &plan.a, &plan.b, &plan.d, &plan.d,
                         &preference, MATMUL_CANDIDATES, found, &count) == CUBLAS_STATUS_SUCCESS;
    return good ? count : 0;
}

/* Not read: says that there is one, and how it is aligned. */
static const float some_bias __attribute__((aligned(MATMUL_ALIGNMENT))) = 0.0f;

/* Sizes for which an algorithm is chosen: the free ones are those of training, or of decoding with
 * `few`. */
static struct matmul_args matmul_nominal(const struct matmul_args *a, bool few)
{
    struct matmul_args nominal = *a;
    nominal.bias = NULL;
    if (a->kind == MATMUL_FORWARD) {
        nominal.bias = &some_bias;
        nominal.m = MATMUL_NOMINAL;
        nominal.n = few ? MATMUL_NOMINAL_FEW : MATMUL_NOMINAL_ROWS;
        nominal.lda = nominal.depth;
        nominal.ldb = nominal.depth;
        nominal.ldd = nominal.m;
    } else if (a->kind == MATMUL_INPUT) {
        nominal.n = MATMUL_NOMINAL;
    } else {
        nominal.depth = MATMUL_NOMINAL;
    }
    return nominal;
}

/* Numbers in (-4, 4), of magnitudes so different that the order of a sum shows. */
static __global__ void probe_fill_kernel(void *data, enum kernel_dtype dtype, int64_t count,
                                         uint32_t seed)
{
    const int64_t i = cuda_thread();
    if (i >= count) {
        return;
    }
    uint32_t bits = ((uint32_t)i + seed) * 0x9E3779B9u;
    bits = (bits ^ bits >> 15) * 0x85EBCA6Bu;
    bits = (bits ^ bits >> 13) * 0xC2B2AE35u;
    bits ^= bits >> 16;
    const float value = ((float)(bits >> 8) / 8388608.0f - 1.0f) * (float)(1u << bits % 4) * 0.5f;
    if (dtype == KERNEL_BF16) {
        ((uint16_t *)data)[i] = (uint16_t)bf16_bits(value);
    } else {
        ((float *)data)[i] = value;
    }
}

static __global__ void probe_compare_kernel(const float *x, const float *y, int64_t count,
                                            int32_t *differ)
{
    const int64_t i = cuda_thread();
    if (i < count && __float_as_uint(x[i]) != __float_as_uint(y[i])) {
        *differ = 1;
    }
}

/* A forward product of random numbers, and room for what two algorithms make of it. */
struct matmul_probe {
    struct matmul_args product;
    float *results[2];
    int32_t *differ;
};

/* False when the stream has failed. */
static bool probe_make(struct cuda_stream *stream, const struct matmul_args *a,
                       struct matmul_probe *out)
{
    const int64_t results = PROBE_M * MATMUL_FEW_ROWS;
    const int64_t count[2] = {PROBE_M * a->depth, MATMUL_FEW_ROWS * a->depth};
    void *operands[2];
    for (int i = 0; i < 2; i++) {
        operands[i] = cuda_scratch(stream, (size_t)count[i] * sizeof(float));
        out->results[i] = (float *)cuda_scratch(stream, (size_t)results * sizeof(float));
        CUDA_LAUNCH(probe_fill_kernel, cuda_blocks(count[i], PROBE_THREADS), dim3(PROBE_THREADS), 0,
                    stream, operands[i], a->dtype, count[i], 77u + (uint32_t)i * 0x10000000u);
    }
    out->differ = (int32_t *)cuda_scratch(stream, sizeof *out->differ);
    out->product = *a;
    out->product.a = operands[0];
    out->product.b = operands[1];
    out->product.bias = NULL;
    out->product.m = PROBE_M;
    out->product.n = MATMUL_FEW_ROWS;
    out->product.lda = a->depth;
    out->product.ldb = a->depth;
    out->product.ldd = PROBE_M;
    out->product.accumulate = false;
    return cuda_stream_good(stream);
}

/* Do both give the same bits? Waits. */
static bool probe_agrees(struct cuda_stream *stream, struct matmul_probe *probe,
                         const cublasLtMatmulAlgo_t *x, const cublasLtMatmulAlgo_t *y)
{
    const int64_t results = PROBE_M * MATMUL_FEW_ROWS;
    const cublasLtMatmulAlgo_t *algorithms[2] = {x, y};
    int32_t differ = 1;
    for (int i = 0; i < 2; i++) {
        probe->product.d = probe->results[i];
        matmul_multiply(stream, &probe->product, algorithms[i]);
    }
    cuda_check(stream, cudaMemsetAsync(probe->differ, 0, sizeof differ, cuda_stream_handle(stream)),
               "probe");
    CUDA_LAUNCH(probe_compare_kernel, cuda_blocks(results, PROBE_THREADS), dim3(PROBE_THREADS), 0,
                stream, probe->results[0], probe->results[1], results, probe->differ);
    cuda_fetch(stream, &differ, probe->differ, sizeof differ);
    cuda_wait(stream);
    return differ == 0;
}

/* The heuristic's first candidate that splits no sum and fits all sizes up to `most`, and with
 * `probe` gives the bits of `like`. False if there is none. */
static bool matmul_search(struct cuda_stream *stream, const struct matmul_args *nominal,
                          int64_t most, struct matmul_probe *probe,
                          const cublasLtMatmulAlgo_t *like, cublasLtMatmulAlgo_t *out)
{
    const struct cuda_matmul *matmul = cuda_stream_matmul(stream);
    cublasLtMatmulHeuristicResult_t found[MATMUL_CANDIDATES];
    const int count = matmul_candidates(matmul, nominal, found);
    for (int i = 0; i < count; i++) {
        const cublasLtMatmulAlgo_t *algorithm = &found[i].algo;
        if (found[i].state == CUBLAS_STATUS_SUCCESS && algorithm_is_whole(&matmul->lt, algorithm) &&
            algorithm_fits_all(matmul, nominal, most, algorithm) &&
            (probe == NULL || probe_agrees(stream, probe, like, algorithm))) {
            *out = *algorithm;
            return true;
        }
    }
    return false;
}

/* Fill a choice; false if there is no algorithm. */
static bool matmul_decide(struct cuda_stream *stream, const struct matmul_args *a,
                          struct matmul_choice *choice)
{
    struct matmul_args nominal = matmul_nominal(a, false);
    if (!matmul_search(stream, &nominal, INT64_MAX, NULL, NULL, &choice->algorithm)) {
        return false;
    }
    choice->few_rows = choice->algorithm;
    struct matmul_probe probe;
    if (a->kind == MATMUL_FORWARD && probe_make(stream, a, &probe)) {
        nominal = matmul_nominal(a, true);
        (void)matmul_search(stream, &nominal, MATMUL_FEW_ROWS, &probe, &choice->algorithm,
                            &choice->few_rows);
    }
    return cuda_stream_good(stream);
}

const cublasLtMatmulAlgo_t *matmul_choose(struct cuda_stream *stream, const struct matmul_args *a)
{
    struct cuda_matmul *matmul = cuda_stream_matmul(stream);
    const struct matmul_key key = matmul_key_of(a);
    const bool few = a->kind == MATMUL_FORWARD && a->n <= MATMUL_FEW_ROWS;
    for (int64_t i = 0; i < matmul->count && i < MATMUL_CHOICES; i++) {
        struct matmul_choice *choice = &matmul->choices[i];
        if (key_equal(&choice->key, &key)) {
            return few ? &choice->few_rows : &choice->algorithm;
        }
    }
    struct matmul_choice *choice = &matmul->choices[matmul->count % MATMUL_CHOICES];
    choice->key = key;
    if (!cuda_stream_good(stream) || !matmul_decide(stream, a, choice)) {
        return NULL;
    }
    matmul->count++;
    return few ? &choice->few_rows : &choice->algorithm;
}
