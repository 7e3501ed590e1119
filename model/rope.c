/* Rotary position tables. Invariant: frequencies and angles are rounded to fp32 where the models'
 * own training code rounds them; with exact angles a long sequence would see positions that the
 * model was not trained on (one part in 2^24 of position 30,000 is 0.002 radians). */
#include "model/architecture.h"

#include <math.h>

static const double pi = 3.14159265358979323846;

static float llama3_frequency(const struct model_architecture *arch, float frequency)
{
    double old_length = arch->rope_original_max_position;
    double wavelength = 2.0 * pi / frequency;
    if (wavelength > old_length / arch->rope_low_freq_factor) {
        return (float)(frequency / arch->rope_factor);
    }
    if (wavelength < old_length / arch->rope_high_freq_factor) {
        return frequency;
    }
    double smooth = (old_length / wavelength - arch->rope_low_freq_factor) /
                    (arch->rope_high_freq_factor - arch->rope_low_freq_factor);
    return (float)((1.0 - smooth) * frequency / arch->rope_factor + smooth * frequency);
}

/* Dimension whose wave turns `rotations` times within the original context. */
static double yarn_dimension(const struct model_architecture *arch, double rotations)
{
    return arch->head_dim * log(arch->rope_original_max_position / (rotations * 2.0 * pi)) /
           (2.0 * log(arch->rope_theta));
}

static float yarn_frequency(const struct model_architecture *arch, int32_t pair, float frequency)
{
    double low = yarn_dimension(arch, arch->rope_beta_fast);
    double high = yarn_dimension(arch, arch->rope_beta_slow);
    if (arch->rope_truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0.0);
    high = fmin(high, arch->head_dim - 1);
    if (low == high) {
        high += 0.001; /* no division by zero */
    }
    double ramp = fmin(fmax((pair - low) / (high - low), 0.0), 1.0);
    return (float)(frequency / arch->rope_factor * ramp + frequency * (1.0 - ramp));
}

static float pair_frequency(const struct model_architecture *arch, int32_t pair)
{
    float exponent = (float)(2 * pair) / (float)arch->head_dim;
    float frequency = 1.0F / (float)pow((float)arch->rope_theta, exponent);
    switch (arch->rope_type) {
    case MODEL_ROPE_LINEAR:
        return frequency / (float)arch->rope_factor;
    case MODEL_ROPE_LLAMA3:
        return llama3_frequency(arch, frequency);
    case MODEL_ROPE_YARN:
        return yarn_frequency(arch, pair, frequency);
    case MODEL_ROPE_DEFAULT:
        break;
    }
    return frequency;
}

void model_rope_tables(const struct model_architecture *arch, int32_t positions, float *cosine,
                       float *sine)
{
    int32_t pairs = arch->head_dim / 2;
    for (int32_t pair = 0; pair < pairs; pair++) {
        float frequency = pair_frequency(arch, pair);
        for (int32_t p = 0; p < positions; p++) {
            float angle = (float)p * frequency;
            int64_t at = (int64_t)p * pairs + pair;
            cosine[at] = (float)(cos(angle) * arch->rope_attention_factor);
            sine[at] = (float)(sin(angle) * arch->rope_attention_factor);
        }
    }
}
