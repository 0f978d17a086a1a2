// Entry points of the products.
#include "model_matmul.cuh"

KERNEL(matmul_quantised_1, MatmulArgs, 32 * SMALL_WARPS, 3, (matmul_small<1, false>(args)))
KERNEL(matmul_quantised_4, MatmulArgs, 32 * SMALL_WARPS, 3, (matmul_small<4, false>(args)))
KERNEL(matmul_exact_1, MatmulArgs, 32 * SMALL_WARPS, 2, (matmul_small<1, true>(args)))
KERNEL(matmul_quantised_tiled, MatmulArgs, TILE_THREADS, 2, (matmul_tiled<false>(args)))
KERNEL(matmul_exact_tiled, MatmulArgs, TILE_THREADS, 2, (matmul_tiled<true>(args)))
