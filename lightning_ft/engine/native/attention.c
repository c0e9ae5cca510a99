/* Causal attention of the documents of a packed row on matrix units, without a score in memory longer than a block needs it.

   As FlashAttention-2 (Dao 2023, arXiv:2307.08691): the forward pass keeps log sum exp of each query's scores, the backward
   pass makes the probabilities again. What a block multiplies behind the last key is never read. A task is a document and a
   head of keys, so that no two threads write to one place. */

#include "tiles.h"

#ifdef MATRIX_UNITS

#define QUERIES 64 /* in one block of the backward pass */

/* A tensor of (heads, tokens, width): where it begins, and how far heads and tokens are apart. */
typedef struct {
    const bf16 *at;
    int64_t head, token;
} Heads;

static inline const bf16 *place(const Heads *x, int64_t head, int64_t token) { return x->at + head * x->head + token * x->token; }

static int64_t longest_of(const int64_t *borders, int64_t documents) {
    int64_t longest = 0;
    for (int64_t d = 0; d < documents; d++)
        if (borders[d + 1] - borders[d] > longest) longest = borders[d + 1] - borders[d];
    return UP(longest, QUERIES);
}

/* Bytes for each thread: of the forward and of the backward pass. */
int64_t attend_room(int64_t longest, int64_t depth, int64_t width) {
    int64_t tokens = UP(longest, QUERIES), deep = UP(depth, 32), broad = UP(width, 32);
    return tokens * (deep + broad) * 2 + deep * 64 + tokens * 64 + tokens * 128 + 4096;
}

int64_t attend_back_room(int64_t longest, int64_t depth, int64_t width) {
    int64_t tokens = UP(longest, QUERIES), deep = UP(depth, 32), broad = UP(width, 32);
    return tokens * (2 * deep + broad) * 2 + (deep + broad) * 64 + (deep + broad) * QUERIES * 2 + tokens * (4 * QUERIES * 2 + 64) +
           tokens * 256 + 4096 + (deep + broad) * tokens * 4;
}

void attend(
    const bf16 *q_at, int64_t q_head, int64_t q_token, const bf16 *k_at, int64_t k_head, int64_t k_token, const bf16 *v_at,
    int64_t v_head, int64_t v_token, const int64_t *borders, int64_t documents, int64_t heads, int64_t groups, int64_t depth,
    int64_t width, float scale, bf16 *out, float *lse, char *scratch, int64_t threads
) {
    Heads q = {q_at, q_head, q_token}, k = {k_at, k_head, k_token}, v = {v_at, v_head, v_token};
    int64_t shared = heads / groups, total = borders[documents], steps = PARTS(depth, STEP), most = longest_of(borders, documents);
    int64_t number = 0, size = attend_room(most, depth, width);
#pragma omp parallel num_threads((int)threads)
    {
        int64_t own;
#pragma omp atomic capture
        own = number++;
        char *here = scratch + own * size;
        bf16 *kp = room(&here, most * steps * 64), *vp = room(&here, most * UP(width, 32) * 2);
        bf16 *qp = room(&here, steps * 2048), *p = room(&here, most * 64);
        float *scores = room(&here, most * 128), *block = room(&here, 4096);
        configure();
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t d = 0; d < documents; d++)
            for (int64_t g = 0; g < groups; g++) {
                int64_t start = borders[d], tokens = borders[d + 1] - start, row = UP(tokens, QUERIES);
                pack_across(place(&k, g, start), k.token, depth, tokens, steps, kp);
                pack_down(place(&v, g, start), v.token, tokens, width, row / STEP, vp);
                for (int64_t h = g * shared; h < (g + 1) * shared; h++)
                    for (int64_t i = 0; i < tokens; i += 32) {
                        int64_t rows = MIN(32, tokens - i), end = i + 32;
                        pack_rows(place(&q, h, start + i), q.token, rows, depth, qp);
                        for (int64_t j = 0; j < end; j += 32) {
                            block_zero();
                            block_add(qp, kp + j * steps * STEP, steps * TILE, steps);
                            block_store(scores + j, row);
                        }
                        for (int64_t r = 0; r < 32; r++) {
                            float *z = scores + r * row, top = -INFINITY, sum = 0.0f;
                            for (int64_t c = i + r + 1; c < end; c++) z[c] = -INFINITY;
#pragma omp simd reduction(max : top)
                            for (int64_t c = 0; c < end; c++) top = z[c] > top ? z[c] : top;
#pragma omp simd reduction(+ : sum)
                            for (int64_t c = 0; c < end; c++) {
                                z[c] = exponential((z[c] - top) * scale);
                                sum += z[c];
                            }
                            if (r < rows) lse[h * total + start + i + r] = top * scale + logf(sum);
                            for (int64_t c = 0; c < end; c += 32)
                                _mm512_store_si512(p + c * 32 + r * 32, narrow32(z + c, 1.0f / sum));
                        }
                        for (int64_t e = 0; e < width; e += 32) {
                            block_zero();
                            block_add(p, vp + e * row, row * SIDE, end / STEP);
                            block_store(block, 32);
                            block_narrow(block, 1.0f, out + ((start + i) * heads + h) * width + e, heads * width, rows, width - e);
                        }
                    }
            }
        _tile_release();
    }
}

/* (rows, columns) as rows of its transpose: for each 32 columns `steps` steps of two tiles. A tile of B holds pairs of
   rows; turned, it holds columns. */
static void pack_turned(const bf16 *from, int64_t stride, int64_t rows, int64_t columns, int64_t steps, bf16 *out) {
    memset(out, 0, (size_t)(UP(columns, 32) * steps * STEP * 2));
    for (int64_t s = 0; s * STEP < rows; s++)
        for (int64_t j = 0; j * SIDE < columns; j++) {
            __m512i x[16];
            bf16 *tile = out + (j / 2 * steps + s) * 2 * TILE + j % 2 * TILE;
            pack_down(from + s * STEP * stride + j * SIDE, stride, MIN(STEP, rows - s * STEP), MIN(SIDE, columns - j * SIDE), 1, tile);
            for (int64_t i = 0; i < SIDE; i++) x[i] = _mm512_load_si512(tile + i * STEP);
            turn(x);
            for (int64_t i = 0; i < SIDE; i++) _mm512_store_si512(tile + i * STEP, x[i]);
        }
}

/* The transpose of (width, row) in float32, times a factor, to (tokens, width) in bfloat16. */
static void narrow_turned(const float *from, int64_t row, int64_t tokens, int64_t width, float factor, bf16 *out, int64_t stride) {
    for (int64_t t = 0; t < tokens; t += SIDE)
        for (int64_t e = 0; e < width; e += SIDE) {
            __m512i x[16];
            for (int64_t i = 0; i < SIDE; i++) {
                __m512 numbers = _mm512_load_ps(from + (e + i) * row + t);
                x[i] = _mm512_castps_si512(_mm512_mul_ps(numbers, _mm512_set1_ps(factor)));
            }
            turn(x);
            for (int64_t i = 0; i < MIN(SIDE, tokens - t); i++) {
                __m256i numbers = (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(x[i]));
                _mm256_mask_storeu_epi16(out + (t + i) * stride + e, first16(width - e), numbers);
            }
        }
}

void attend_back(
    const bf16 *q_at, int64_t q_head, int64_t q_token, const bf16 *k_at, int64_t k_head, int64_t k_token, const bf16 *v_at,
    int64_t v_head, int64_t v_token, const int64_t *borders, int64_t documents, int64_t heads, int64_t groups, int64_t depth,
    int64_t width, float scale, const bf16 *out, const bf16 *grad, const float *lse, bf16 *dq, bf16 *dk, bf16 *dv, char *scratch,
    int64_t threads
) {
    Heads q = {q_at, q_head, q_token}, k = {k_at, k_head, k_token}, v = {v_at, v_head, v_token};
    int64_t shared = heads / groups, total = borders[documents], most = longest_of(borders, documents), parts = QUERIES / STEP;
    int64_t steps = PARTS(depth, STEP), steps_v = PARTS(width, STEP), number = 0, size = attend_back_room(most, depth, width);
    int64_t line = heads * width;
#pragma omp parallel num_threads((int)threads)
    {
        int64_t own;
#pragma omp atomic capture
        own = number++;
        char *here = scratch + own * size;
        bf16 *kp = room(&here, most * steps * 64), *kd = room(&here, most * steps * 64), *vp = room(&here, most * steps_v * 64);
        bf16 *qp = room(&here, steps * 2048), *gp = room(&here, steps_v * 2048);
        bf16 *qt = room(&here, steps * 32 * QUERIES * 2), *gt = room(&here, steps_v * 32 * QUERIES * 2);
        bf16 *p = room(&here, most * QUERIES * 2), *ds = room(&here, most * QUERIES * 2), *ds_rows = room(&here, most * 64);
        bf16 *p_down = room(&here, most * QUERIES * 2), *ds_down = room(&here, most * QUERIES * 2);
        float *scores = room(&here, most * 128), *dp = room(&here, most * 128), *block = room(&here, 4096);
        float *kt = room(&here, steps * 32 * most * 4), *vt = room(&here, steps_v * 32 * most * 4);
        configure();
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t d = 0; d < documents; d++)
            for (int64_t g = 0; g < groups; g++) {
                int64_t start = borders[d], tokens = borders[d + 1] - start, row = UP(tokens, QUERIES);
                pack_across(place(&k, g, start), k.token, depth, tokens, steps, kp);
                pack_down(place(&k, g, start), k.token, tokens, depth, row / STEP, kd);
                pack_across(place(&v, g, start), v.token, width, tokens, steps_v, vp);
                memset(kt, 0, (size_t)(steps * 32 * row * 4));
                memset(vt, 0, (size_t)(steps_v * 32 * row * 4));
                for (int64_t h = g * shared; h < (g + 1) * shared; h++)
                    for (int64_t b = 0; b < tokens; b += QUERIES) {
                        int64_t keys = b + QUERIES, queries = MIN(QUERIES, tokens - b);
                        const bf16 *g_block = grad + ((start + b) * heads + h) * width, *o_block = out + (g_block - grad);
                        memset(p, 0, (size_t)(QUERIES * row * 2));
                        memset(ds, 0, (size_t)(QUERIES * row * 2));
                        for (int64_t i = 0; i < queries; i += 32) {
                            int64_t rows = MIN(32, queries - i), end = b + i + 32;
                            pack_rows(place(&q, h, start + b + i), q.token, rows, depth, qp);
                            pack_rows(g_block + i * line, line, rows, width, gp);
                            for (int64_t j = 0; j < end; j += 32) {
                                block_zero();
                                block_add(qp, kp + j * steps * STEP, steps * TILE, steps);
                                block_store(scores + j, row);
                                block_zero();
                                block_add(gp, vp + j * steps_v * STEP, steps_v * TILE, steps_v);
                                block_store(dp + j, row);
                            }
                            for (int64_t r = 0; r < 32; r++) {
                                float *z = scores + r * row, *y = dp + r * row, delta = 0.0f, sum = INFINITY;
                                int64_t seen = 0;
                                if (r < rows) {
                                    const bf16 *g_row = g_block + (i + r) * line, *o_row = o_block + (i + r) * line;
                                    seen = b + i + r + 1;
                                    sum = lse[h * total + start + b + i + r];
#pragma omp simd reduction(+ : delta)
                                    for (int64_t c = 0; c < width; c++) delta += wide(g_row[c]) * wide(o_row[c]);
                                }
                                for (int64_t c = seen; c < end; c++) z[c] = -INFINITY, y[c] = 0.0f;
#pragma omp simd
                                for (int64_t c = 0; c < end; c++) {
                                    z[c] = exponential(z[c] * scale - sum);
                                    y[c] = z[c] * (y[c] - delta);
                                }
                                for (int64_t c = 0; c < end; c += 32) {
                                    __m512i numbers = narrow32(y + c, 1.0f);
                                    _mm512_store_si512(p + (i + r) * row + c, narrow32(z + c, 1.0f));
                                    _mm512_store_si512(ds + (i + r) * row + c, numbers);
                                    _mm512_store_si512(ds_rows + c * 32 + r * 32, numbers);
                                }
                            }
                            for (int64_t e = 0; e < depth; e += 32) {
                                block_zero();
                                block_add(ds_rows, kd + e * row, row * SIDE, end / STEP);
                                block_store(block, 32);
                                bf16 *to = dq + ((start + b + i) * heads + h) * depth + e;
                                block_narrow(block, scale, to, heads * depth, rows, depth - e);
                            }
                        }
                        pack_turned(place(&q, h, start + b), q.token, queries, depth, parts, qt);
                        pack_turned(g_block, line, queries, width, parts, gt);
                        pack_down(p, row, QUERIES, keys, parts, p_down);
                        pack_down(ds, row, QUERIES, keys, parts, ds_down);
                        for (int64_t j = 0; j < keys; j += 32) {
                            for (int64_t e = 0; e < steps * 32; e += 32) {
                                block_load(kt + e * row + j, row);
                                block_add(qt + e * QUERIES, ds_down + j * QUERIES, QUERIES * SIDE, parts);
                                block_store(kt + e * row + j, row);
                            }
                            for (int64_t e = 0; e < steps_v * 32; e += 32) {
                                block_load(vt + e * row + j, row);
                                block_add(gt + e * QUERIES, p_down + j * QUERIES, QUERIES * SIDE, parts);
                                block_store(vt + e * row + j, row);
                            }
                        }
                    }
                narrow_turned(kt, row, tokens, depth, scale, dk + (start * groups + g) * depth, groups * depth);
                narrow_turned(vt, row, tokens, width, 1.0f, dv + (start * groups + g) * width, groups * width);
            }
        _tile_release();
    }
}

#endif
