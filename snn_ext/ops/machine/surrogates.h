/* The surrogates, for C and for CUDA. STEP_FUNCTION and exp_of_negative (a fast exp) are defined before. */

/* The derivative that stands in for that of the spike, at u = h - theta. */
STEP_FUNCTION float surrogate(float u, int curve, float alpha) {
    const float pi = 3.14159265358979f;
    const float magnitude = u < 0.0f ? -u : u;
    float e, d;
    switch (curve) {
        case SIGMOID: e = exp_of_negative(-(alpha * magnitude)), d = 1.0f + e; return alpha * e / (d * d);
        case ATAN: d = 0.5f * pi * alpha * u; return 0.5f * alpha / (1.0f + d * d);
        case PIECEWISE_QUADRATIC: d = alpha - alpha * alpha * magnitude; return d < 0.0f ? 0.0f : d;
        case PIECEWISE_EXP: return 0.5f * alpha * exp_of_negative(-(alpha * magnitude));
        case SOFT_SIGN: d = 1.0f + alpha * magnitude; return 0.5f * alpha / (d * d);
        case SUPER_SPIKE: d = 1.0f + magnitude; return alpha / (d * d);
        default: d = alpha * u; return alpha * 0.564189583547756f * exp_of_negative(-(d * d)); /* ERF */
    }
}
