/* The tests that want a GPU as one program, `gpu_programs NAME`: each alone would carry all kernels
 * again, and scripts/gpu_check packs them for machines elsewhere. Their own main functions have
 * other names here (cmake/tests.cmake). */
#include <stdio.h>
#include <string.h>

int check_kernels_main(int argc, char **argv);
int check_gradients_main(void);
int check_same_bits_main(void);
int check_sampling_main(void);
int test_model_golden_main(void);
int test_model_same_bits_main(void);
int test_transport_weight_device_main(void);
int test_transport_nccl_main(void);

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(void);
    } programs[] = {{"check_gradients", check_gradients_main},
                    {"check_same_bits", check_same_bits_main},
                    {"check_sampling", check_sampling_main},
                    {"test_model_golden", test_model_golden_main},
                    {"test_model_same_bits", test_model_same_bits_main},
                    {"test_transport_weight_device", test_transport_weight_device_main},
                    {"test_transport_nccl", test_transport_nccl_main}};
    if (argc > 1 && strcmp(argv[1], "check_kernels") == 0) {
        return check_kernels_main(argc - 1, argv + 1);
    }
    for (size_t i = 0; argc > 1 && i < sizeof programs / sizeof programs[0]; i++) {
        if (strcmp(argv[1], programs[i].name) == 0) {
            return programs[i].run();
        }
    }
    fprintf(stderr, "usage: gpu_programs NAME, of a test in tests/gpu_programs.c\n");
    return 2;
}
