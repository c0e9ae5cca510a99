/* Blocks of matrix products on Intel's matrix units (AMX): numbers of bfloat16, sums in float32.

   A tile is 16 rows of 64 bytes. TDPBF16PS multiplies a tile of A, 16 x 32, with one of B, 32 x 16, of which a row holds two
   rows of the matrix, number beside number (Intel, Architecture Instruction Set Extensions, chapter 3). Four of them
   make a block of 32 x 32 from two tiles of each. Both matrices are first copied into such tiles: a step is a depth of 32. */

#ifndef TILES_H
#define TILES_H

#include "numbers.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512VL__) && defined(__linux__)
#define MATRIX_UNITS

#include <immintrin.h>

#define SIDE 16
#define STEP 32
#define TILE 512
#define UP(n, m) (((n) + (m) - 1) / (m) * (m))
#define PARTS(n, m) (((n) + (m) - 1) / (m))
#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* The next `size` bytes of a thread's scratch memory, which begin on a line of the cache. */
static inline void *room(char **scratch, int64_t size) {
    void *found = *scratch;
    *scratch += UP(size, 64);
    return found;
}

static inline void configure(void) {
    uint8_t tiles[64] = {1};
    for (int t = 0; t < 8; t++) {
        tiles[16 + 2 * t] = 64;
        tiles[48 + t] = SIDE;
    }
    _tile_loadconfig(tiles);
}

static inline __mmask32 first32(int64_t n) { return n >= 32 ? 0xffffffffu : n <= 0 ? 0 : (1u << n) - 1; }
static inline __mmask16 first16(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (uint16_t)((1u << n) - 1); }

/* 32 rows of A, of which `rows` are there: for each step two tiles. */
static inline void pack_rows(const bf16 *a, int64_t stride, int64_t rows, int64_t depth, bf16 *out) {
    for (int64_t s = 0; s * STEP < depth; s++) {
        __mmask32 mask = first32(depth - s * STEP);
        for (int64_t r = 0; r < 2 * SIDE; r++) {
            __m512i row = r < rows ? _mm512_maskz_loadu_epi16(mask, a + r * stride + s * STEP) : _mm512_setzero_si512();
            _mm512_store_si512(out + s * 2 * TILE + r * STEP, row);
        }
    }
}

/* B that lies as (depth, columns): for each 16 columns room for `steps` tiles. */
static void pack_down(const bf16 *b, int64_t stride, int64_t depth, int64_t columns, int64_t steps, bf16 *out) {
    for (int64_t s = 0; s * STEP < depth; s++)
        for (int64_t j = 0; j * SIDE < columns; j++) {
            __mmask16 mask = first16(columns - j * SIDE);
            bf16 *tile = out + (j * steps + s) * TILE;
            for (int64_t r = 0; r < SIDE; r++) {
                int64_t k = s * STEP + 2 * r;
                const bf16 *from = b + k * stride + j * SIDE;
                __m512i low = _mm512_setzero_si512(), high = low;
                if (k < depth) low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
                if (k + 1 < depth) high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + stride));
                _mm512_store_si512(tile + r * STEP, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        }
}

/* Transposes 16 x 16 numbers of 32 bits. */
static inline void turn(__m512i x[16]) {
    __m512i y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
        x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
        x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xdd);
    }
}

/* B that lies as (columns, depth), into the same tiles. */
static void pack_across(const bf16 *b, int64_t stride, int64_t depth, int64_t columns, int64_t steps, bf16 *out) {
    for (int64_t j = 0; j * SIDE < columns; j++)
        for (int64_t s = 0; s * STEP < depth; s++) {
            __mmask32 mask = first32(depth - s * STEP);
            const bf16 *from = b + j * SIDE * stride + s * STEP;
            bf16 *tile = out + (j * steps + s) * TILE;
            __m512i x[16];
            for (int64_t i = 0; i < SIDE; i++)
                x[i] = j * SIDE + i < columns ? _mm512_maskz_loadu_epi16(mask, from + i * stride) : _mm512_setzero_si512();
            turn(x);
            for (int64_t i = 0; i < SIDE; i++) _mm512_store_si512(tile + i * STEP, x[i]);
        }
}

/* A block of sums is in the tiles 0 to 3, in memory 32 rows of `stride` numbers. */
static inline void block_zero(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

static inline void block_load(const float *from, int64_t stride) {
    _tile_loadd(0, from, stride * 4);
    _tile_loadd(1, from + SIDE, stride * 4);
    _tile_loadd(2, from + SIDE * stride, stride * 4);
    _tile_loadd(3, from + SIDE * stride + SIDE, stride * 4);
}

static inline void block_store(float *to, int64_t stride) {
    _tile_stored(0, to, stride * 4);
    _tile_stored(1, to + SIDE, stride * 4);
    _tile_stored(2, to + SIDE * stride, stride * 4);
    _tile_stored(3, to + SIDE * stride + SIDE, stride * 4);
}

/* Adds to the block: rows in `a`, columns in `b` and, `apart` numbers behind, the next 16. */
static inline void block_add(const bf16 *a, const bf16 *b, int64_t apart, int64_t steps) {
    for (int64_t s = 0; s < steps; s++, a += 2 * TILE, b += TILE) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(5, a + TILE, 64);
        _tile_loadd(7, b + apart, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

/* The same of a block that has no more than 16 columns, or rows: the other tiles stay as they are. */
static inline void block_add_left(const bf16 *a, const bf16 *b, int64_t steps) {
    for (int64_t s = 0; s < steps; s++, a += 2 * TILE, b += TILE) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(5, a + TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(2, 5, 6);
    }
}

static inline void block_add_top(const bf16 *a, const bf16 *b, int64_t apart, int64_t steps) {
    for (int64_t s = 0; s < steps; s++, a += 2 * TILE, b += TILE) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_loadd(7, b + apart, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
    }
}

static inline __m512i narrow32(const float *from, float factor) {
    __m512 by = _mm512_set1_ps(factor);
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_load_ps(from + SIDE), by), _mm512_mul_ps(_mm512_load_ps(from), by));
}

/* A block of 32 x 32 in memory, times a factor and rounded once, as far as rows and columns are there. */
static inline void block_narrow(const float *block, float factor, bf16 *out, int64_t stride, int64_t rows, int64_t columns) {
    __mmask32 mask = first32(columns);
    for (int64_t r = 0; r < MIN(rows, 2 * SIDE); r++)
        _mm512_mask_storeu_epi16(out + r * stride, mask, narrow32(block + r * 2 * SIDE, factor));
}

#endif
#endif
