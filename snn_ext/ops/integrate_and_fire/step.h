/* One neuron, one step: the arithmetic of integrate_and_fire, for C and for CUDA.

   No header is included and no loop is here: how neurons are spread over vectors, threads or blocks is the caller's
   business. It defines STEP_FUNCTION (how a function is inlined), divide (a correctly rounded division) and
   multiply_add (a b + c in one rounding) before. Every operation of normalised, charge, fires and reset is one IEEE
   rounding; compile without contraction into FMA. */

/* (x - center) * gain + shift, in the order of torch's batch norm; what does not depend on x comes first. */
STEP_FUNCTION float norm_offset(float center, float gain, float shift) { return multiply_add(-center, gain, shift); }
STEP_FUNCTION float normalised(float x, float gain, float offset) { return multiply_add(x, gain, offset); }

/* NaN does not fire. */
STEP_FUNCTION float fires(float h, float theta, int fire_at_threshold) {
    return (fire_at_threshold ? h >= theta : h > theta) ? 1.0f : 0.0f;
}

/* d is the constant of the leak. The potential before a delayed reset is the state, and the next charge subtracts. */
STEP_FUNCTION float charge(float v, float x, float d, float theta, int rule, int kind, int fire_at_threshold) {
    if (rule == CHARGE_TAU) return v - divide(v, d) + x;
    if (rule == CHARGE_TAU_INPUT) return v + divide(x - v, d);
    if (rule == CHARGE_RATE) return v - v * d + x;
    if (rule == CHARGE_RATE_INPUT) return v + (x - v) * d;
    if (rule == CHARGE_ADD) return v + x;
    return kind == RESET_DELAYED ? d * v + x - fires(v, theta, fire_at_threshold) * theta : d * v + x;
}

STEP_FUNCTION float reset(float h, float s, float theta, int kind) {
    if (kind == RESET_ZERO) return s != 0.0f ? 0.0f : h;
    if (kind == RESET_NONE || kind == RESET_DELAYED) return h;
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

/* Gradient of the potential before the step; e is that of h, v and x are what was charged. g_x receives the gradient of the
   input and g_decay this neuron's term of the decay's; a delayed reset's is added to g_theta. */
STEP_FUNCTION float charge_backward(float e, float v, float x, float d, float theta, int rule, int kind,
                                    int fire_at_threshold, float *g_x, float *g_decay, float *g_theta) {
    const int divides = rule == CHARGE_TAU || rule == CHARGE_TAU_INPUT;
    const int of_input = rule == CHARGE_TAU_INPUT || rule == CHARGE_RATE_INPUT;
    const float rate = divides ? 1.0f / d : d;
    *g_x = of_input ? e * rate : e;
    if (rule == CHARGE_ADD) return e;
    if (kind == RESET_DELAYED) *g_theta -= fires(v, theta, fire_at_threshold) * e;
    *g_decay = e * (rule == CHARGE_BETA ? v : of_input ? x - v : -v) * (divides ? -rate * rate : 1.0f);
    return rule == CHARGE_BETA ? e * d : e - e * rate;
}
