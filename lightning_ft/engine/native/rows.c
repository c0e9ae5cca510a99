/* Kernels of the hot path on a CPU in bfloat16: each reads its inputs once, computes in float32 and rounds once.

   native_kernels.py compiles the files here with the machine's own compiler and says what each function does. Rows are spread over
   OpenMP's threads, which are torch's; no result depends on how many there are, but for the sum in norm_back. */

#include "numbers.h"

void gated(const bf16 *gate, const bf16 *up, bf16 *out, int64_t size) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < size; i++) {
        float g = wide(gate[i]);
        out[i] = narrow(g / (1.0f + exponential(-g)) * wide(up[i]));
    }
}

void gated_back(const bf16 *grad, const bf16 *gate, const bf16 *up, bf16 *d_gate, bf16 *d_up, int64_t size) {
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < size; i++) {
        float d = wide(grad[i]), g = wide(gate[i]), u = wide(up[i]), s = 1.0f / (1.0f + exponential(-g));
        d_gate[i] = narrow(d * u * s * (1.0f + g * (1.0f - s)));
        d_up[i] = narrow(d * g * s);
    }
}

void rotated(
    const bf16 *x, const bf16 *cos, const bf16 *sin, bf16 *out, int64_t rows, int64_t heads, int64_t length, int64_t width,
    int64_t x_row, int64_t x_head, int64_t x_token, int64_t table_row, int back
) {
    int64_t half = width / 2;
    float sign = back ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < rows * length; at++) {
        int64_t row = at / length, token = at % length;
        const bf16 *c = cos + row * table_row + token * width, *s = sin + row * table_row + token * width;
        for (int64_t head = 0; head < heads; head++) {
            const bf16 *from = x + row * x_row + head * x_head + token * x_token;
            bf16 *to = out + (at * heads + head) * width;
            /* The transposed matrix has the sines of the other half. */
            const bf16 *s1 = back ? s + half : s, *s2 = back ? s : s + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                float a = wide(from[i]), b = wide(from[i + half]);
                to[i] = narrow(a * wide(c[i]) - sign * b * wide(s1[i]));
                to[i + half] = narrow(b * wide(c[i + half]) + sign * a * wide(s2[i]));
            }
        }
    }
}

void likelihood(
    bf16 *logits, const int64_t *targets, float *nll, uint8_t *hits, int64_t rows, int64_t size, float smoothing, int gradient
) {
#pragma omp parallel
    {
        float *e = malloc((size_t)size * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            bf16 *here = logits + row * size;
            int64_t target = targets[row];
            float picked = wide(here[target]), top = -INFINITY, total = 0.0f, plain = 0.0f;
#pragma omp simd reduction(max : top)
            for (int64_t i = 0; i < size; i++) {
                float z = wide(here[i]);
                top = z > top ? z : top;
            }
            if (hits) {
                int64_t best = 0;
                while (best < size - 1 && wide(here[best]) != top) best++;
                hits[row] = best == target;
            }
#pragma omp simd reduction(+ : total, plain)
            for (int64_t i = 0; i < size; i++) {
                float z = wide(here[i]);
                e[i] = exponential(z - top);
                total += e[i];
                plain += z;
            }
            nll[row] = top + logf(total) - (1.0f - smoothing) * picked - smoothing * (plain / (float)size);
            if (gradient) {
                float share = 1.0f / total, spread = smoothing / (float)size;
#pragma omp simd
                for (int64_t i = 0; i < size; i++) here[i] = narrow(e[i] * share - spread);
                here[target] = narrow(e[target] * share - spread - (1.0f - smoothing));
            }
        }
        free(e);
    }
}

void norm(const bf16 *x, const bf16 *weight, bf16 *out, float *scale, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *here = x + row * size;
        float total = 0.0f;
#pragma omp simd reduction(+ : total)
        for (int64_t i = 0; i < size; i++) total += wide(here[i]) * wide(here[i]);
        float r = 1.0f / sqrtf(total / (float)size + eps);
        scale[row] = r;
#pragma omp simd
        for (int64_t i = 0; i < size; i++) out[row * size + i] = narrow(wide(weight[i]) * wide(narrow(wide(here[i]) * r)));
    }
}

void norm_back(
    const bf16 *grad, const bf16 *x, const bf16 *weight, const float *scale, bf16 *d_x, float *d_weight, int64_t rows, int64_t size
) {
#pragma omp parallel
    {
        float *own = d_weight ? calloc((size_t)size, sizeof(float)) : NULL;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            const bf16 *g = grad + row * size, *here = x + row * size;
            float r = scale[row], mean = 0.0f;
#pragma omp simd reduction(+ : mean)
            for (int64_t i = 0; i < size; i++) mean += wide(g[i]) * wide(weight[i]) * wide(here[i]) * r;
            mean /= (float)size;
#pragma omp simd
            for (int64_t i = 0; i < size; i++)
                d_x[row * size + i] = narrow((wide(g[i]) * wide(weight[i]) - wide(here[i]) * r * mean) * r);
            if (own) {
#pragma omp simd
                for (int64_t i = 0; i < size; i++) own[i] += wide(g[i]) * wide(narrow(wide(here[i]) * r));
            }
        }
        if (own) {
#pragma omp critical
            for (int64_t i = 0; i < size; i++) d_weight[i] += own[i];
            free(own);
        }
    }
}

/* Rows are a multiple of 16 wide, and so is what is computed of them: behind what a query sees, as little as that takes. */
#define UP(n) (((n) + 15) & ~(int64_t)15)

void causal(bf16 *scores, int64_t rows, int64_t block, int64_t width, int64_t start) {
#pragma omp parallel
    {
        float *e = malloc((size_t)width * sizeof(float));
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++) {
            bf16 *here = scores + row * width;
            int64_t seen = start + row % block + 1, end = UP(seen);
            float top = -INFINITY, total = 0.0f;
            for (int64_t i = seen; i < end; i++) here[i] = 0xff80; /* minus infinity */
#pragma omp simd simdlen(16) reduction(max : top)
            for (int64_t i = 0; i < end; i++) top = wide(here[i]) > top ? wide(here[i]) : top;
#pragma omp simd simdlen(16) reduction(+ : total)
            for (int64_t i = 0; i < end; i++) {
                e[i] = exponential(wide(here[i]) - top);
                total += e[i];
            }
            float share = 1.0f / total;
#pragma omp simd simdlen(16)
            for (int64_t i = 0; i < end; i++) here[i] = narrow(e[i] * share);
            memset(here + end, 0, (size_t)(width - end) * sizeof(bf16));
        }
        free(e);
    }
}

void causal_back(bf16 *grad, const bf16 *p, int64_t rows, int64_t block, int64_t width, int64_t start) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        bf16 *g = grad + row * width;
        const bf16 *own = p + row * width;
        int64_t end = UP(start + row % block + 1);
        float total = 0.0f;
#pragma omp simd simdlen(16) reduction(+ : total)
        for (int64_t i = 0; i < end; i++) total += wide(g[i]) * wide(own[i]);
#pragma omp simd simdlen(16)
        for (int64_t i = 0; i < end; i++) g[i] = narrow(wide(own[i]) * (wide(g[i]) - total));
        memset(g + end, 0, (size_t)(width - end) * sizeof(bf16));
    }
}
