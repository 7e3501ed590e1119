/* Corpora on disk: identities, parts, locks between openers, damage, who made what. */
#include "transport/corpus_file.h"
#include "transport/segment_file.h"

#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/test_corpus_XXXXXX";

static struct corpus_identity identity(void)
{
    return (struct corpus_identity){.model = 0x1234,
                                    .weights = "fp32",
                                    .tokenizer = 5,
                                    .prompts = 6,
                                    .prompt_count = CORPUS_PART_PROMPTS + 3,
                                    .temperature = 0.1,
                                    .top_p = 1,
                                    .stop = "",
                                    .stop_token_ids = "",
                                    .max_completion = 9,
                                    .samples = 2,
                                    .seed = 7,
                                    .rewards = "numeric"};
}

static void open_corpus(struct corpus **out)
{
    struct corpus_identity id = identity();
    ck_assert_int_eq(corpus_open(folder, &id, out), RL_OK);
}

static void make_folder(void)
{
    memcpy(folder + sizeof(folder) - 7, "XXXXXX", 6);
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static void remove_folder(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

/* Groups of a part: two samples a prompt, of one and two tokens. */
static void make_groups(const struct corpus *corpus, uint64_t part,
                        struct trajectory_group *groups[CORPUS_PART_PROMPTS], size_t *count)
{
    uint64_t first = 0;
    uint64_t size = 0;
    static const float logprob[] = {-0.5F, -0.25F};
    static const uint32_t version[] = {0, 0};
    corpus_part_range(corpus, part, &first, &size);
    for (uint64_t i = 0; i < size; i++) {
        int32_t tokens[] = {(int32_t)(first + i), 3, 4};
        ck_assert_int_eq(trajectory_group_create(2, &groups[i]), RL_OK);
        groups[i]->prompt_id = first + i;
        for (uint32_t s = 0; s < 2; s++) {
            ck_assert_int_eq(
                trajectory_set_tokens(&groups[i]->samples[s], tokens, logprob, version, 1, s + 1),
                RL_OK);
            groups[i]->samples[s].finish = RL_FINISH_STOP;
        }
    }
    *count = size;
}

static void write_part(struct corpus *corpus, uint64_t part, const char *run)
{
    struct trajectory_group *groups[CORPUS_PART_PROMPTS];
    size_t count = 0;
    make_groups(corpus, part, groups, &count);
    ck_assert_int_eq(corpus_lock(corpus, part), RL_OK);
    ck_assert_int_eq(
        corpus_write(corpus, part, (const struct trajectory_group *const *)groups, run), RL_OK);
    corpus_unlock(corpus, part);
    for (size_t i = 0; i < count; i++) {
        trajectory_group_destroy(groups[i]);
    }
}

START_TEST(parts)
{
    struct corpus *corpus = NULL;
    struct trajectory_group **groups = NULL;
    size_t count = 0;
    uint64_t made = 0;
    make_folder();
    open_corpus(&corpus);
    ck_assert_uint_eq(corpus_part_count(corpus), 2);
    ck_assert(!corpus_has(corpus, 0));
    write_part(corpus, 0, "a");
    write_part(corpus, 1, "b");
    ck_assert_int_eq(corpus_lock(corpus, 0), RL_AGAIN);
    ck_assert_int_eq(corpus_read(corpus, 1, &groups, &count), RL_OK);
    ck_assert_uint_eq(count, 3);
    ck_assert_uint_eq(groups[2]->prompt_id, CORPUS_PART_PROMPTS + 2);
    ck_assert_uint_eq(groups[2]->samples[1].completion_count, 2);
    segment_groups_free(groups, count);
    struct corpus_name name = {folder, corpus_key(corpus), CORPUS_PART_PROMPTS + 3};
    ck_assert_int_eq(corpus_made_by(&name, "a", &made), RL_OK);
    ck_assert_uint_eq(made, 2 * CORPUS_PART_PROMPTS);
    ck_assert_int_eq(corpus_made_by(&name, "b", &made), RL_OK);
    ck_assert_uint_eq(made, 6);
    ck_assert_int_eq(corpus_made_by(&name, "c", &made), RL_OK);
    ck_assert_uint_eq(made, 0);
    corpus_close(corpus);
    remove_folder();
}
END_TEST

/* Every field makes another corpus; corpus.json of another identity is refused with the field. */
START_TEST(identities)
{
    struct corpus *corpus = NULL;
    struct corpus *other = NULL;
    char key[RL_HASH_TEXT_BYTES];
    char from[256];
    char to[256];
    make_folder();
    open_corpus(&corpus);
    memcpy(key, corpus_key(corpus), sizeof(key));
    struct corpus_identity ids[4] = {identity(), identity(), identity(), identity()};
    ids[0].model++;
    ids[1].temperature = 0.2;
    ids[2].seed++;
    ids[3].rewards = "exact";
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(corpus_open(folder, &ids[i], &other), RL_OK);
        ck_assert_str_ne(corpus_key(other), key);
        snprintf(from, sizeof(from), "%s/corpus.json", corpus_path(other));
        snprintf(to, sizeof(to), "%s/corpus.json", corpus_path(corpus));
        corpus_close(other);
        ck_assert_int_eq(rename(from, to), 0);
        struct corpus_identity id = identity();
        ck_assert_int_eq(corpus_open(folder, &id, &other), RL_INVALID);
    }
    ck_assert_int_eq(truncate(to, 10), 0);
    struct corpus_identity id = identity();
    ck_assert_int_eq(corpus_open(folder, &id, &other), RL_CORRUPT);
    corpus_close(corpus);
    remove_folder();
}
END_TEST

/* A part that another opener fills is not to be had until that one lets go, whatever way it ends.
 */
START_TEST(locks)
{
    struct corpus *corpus = NULL;
    struct corpus *other = NULL;
    make_folder();
    open_corpus(&corpus);
    open_corpus(&other);
    ck_assert_int_eq(corpus_lock(corpus, 0), RL_OK);
    ck_assert_int_eq(corpus_lock(other, 0), RL_AGAIN);
    ck_assert_int_eq(corpus_lock(other, 1), RL_OK);
    corpus_unlock(corpus, 0);
    ck_assert_int_eq(corpus_lock(other, 0), RL_OK);
    corpus_close(other);
    ck_assert_int_eq(corpus_lock(corpus, 1), RL_OK);
    corpus_unlock(corpus, 1);
    pid_t child = fork();
    if (child == 0) {
        open_corpus(&other);
        _exit(corpus_lock(other, 0) == RL_OK ? 7 : 1); /* dies with the lock */
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    ck_assert_int_eq(corpus_lock(corpus, 0), RL_OK);
    corpus_close(corpus);
    remove_folder();
}
END_TEST

static void overwrite(const char *path, long offset)
{
    int file = open(path, O_RDWR);
    unsigned char byte = 0;
    ck_assert(pread(file, &byte, 1, offset) == 1);
    byte ^= 0x55;
    ck_assert(pwrite(file, &byte, 1, offset) == 1);
    close(file);
}

START_TEST(damage)
{
    struct corpus *corpus = NULL;
    struct trajectory_group **groups = NULL;
    struct trajectory_group *wrong[CORPUS_PART_PROMPTS];
    size_t count = 0;
    char path[256];
    char other[256];
    make_folder();
    open_corpus(&corpus);
    write_part(corpus, 0, "a");
    snprintf(path, sizeof(path), "%s/part_000001.h5", corpus_path(corpus));
    snprintf(other, sizeof(other), "%s/part_000002.h5", corpus_path(corpus));
    ck_assert_int_eq(link(path, other), 0); /* a part in the place of another */
    ck_assert_int_eq(corpus_read(corpus, 1, &groups, &count), RL_CORRUPT);
    ck_assert_int_eq(unlink(other), 0);
    overwrite(path, 3000);
    rl_status status = corpus_read(corpus, 0, &groups, &count);
    if (status == RL_OK) { /* the byte was in no use */
        segment_groups_free(groups, count);
    }
    ck_assert_int_eq(truncate(path, 2000), 0);
    ck_assert_int_eq(corpus_read(corpus, 0, &groups, &count), RL_CORRUPT);
    ck_assert_int_eq(unlink(path), 0);
    make_groups(corpus, 1, wrong, &count); /* groups of another part */
    ck_assert_int_eq(corpus_write(corpus, 0, (const struct trajectory_group *const *)wrong, "a"),
                     RL_INVALID);
    for (size_t i = 0; i < count; i++) {
        trajectory_group_destroy(wrong[i]);
    }
    ck_assert(!corpus_has(corpus, 0));
    corpus_close(corpus);
    remove_folder();
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("transport_corpus");
    TCase *tcase = tcase_create("all");
    tcase_add_test(tcase, parts);
    tcase_add_test(tcase, identities);
    tcase_add_test(tcase, locks);
    tcase_add_test(tcase, damage);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
