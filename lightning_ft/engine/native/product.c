/* Products of matrices in bfloat16 on matrix units, and an adapter's beside them, added before anything is rounded. */

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
#define PANEL 768

typedef struct {
    int64_t panel, panels, part, parts, depth, extra, steps; /* columns, rows and depth of B in one piece; extra and all steps */
    int64_t b, a, u, sums, thin;                             /* bytes for each thread */
} Plan;

static Plan plan_of(int64_t m, int64_t n, int64_t k, int64_t rank, int64_t threads) {
    Plan x;
    x.panel = UP(PARTS(n, threads * PARTS(n, threads * PANEL)), 2 * SIDE);
    x.panels = PARTS(n, x.panel);
    x.part = UP(PARTS(m, x.panels < threads ? threads / x.panels : 1), 2 * SIDE);
    x.parts = PARTS(m, x.part);
    x.depth = UP(PARTS(k, PARTS(k, DEPTH)), STEP);
    x.extra = PARTS(rank, STEP);
    x.steps = x.depth / STEP + x.extra;
    x.b = x.panel / SIDE * x.steps * TILE * 2;
    x.a = 2 * x.steps * TILE * 2;
    x.u = 2 * x.extra * x.steps * TILE * 2;
    x.sums = (x.depth < k ? x.part * x.panel : 8 * SIDE * SIDE) * 4; /* else two blocks, in turn */
    x.thin = x.extra * (x.depth < k ? x.part : 2 * SIDE) * 2 * SIDE * 4;
    return x;
}

int64_t product_room(int64_t m, int64_t n, int64_t k, int64_t rank, int64_t threads) {
    Plan x = plan_of(m, n, k, rank, threads);
    return x.b + x.a + x.u + x.sums + x.thin;
}

/* Adds a block of at most 32 columns; less work where columns or rows are at most 16. */
static inline void add(const bf16 *a, const bf16 *tiles, int64_t apart, int64_t steps, int64_t rows, int64_t columns) {
    if (columns <= SIDE)
        block_add_left(a, tiles, steps);
    else if (rows <= SIDE)
        block_add_top(a, tiles, apart, steps);
    else
        block_add(a, tiles, apart, steps);
}

/* c = a b + t v with t = a u, rounded; all that stand on the right lie turned where `across` says so. */
void product(
    const bf16 *a, int64_t a_row, const bf16 *b, int64_t b_row, bf16 *c, int64_t c_row, int64_t m, int64_t n, int64_t k, int across,
    const bf16 *u, int64_t u_row, const bf16 *v, int64_t v_row, bf16 *t, int64_t rank, char *scratch, int64_t threads
) {
    Plan x = plan_of(m, n, k, rank, threads);
    void (*pack)(const bf16 *, int64_t, int64_t, int64_t, int64_t, bf16 *) = across ? pack_across : pack_down;
    int64_t number = 0, room_of_one = product_room(m, n, k, rank, threads), apart = x.steps * TILE;
#pragma omp parallel num_threads((int)threads)
    {
        int64_t own;
#pragma omp atomic capture
        own = number++;
        char *here = scratch + own * room_of_one;
        bf16 *bp = room(&here, x.b), *ap = room(&here, x.a), *up = room(&here, x.u);
        float *sums = room(&here, x.sums), *thin = room(&here, x.thin);
        configure();
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t p = 0; p < x.panels; p++)
            for (int64_t q = 0; q < x.parts; q++) {
                int64_t n0 = p * x.panel, columns = MIN(x.panel, n - n0), m0 = q * x.part, m1 = MIN(m, m0 + x.part);
                for (int64_t k0 = 0; k0 < k; k0 += x.depth) {
                    int64_t deep = MIN(x.depth, k - k0), steps = PARTS(deep, STEP);
                    int first = k0 == 0, last = k0 + x.depth >= k;
                    pack(across ? b + n0 * b_row + k0 : b + k0 * b_row + n0, b_row, deep, columns, x.steps, bp);
                    if (rank) pack(across ? u + k0 : u + k0 * u_row, u_row, deep, rank, x.steps, up);
                    if (rank && last) pack(across ? v + n0 * v_row : v + n0, v_row, rank, columns, x.steps, bp + steps * TILE);
                    const float *wait = NULL; /* a block that is not in c yet */
                    bf16 *to = NULL;
                    int64_t all = steps + (last ? x.extra : 0), high = 0, broad = 0;
                    for (int64_t i = m0; i < m1; i += 2 * SIDE) {
                        int64_t rows = m1 - i;
                        pack_rows(a + i * a_row + k0, a_row, rows, deep, ap);
                        for (int64_t j = 0; j < rank; j += 2 * SIDE) {
                            float *block = thin + (x.depth < k ? (i - m0) * x.extra * STEP : 0) + j * STEP;
                            first ? block_zero() : block_load(block, 2 * SIDE);
                            add(ap, up + j * x.steps * STEP, apart, steps, rows, rank - j);
                            block_store(block, 2 * SIDE);
                            if (last && p == 0) block_narrow(block, 1.0f, t + i * rank + j, rank, rows, rank - j);
                            if (last) block_narrow(block, 1.0f, ap + (steps + j / STEP) * 2 * TILE, STEP, 2 * SIDE, 2 * SIDE);
                        }
                        for (int64_t j = 0; j < columns; j += 2 * SIDE) {
                            float *block = x.depth < k ? sums + (i - m0) * x.panel + j * STEP : wait == sums ? sums + 4 * SIDE * SIDE : sums;
                            first ? block_zero() : block_load(block, 2 * SIDE);
                            add(ap, bp + j * x.steps * STEP, apart, all, rows, columns - j);
                            /* The block before, while the units are at this one. */
                            if (wait) block_narrow(wait, 1.0f, to, c_row, high, broad);
                            block_store(block, 2 * SIDE);
                            if (last) wait = block, to = c + i * c_row + n0 + j, high = rows, broad = columns - j;
                        }
                    }
                    if (wait) block_narrow(wait, 1.0f, to, c_row, high, broad);
                }
            }
        _tile_release();
    }
}

#endif
