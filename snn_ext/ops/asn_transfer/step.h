/* One element of asn_transfer and of its derivative, for C and for CUDA; STEP_FUNCTION is defined before. */

/* coth(y) for y in (0, 1): y coth(y) is a polynomial in y^2, here to 1e-9 (Chebyshev). Nothing cancels for small y. */
STEP_FUNCTION float coth_of(float y) {
    const float z = y * y;
    float p = 1.5951797e-5f;
    p = p * z - 2.0589732e-4f;
    p = p * z + 2.1135086e-3f;
    p = p * z - 2.2221554e-2f;
    p = p * z + 3.3333328e-1f;
    p = p * z + 1.0f;
    return p / y;
}

STEP_FUNCTION float transfer(float s, float r, float a, float b, float half_height, float offset, float cut) {
    const float f = half_height * coth_of(0.5f * (r + a / ((s < 0.0f ? 0.0f : s) + b))) + offset;
    return s <= cut || f < 0.0f ? 0.0f : f;
}

/* f' = half_height (coth^2 - 1) w^2 / (2 a) with w = a / (s + b). */
STEP_FUNCTION float transfer_slope(float s, float r, float a, float b, float half_height, float offset, float cut) {
    const float w = a / ((s < 0.0f ? 0.0f : s) + b), k = coth_of(0.5f * (r + w));
    const float slope = half_height * (k * k - 1.0f) * (w * w) * (0.5f / a);
    return s <= cut || half_height * k + offset < 0.0f ? 0.0f : slope;
}
