/* One neuron, one step: the arithmetic of adaptive_spiking, for C and for CUDA.

   No header is included and no loop is here; STEP_FUNCTION (how a function is inlined) is defined before. The output is
   0 and 1, 0 and the threshold (OUTPUT_HEIGHTS), or S without any spike (OUTPUT_POTENTIAL). Every operation of
   adaptive_step is one IEEE rounding, in the order of the definition; compile without contraction into FMA, which here
   would change spikes. */

typedef struct { float m_f, theta_0, decay_beta, decay_eta, decay_gamma, decay_phi; } adaptive_constants;
typedef struct { float psc, s, s_hat, adaptation; } adaptive_state;

/* Advance n and return what is put out. theta receives the threshold of this step and u the distance to half of it, at
   which the surrogate is taken; the neuron fires where u > 0, which NaN is not. OUTPUT_POTENTIAL leaves both alone. */
STEP_FUNCTION float adaptive_step(adaptive_state *n, adaptive_constants c, float current, float bias, int output,
                                  int analog_input, float *u, float *theta) {
    float difference, half, z, jump;
    n->psc = analog_input ? current : n->psc * c.decay_beta + current;
    n->s = (1.0f - c.decay_phi) * n->psc + c.decay_phi * n->s;
    if (output == OUTPUT_POTENTIAL) return bias + n->s;
    *theta = c.theta_0 + n->adaptation;
    n->s_hat = n->s_hat * c.decay_eta;
    difference = (bias + n->s) - n->s_hat;
    half = 0.5f * *theta;
    *u = difference - half;
    z = difference > half ? 1.0f : 0.0f;
    jump = *theta * z; /* a product, so that an infinite threshold gives the definition's NaN */
    n->s_hat = n->s_hat + jump;
    n->adaptation = (n->adaptation + c.m_f * jump) * c.decay_gamma;
    return output == OUTPUT_HEIGHTS ? jump : z;
}

/* Take the gradient g of the state from after the step to before it; return the gradient of S, which is also that of the
   bias, and put that of the current into g_current. g_out is the gradient of what was put out, d the surrogate's
   derivative at u. */
STEP_FUNCTION float adaptive_step_backward(adaptive_state *g, adaptive_constants c, float g_out, float u, float theta,
                                           float d, int output, int analog_input, int detach_adaptation,
                                           float *g_current) {
    float g_S = g_out;
    if (output != OUTPUT_POTENTIAL) {
        const float z = u > 0.0f ? 1.0f : 0.0f;
        const float g_adaptation = g->adaptation * c.decay_gamma;
        const float g_jump = g->s_hat + c.m_f * g_adaptation;
        const float g_z = output == OUTPUT_HEIGHTS ? g_out * theta : g_out;
        g_S = (detach_adaptation ? g_z : g_z + theta * g_jump) * d;
        g->s_hat = (g->s_hat - g_S) * c.decay_eta;
        g->adaptation = g_adaptation + z * (output == OUTPUT_HEIGHTS ? g_jump + g_out : g_jump) - 0.5f * g_S;
    }
    g->s = g->s + g_S;
    g->psc = g->psc + (1.0f - c.decay_phi) * g->s;
    g->s = g->s * c.decay_phi;
    *g_current = g->psc;
    g->psc = analog_input ? 0.0f : g->psc * c.decay_beta;
    return g_S;
}
