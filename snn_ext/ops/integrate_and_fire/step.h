/* One neuron, one step: the arithmetic of integrate_and_fire, for C and for CUDA.

   No header is included and no loop is here: how neurons are spread over vectors, threads or blocks is the caller's
   business. It defines STEP_FUNCTION (how a function is inlined) before. Every operation of charge, fires and reset is
   one IEEE rounding; compile without contraction into FMA. */

STEP_FUNCTION float charge(float v, float x) { return v + x; }

/* NaN does not fire. */
STEP_FUNCTION float fires(float h, float theta, int fire_at_threshold) {
    return (fire_at_threshold ? h >= theta : h > theta) ? 1.0f : 0.0f;
}

STEP_FUNCTION float reset(float h, float s, float theta, int kind) {
    if (kind == RESET_ZERO) return s != 0.0f ? 0.0f : h;
    if (kind == RESET_NONE) return h;
    return h - s * theta; /* a product, so that an infinite threshold gives the definition's NaN */
}

/* Gradient of h. c is that of the potential after the step, g that of the spike, d the surrogate's derivative at
   h - theta; g_theta receives this neuron's term of the threshold's gradient. */
STEP_FUNCTION float step_backward(float h, float s, float c, float g, float d, float theta, int kind, int detach_reset,
                                  float *g_theta) {
    float g_u;
    if (!detach_reset && kind == RESET_SUBTRACT) g = g - theta * c;
    if (!detach_reset && kind == RESET_ZERO) g = g - h * c;
    g_u = g * d;
    *g_theta = kind == RESET_SUBTRACT ? -g_u - s * c : -g_u;
    return g_u + (kind == RESET_ZERO ? c * (1.0f - s) : c);
}
