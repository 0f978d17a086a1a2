// Entry points of the linear mixer. A name says activation type, key width, values of a block, rows of a window and
// log entries that the kernel has room for.
#include "linear_prepare.cuh"
#include "linear_recurrence.cuh"
#include "linear_step.cuh"

#define STEP(A, DK, ROWS, T, ENTRIES, BLOCKS)                                                                       \
    KERNEL(linear_step_##A##_k##DK##_v##ROWS##_t##T##_e##ENTRIES, LinearStepArgs, STEP_THREADS, BLOCKS,             \
           (linear_step<A, DK, ROWS, T, ENTRIES>(args)))

#define COMMON(A)                                                                                                   \
    KERNEL(linear_prepare_##A##_k128, LinearPrepareArgs, 128, 5, (linear_prepare<A, 4>(args)))                      \
    KERNEL(linear_prepare_##A##_k32, LinearPrepareArgs, 128, 8, (linear_prepare<A, 1>(args)))                       \
    KERNEL(gated_norm_##A, GatedNormArgs, 256, 1, (gated_norm<A>(args)))                                            \
    STEP(A, 128, 32, 1, 18, 8)                                                                                      \
    STEP(A, 128, 32, 4, 24, 6)                                                                                      \
    STEP(A, 128, 32, 8, 32, 5)                                                                                      \
    STEP(A, 128, 32, 8, 128, 1)                                                                                     \
    STEP(A, 32, 32, 8, 32, 4)                                                                                       \
    STEP(A, 32, 32, 8, 128, 1)

COMMON(float)
COMMON(bf16)
// Forms for large batches, and the yardstick.
STEP(bf16, 128, 32, 2, 20, 7)
STEP(bf16, 128, 64, 1, 18, 5)
STEP(bf16, 128, 64, 2, 20, 4)
STEP(bf16, 128, 64, 4, 24, 4)
STEP(bf16, 128, 64, 8, 32, 3)
KERNEL(linear_recurrence_bf16_k128_v64, LinearRecurrenceArgs, 128, 4, (linear_recurrence<bf16, 128, 64>(args)))
KERNEL(linear_recurrence_bf16_k128_v32, LinearRecurrenceArgs, 128, 5, (linear_recurrence<bf16, 128, 32>(args)))
