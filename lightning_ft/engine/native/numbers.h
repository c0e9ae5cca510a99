/* bfloat16 and float32 in C. */

#ifndef NUMBERS_H
#define NUMBERS_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

static inline float wide(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

/* To the nearest, ties to even; NaN stays NaN. */
static inline bf16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)rounded;
}

/* e^x to 2 units in the last place (Cephes, expf): e^x = 2^n e^r with n = round(x / log 2). 0 below -87, no more than e^88. */
static inline float exponential(float x) {
    float low = x < -87.0f ? -87.0f : x, clamped = low > 88.0f ? 88.0f : low;
    float n = rintf(clamped * 1.44269504088896341f);
    float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t shift = (int32_t)n << 23, bits;
    memcpy(&bits, &p, 4);
    bits += shift;
    memcpy(&p, &bits, 4);
    return x < -87.0f ? 0.0f : p;
}

#endif
