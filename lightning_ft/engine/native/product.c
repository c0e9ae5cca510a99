/* Products of matrices in bfloat16 on matrix units, and a thin product added before anything is rounded. */

#include "tiles.h"

#ifndef MATRIX_UNITS

int matrix_units(void) { return 0; }

#else

#include <sys/syscall.h>
#include <unistd.h>

/* Whether the kernel lets the process use them (Linux, Documentation/arch/x86/xstate.rst: ARCH_REQ_XCOMP_PERM, XTILEDATA). */
int matrix_units(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

/* A panel of B, DEPTH x PANEL, stays in the second cache while all rows of A pass by, 32 at a time, in the first. */
#define DEPTH 1024
#define PANEL 512

typedef struct {
    int64_t panel, panels, part, parts, depth, extra, steps; /* columns, rows, and depth of B in one piece; in steps */
    int64_t b, a, sums;                                      /* bytes for each thread */
} Plan;

static Plan plan_of(int64_t m, int64_t n, int64_t k, int64_t more, int64_t threads) {
    Plan x;
    x.panel = UP(PARTS(n, threads * PARTS(n, threads * PANEL)), 2 * SIDE);
    x.panels = PARTS(n, x.panel);
    x.part = UP(PARTS(m, x.panels < threads ? threads / x.panels : 1), 2 * SIDE);
    x.parts = PARTS(m, x.part);
    x.depth = UP(PARTS(k, PARTS(k, DEPTH)), STEP);
    x.extra = PARTS(more, STEP);
    x.steps = x.depth / STEP + x.extra;
    x.b = x.panel / SIDE * x.steps * TILE * 2;
    x.a = 2 * x.steps * TILE * 2;
    x.sums = (x.depth < k ? x.part * x.panel : 8 * SIDE * SIDE) * 4;
    return x;
}

int64_t product_room(int64_t m, int64_t n, int64_t k, int64_t more, int64_t threads) {
    Plan x = plan_of(m, n, k, more, threads);
    return x.b + x.a + x.sums;
}

void product(
    const bf16 *a, int64_t a_row, const bf16 *b, int64_t b_row, bf16 *c, int64_t c_row, int64_t m, int64_t n, int64_t k, int across,
    const bf16 *a2, int64_t a2_row, const bf16 *b2, int64_t b2_row, int64_t more, char *scratch, int64_t threads
) {
    Plan x = plan_of(m, n, k, more, threads);
    void (*pack)(const bf16 *, int64_t, int64_t, int64_t, int64_t, bf16 *) = across ? pack_across : pack_down;
    int64_t number = 0;
#pragma omp parallel num_threads((int)threads)
    {
        int64_t own;
#pragma omp atomic capture
        own = number++;
        char *here = scratch + own * (x.b + x.a + x.sums);
        bf16 *bp = room(&here, x.b), *ap = room(&here, x.a);
        float *sums = room(&here, x.sums);
        configure();
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t p = 0; p < x.panels; p++)
            for (int64_t q = 0; q < x.parts; q++) {
                int64_t n0 = p * x.panel, columns = MIN(x.panel, n - n0), m0 = q * x.part, m1 = MIN(m, m0 + x.part);
                for (int64_t k0 = 0; k0 < k; k0 += x.depth) {
                    int64_t deep = MIN(x.depth, k - k0), steps = PARTS(deep, STEP), all = steps;
                    int last = k0 + x.depth >= k;
                    pack(across ? b + n0 * b_row + k0 : b + k0 * b_row + n0, b_row, deep, columns, x.steps, bp);
                    if (last && more) {
                        pack(across ? b2 + n0 * b2_row : b2 + n0, b2_row, more, columns, x.steps, bp + steps * TILE);
                        all += x.extra;
                    }
                    const float *wait = NULL;
                    int64_t wait_i = 0, wait_j = 0;
                    for (int64_t i = m0; i < m1; i += 2 * SIDE) {
                        pack_rows(a + i * a_row + k0, a_row, m1 - i, deep, ap);
                        if (last && more) pack_rows(a2 + i * a2_row, a2_row, m1 - i, more, ap + steps * 2 * TILE);
                        for (int64_t j = 0; j < columns; j += 2 * SIDE) {
                            float *block = x.depth < k ? sums + ((i - m0) * x.panel + j * 2 * SIDE) : wait == sums ? sums + 4 * SIDE * SIDE : sums;
                            k0 ? block_load(block, 2 * SIDE) : block_zero();
                            const bf16 *tiles = bp + j * x.steps * STEP;
                            if (columns - j <= SIDE)
                                block_add_left(ap, tiles, all);
                            else if (m1 - i <= SIDE)
                                block_add_top(ap, tiles, x.steps * TILE, all);
                            else
                                block_add(ap, tiles, x.steps * TILE, all);
                            /* The block before, while the units are at this one. */
                            if (wait) block_narrow(wait, 1.0f, c + wait_i * c_row + n0 + wait_j, c_row, m1 - wait_i, columns - wait_j);
                            block_store(block, 2 * SIDE);
                            if (last) wait = block, wait_i = i, wait_j = j;
                        }
                    }
                    if (wait) block_narrow(wait, 1.0f, c + wait_i * c_row + n0 + wait_j, c_row, m1 - wait_i, columns - wait_j);
                }
            }
        _tile_release();
    }
}

#endif
