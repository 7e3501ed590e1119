/* The choice of algorithms: what the heuristic proposes, less what splits sums, does not run at
 * every size that may come, or adds up in another order than its fellow. */
#include "kernels/cuda/matmul_choose_cuda.h"

#include "kernels/cuda/float_cuda.h"
#include "kernels/cuda/linear_few_cuda.h"

#include "core/log.h"

enum {
    MATMUL_CANDIDATES = 32, /* of the heuristic */
    MATMUL_ALIGNMENT = 16,  /* bytes */
    MATMUL_NOMINAL = 4096,  /* a size that an algorithm is chosen for, where it does not matter */
    MATMUL_NOMINAL_ROWS = 512,
    MATMUL_NOMINAL_FEW = 16,
    PROBE_M = 136, /* outputs of the products that tell two ways apart, more than a tile */
    PROBE_ROWS = 130,
    PROBE_THREADS = 256,
    PROBE_EACH = 16
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

/* Numbers in (-4, 4), of magnitudes so different that the order of a sum shows; rounded to bf16 and
 * written to `narrow` too unless that is NULL. One thread PROBE_EACH. */
static __global__ void probe_fill_kernel(float *data, uint16_t *narrow, int64_t count,
                                         uint32_t seed)
{
    const int64_t first = cuda_thread() * PROBE_EACH;
    for (int64_t i = first; i < count && i < first + PROBE_EACH; i++) {
        uint32_t bits = ((uint32_t)i + seed) * 0x9E3779B9u;
        bits = (bits ^ bits >> 15) * 0x85EBCA6Bu;
        bits = (bits ^ bits >> 13) * 0xC2B2AE35u;
        bits ^= bits >> 16;
        const float size = (float)(1u << bits % 4) * 0.5f;
        data[i] = ((float)(bits >> 8) / 8388608.0f - 1.0f) * size;
        if (narrow != NULL) {
            narrow[i] = (uint16_t)bf16_bits(data[i]);
        }
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

/* Forward products of random numbers, with all that may be added to them, and room for what two
 * ways make of them. */
struct matmul_probe {
    struct matmul_args product; /* a, b and bias are its own */
    float *wide[2];             /* a and b in fp32: b is what the kernel for few rows reads */
    float *results[2];
    int32_t *differ;
};

/* Rows of the way for few rows, and of the other: the first rows of both are compared. */
static const int64_t probe_rows[][2] = {
    {MATMUL_FEW_ROWS, PROBE_ROWS}, {13, MATMUL_FEW_ROWS}, {5, 77}};

static void probe_fill(struct cuda_stream *stream, float *data, uint16_t *narrow, int64_t count,
                       uint32_t seed)
{
    CUDA_LAUNCH(probe_fill_kernel, cuda_blocks(count, PROBE_THREADS * PROBE_EACH),
                dim3(PROBE_THREADS), 0, stream, data, narrow, count, seed);
}

/* False when the stream has failed. */
static bool probe_make(struct cuda_stream *stream, const struct matmul_args *a,
                       struct matmul_probe *out)
{
    const int64_t lines[2] = {PROBE_M, PROBE_ROWS};
    void *operands[2];
    for (int i = 0; i < 2; i++) {
        const size_t numbers = (size_t)(lines[i] * a->depth);
        out->wide[i] = (float *)cuda_scratch(stream, numbers * sizeof(float));
        operands[i] = out->wide[i];
        if (a->dtype == KERNEL_BF16) {
            operands[i] = cuda_scratch(stream, numbers * sizeof(uint16_t));
        }
        out->results[i] = (float *)cuda_scratch(stream, PROBE_M * PROBE_ROWS * sizeof(float));
    }
    out->differ = (int32_t *)cuda_scratch(stream, sizeof *out->differ);
    float *bias = (float *)cuda_scratch(stream, PROBE_M * sizeof(float));
    if (!cuda_stream_good(stream)) {
        return false;
    }
    probe_fill(stream, bias, NULL, PROBE_M, 5u);
    out->product = *a;
    out->product.a = operands[0];
    out->product.b = operands[1];
    out->product.bias = bias;
    out->product.m = PROBE_M;
    out->product.lda = a->depth;
    out->product.ldb = a->depth;
    out->product.ldd = PROBE_M;
    out->product.accumulate = true;
    return cuda_stream_good(stream);
}

/* New numbers for all that the products read. */
static void probe_refill(struct cuda_stream *stream, const struct matmul_probe *probe,
                         uint32_t seed)
{
    const struct matmul_args *a = &probe->product;
    const int64_t count[2] = {PROBE_M * a->depth, PROBE_ROWS * a->depth};
    void *operands[2] = {(void *)(uintptr_t)a->a, (void *)(uintptr_t)a->b};
    for (int i = 0; i < 2; i++) {
        uint16_t *narrow = a->dtype == KERNEL_BF16 ? (uint16_t *)operands[i] : NULL;
        probe_fill(stream, probe->wide[i], narrow, count[i], seed + (uint32_t)i * 0x10000000u);
        probe_fill(stream, probe->results[i], NULL, PROBE_M * PROBE_ROWS, seed + 0x20000000u);
    }
}

/* What `algorithm`, or with NULL the kernel for few rows, makes of the first n rows. */
static bool probe_run(struct cuda_stream *stream, struct matmul_probe *probe,
                      const cublasLtMatmulAlgo_t *algorithm, int64_t n, float *result)
{
    struct matmul_args *a = &probe->product;
    a->d = result;
    a->n = n;
    if (algorithm != NULL) {
        const bool fits = algorithm_fits(cuda_stream_matmul(stream), a, algorithm);
        if (fits) {
            matmul_multiply(stream, a, algorithm);
        }
        return fits;
    }
    struct few_args few = {probe->wide[1], n, a->depth, a->depth, a->depth, 1, {}};
    few.maps[0] = {a->a, a->bias, result, PROBE_M, PROBE_M, true};
    return few_run(stream, &few);
}

/* Do both give the same bits on all products? `few` may be NULL: the kernel for few rows. Waits. */
static bool probe_agrees(struct cuda_stream *stream, struct matmul_probe *probe,
                         const cublasLtMatmulAlgo_t *few, const cublasLtMatmulAlgo_t *many)
{
    int32_t differ = 1;
    cuda_check(stream, cudaMemsetAsync(probe->differ, 0, sizeof differ, cuda_stream_handle(stream)),
               "probe");
    for (size_t i = 0; i < sizeof probe_rows / sizeof probe_rows[0]; i++) {
        const int64_t results = PROBE_M * probe_rows[i][0];
        probe_refill(stream, probe, 77u * (uint32_t)(i + 1));
        if (!probe_run(stream, probe, few, probe_rows[i][0], probe->results[0]) ||
            !probe_run(stream, probe, many, probe_rows[i][1], probe->results[1])) {
            return false;
        }
        CUDA_LAUNCH(probe_compare_kernel, cuda_blocks(results, PROBE_THREADS), dim3(PROBE_THREADS),
                    0, stream, probe->results[0], probe->results[1], results, probe->differ);
    }
    cuda_fetch(stream, &differ, probe->differ, sizeof differ);
    cuda_wait(stream);
    return cuda_stream_good(stream) && differ == 0;
}

/* Whether a candidate is wanted that gives the bits of the kernel for few rows, or for few rows
 * those of `many`. */
struct matmul_wish {
    struct matmul_probe *probe; /* NULL: none */
    const cublasLtMatmulAlgo_t *many;
};

static bool wish_granted(struct cuda_stream *stream, const struct matmul_wish *wish,
                         const cublasLtMatmulAlgo_t *algorithm)
{
    if (wish->probe == NULL) {
        return true;
    }
    return wish->many != NULL ? probe_agrees(stream, wish->probe, algorithm, wish->many)
                              : probe_agrees(stream, wish->probe, NULL, algorithm);
}

/* The heuristic's first candidate that splits no sum, fits all sizes up to `most` and is as wished.
 * Its number among them, -1 if there is none. */
static int matmul_search(struct cuda_stream *stream, const struct matmul_args *nominal,
                         int64_t most, const struct matmul_wish *wish, cublasLtMatmulAlgo_t *out)
{
    const struct cuda_matmul *matmul = cuda_stream_matmul(stream);
    cublasLtMatmulHeuristicResult_t found[MATMUL_CANDIDATES];
    const int count = matmul_candidates(matmul, nominal, found);
    for (int i = 0; i < count && cuda_stream_good(stream); i++) {
        const cublasLtMatmulAlgo_t *algorithm = &found[i].algo;
        if (found[i].state == CUBLAS_STATUS_SUCCESS && algorithm_is_whole(&matmul->lt, algorithm) &&
            algorithm_fits_all(matmul, nominal, most, algorithm) &&
            wish_granted(stream, wish, algorithm)) {
            *out = *algorithm;
            return i;
        }
    }
    return -1;
}

/* What to log of a choice: numbers among the heuristic's candidates. */
static void decision_log(const struct matmul_choice *choice, int many, int few)
{
    if (choice->key.kind != MATMUL_FORWARD) {
        return;
    }
    rl_log(RL_LOG_DEBUG, "products of depth %lld in %s: candidate %d of cuBLASLt; few rows: %s",
           (long long)choice->key.first, choice->key.dtype == KERNEL_BF16 ? "bf16" : "fp32", many,
           choice->kernel ? "own kernel, the same bits"
           : few >= 0     ? "another candidate, the same bits"
                          : "no other way gives the same bits");
}

/* cuBLASLt has nothing: slow beats not at all, but somebody should know. */
static void plain_log(const struct matmul_args *a)
{
    static const char *const kinds[] = {"forward", "input", "weight"};
    rl_log(RL_LOG_WARN,
           "cuBLASLt has no algorithm for %s products of depth %lld in %s that runs at all sizes "
           "without splitting sums: they are made by a plain kernel, which is slow",
           kinds[a->kind], (long long)a->depth, a->dtype == KERNEL_BF16 ? "bf16" : "fp32");
}

/* Fill a choice; false if the stream has failed. */
static bool matmul_decide(struct cuda_stream *stream, const struct matmul_args *a,
                          struct matmul_choice *choice)
{
    const struct matmul_args nominal = matmul_nominal(a, false);
    const struct matmul_wish any = {NULL, NULL};
    struct matmul_probe probe;
    const bool forward = a->kind == MATMUL_FORWARD && probe_make(stream, a, &probe);
    struct matmul_wish wish = {&probe, NULL};
    int many = -1;
    int few = -1;
    if (forward && a->dtype == KERNEL_BF16) {
        many = matmul_search(stream, &nominal, INT64_MAX, &wish, &choice->algorithm);
    }
    choice->kernel = many >= 0;
    choice->plain = false;
    if (many < 0) {
        many = matmul_search(stream, &nominal, INT64_MAX, &any, &choice->algorithm);
    }
    if (many < 0) {
        choice->plain = cuda_stream_good(stream);
        if (choice->plain) {
            plain_log(a);
        }
        return choice->plain;
    }
    choice->few_rows = choice->algorithm;
    if (forward) {
        const struct matmul_args nominal_few = matmul_nominal(a, true);
        wish.many = &choice->algorithm;
        few = matmul_search(stream, &nominal_few, MATMUL_FEW_ROWS, &wish, &choice->few_rows);
    }
    decision_log(choice, many, few);
    return cuda_stream_good(stream);
}

const struct matmul_choice *matmul_choose(struct cuda_stream *stream, const struct matmul_args *a)
{
    struct cuda_matmul *matmul = cuda_stream_matmul(stream);
    const struct matmul_key key = matmul_key_of(a);
    for (int64_t i = 0; i < matmul->count && i < MATMUL_CHOICES; i++) {
        if (key_equal(&matmul->choices[i].key, &key)) {
            return &matmul->choices[i];
        }
    }
    struct matmul_choice *choice = &matmul->choices[matmul->count % MATMUL_CHOICES];
    choice->key = key;
    if (!cuda_stream_good(stream) || !matmul_decide(stream, a, choice)) {
        return NULL;
    }
    matmul->count++;
    return choice;
}
