/* Every file in configs/ is read and holds together. */
#include "core/config.h"

#include <check.h>
#include <glob.h>
#include <stdlib.h>

START_TEST(examples_are_valid)
{
    glob_t found;
    ck_assert_int_eq(glob(FORESIGHT_SOURCE_DIR "/configs/*.yaml", 0, NULL, &found), 0);
    ck_assert_uint_ge(found.gl_pathc, 5);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct rl_config config;
        ck_assert_int_eq(rl_config_init(&config), RL_OK);
        ck_assert_msg(rl_config_load(&config, found.gl_pathv[i]) == RL_OK, "%s", found.gl_pathv[i]);
        ck_assert_msg(rl_config_validate(&config) == RL_OK, "%s", found.gl_pathv[i]);
        ck_assert_msg(config.model.path[0] != '\0', "%s names no model", found.gl_pathv[i]);
        rl_config_fini(&config);
    }
    globfree(&found);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("configs");
    TCase *tests = tcase_create("all");
    tcase_add_test(tests, examples_are_valid);
    suite_add_tcase(suite, tests);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
