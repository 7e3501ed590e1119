/* The benchmarks behind `foresight bench NAME`. Each owns one file or more, bench_NAME*.c. */
#ifndef FORESIGHT_APP_BENCH_H
#define FORESIGHT_APP_BENCH_H

/* argv[0] is NAME, then its options. Return enum app_exit. */
int bench_kernels(int argc, char **argv);
int bench_decode(int argc, char **argv);
int bench_prefill(int argc, char **argv);
int bench_train(int argc, char **argv);
int bench_tokenizer(int argc, char **argv);
int bench_async(int argc, char **argv);
int bench_distill(int argc, char **argv);
int bench_speculation(int argc, char **argv);

#endif
