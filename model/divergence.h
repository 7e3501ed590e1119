/* Divergence between the next-token distributions of two models over the same tokens, the student's
 * p and a teacher's q, and its gradient: reverse KL(p, q), forward KL(q, p), or between them
 * (1 - a) KL(p, M) + a KL(q, M) with M = (1 - a) p + a q; over the whole vocabulary, or over the
 * student's k most probable tokens, with the rest as one more outcome or left out and renormalised
 * (SDPO, arXiv 2601.20802). Logits exist for a few rows at a time and never for a whole batch. */
#ifndef FORESIGHT_MODEL_DIVERGENCE_H
#define FORESIGHT_MODEL_DIVERGENCE_H

#include "model/forward.h"

struct model_divergence {
    double alpha;  /* in [0, 1]; 1 reverse KL, 0 forward KL */
    int32_t top_k; /* 0: all */
    bool tail;     /* with top_k: the rest is one more outcome */
};

/* One row: p = softmax(z), q = softmax(teacher), both [v]. z becomes the gradient by z; returns the
 * divergence. `chosen` [2 top_k], scratch, may be NULL without top_k. The log of the support's mass
 * is at most -1e-7 where there is a tail. Any thread. */
double model_divergence_row(const struct model_divergence *kind, float *z, const float *teacher,
                            int64_t v, int32_t *chosen);

struct model_divergence_args {
    struct model_divergence kind;
    const void *teacher_image;   /* whose head makes q */
    const float *teacher_hidden; /* [M, C] rows that stand beside the student's */
    const float *weight;         /* [M] dL/d(divergence); 0: the row is left out */
    float *value;                /* [M] divergence, 0 where left out */
    float *g_hidden;             /* [M, C] overwritten; model_backward reads it */
    float *grad;                 /* [master_count]; the head's part is added to */
    void *scratch;               /* [model_divergence_bytes] the device's */
    void *host_scratch;          /* [model_divergence_bytes]; `scratch` on the CPU */
};

/* Bytes of scratch. */
size_t model_divergence_bytes(const struct model_layout *layout,
                              const struct model_divergence *kind);

/* `weight` and `value` are the host's, teacher_hidden, g_hidden and grad the device's. Rows are
 * compared on the CPU: a device's logits of some rows at a time go there, and come back as their
 * gradients; what fails meanwhile is said by the next wait.
 *
 * Between model_head_forward on the workspace, whose rows, image and temperature are taken, and the
 * model_backward that then takes the gradient of both. */
void model_head_divergence(const struct model_context *context, const void *image,
                           struct model_workspace *workspace,
                           const struct model_divergence_args *args);

#endif
