/* Cases of check_kernels: ops that only learners call. Included by check_kernels.c. */
#ifndef FORESIGHT_TESTS_KERNEL_CASES_LEARNER_H
#define FORESIGHT_TESTS_KERNEL_CASES_LEARNER_H

static void case_hash_words(struct call *c)
{
    struct kernel_hash_args a = {.count = call_size(c, 0, 700000, 1024 * 1024)};
    uint64_t *sum = memory_bits(&c->memory, sizeof *sum);
    a.words = (const uint32_t *)(const void *)memory_floats(&c->memory, a.count, 1.0);
    a.sum = sum;
    c->flops = (double)a.count;
    while (call_again(c)) {
        c->table->hash_words(&a, c->pool);
    }
}

#endif
