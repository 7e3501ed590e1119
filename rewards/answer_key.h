/* What a completion answers, as a number that can be compared: for majority votes. Pure; any
 * thread. */
#ifndef FORESIGHT_REWARDS_ANSWER_KEY_H
#define FORESIGHT_REWARDS_ANSWER_KEY_H

#include <stdint.h>

/* Completions that answer the same have the same key. The answer is what follows any reasoning:
 * the marked one (<answer>, "####", \boxed{}), else the last number, else the last line. Numbers
 * are compared by value (7 and 7.0 are one answer), other answers by their text without white space
 * at the ends. 0: there is no answer. */
uint64_t answer_key(const char *completion);

#endif
