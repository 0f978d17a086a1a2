// Products of weight rows, as files hold them, with rows of activations.
//
// Few rows (decoding, verification): one or more warps a weight row, lanes over units of 32 values; the order of a sum
// depends on the shape of the matrix alone, so a row's bits do not depend on its neighbours. Many rows (prompts):
// tiles of 64 x 64 outputs.
//
// Quantised arithmetic multiplies the integers of weights and activations exactly and rounds once a unit; exact
// arithmetic widens weights to floats and takes activations as they are.
#pragma once
#include "formats.cuh"
#include "model.cuh"
#include "model_rows.cuh"

constexpr int SMALL_ROWS = 2;   // weight rows of a warp at a time
constexpr int SMALL_WARPS = 8;  // of a block

// chain + the unit's product with 32 bytes of activations.
template <bool OFFSETS>
__device__ __forceinline__ float multiply_unit(const Unit& unit, const u32* x, float scale, const int* sums, float chain) {
    int first = 0, second = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        first = dot4(unit.q[i], x[i], first);
        second = dot4(unit.q[i + 4], x[i + 4], second);
    }
    chain = fmaf(static_cast<float>(first * unit.s[0] + second * unit.s[1]), unit.d * scale, chain);
    if (OFFSETS) chain = fmaf(static_cast<float>(sums[0] * unit.o[0] + sums[1] * unit.o[1]), -(unit.m * scale), chain);
    return chain;
}

// The same with 32 floats.
__device__ __forceinline__ float multiply_unit(const float* weights, const float* x, float chain) {
#pragma unroll
    for (int i = 0; i < 32; i++) chain = fmaf(weights[i], x[i], chain);
    return chain;
}

// Products of SMALL_ROWS weight rows from `first` on with R rows of activations, over the units of one warp.
// load(w, unit, values) fetches a unit, multiply(values, r, unit, chain) adds its product with row r.
template <class Values, int R, class Load, class Multiply>
__device__ __forceinline__ void small_rows(int units, int start, int step, int live, float (*sums)[R], Load load,
                                           Multiply multiply) {
#pragma unroll 1
    for (int unit = start; unit < units; unit += step) {
        Values values[SMALL_ROWS];
#pragma unroll
        for (int w = 0; w < SMALL_ROWS; w++) load(w, unit, values[w]);
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (r >= live) break;
#pragma unroll
            for (int w = 0; w < SMALL_ROWS; w++) sums[w][r] = multiply(values[w], r, unit, sums[w][r]);
        }
    }
}

struct Floats {
    float x[32];
};

// One row of activations by all warps of a block.
template <class Args>
__device__ __forceinline__ void make_pieces(const Args& args, int cols) {
    for (int first = 256 * (threadIdx.x >> 5); first < cols; first += 256 * SMALL_WARPS) {
        Piece piece;
        load_piece(args, 0, first, piece);
        emit_piece(args, 0, first, piece);
    }
}

// Makes the one row of activations in shared memory from `at` on, with the bits that the kernels of model_rows.cuh give it.
// SMALL_WARPS warps; a barrier must follow. The sum of squares of a row that it norms is that of `rms_norm`, which gives each
// warp 256 columns; there are no more columns than the block's warps take.
__device__ __forceinline__ Forms make_source(const MatmulArgs& args, u8* at) {
    const Source& source = args.source;
    const int warp = threadIdx.x >> 5, column = 8 * threadIdx.x, cols = static_cast<int>(args.x.cols);
    float* scratch = reinterpret_cast<float*>(at);  // [SMALL_WARPS]
    at += 4 * SMALL_WARPS;
    Forms out = {nullptr, {nullptr, nullptr, nullptr}, args.x.cols};
    if (args.x.values) {
        out.values = reinterpret_cast<float*>(at);
        at += 4 * cols;
    }
    if (args.x.bytes.quants) {
        out.bytes.quants = reinterpret_cast<i8*>(at);
        out.bytes.scales = reinterpret_cast<float*>(at + cols);
        out.bytes.sums = reinterpret_cast<int*>(at + cols + cols / 8);
    }
    if (source.kind == SOURCE_NORM) {
        float weights[8] = {}, values[8] = {}, squares = 0.f;
        if (column < cols) load8(source.weight + column, weights);
        wait_for_previous_kernel();
        if (column < cols) load8(source.x + column, values);
#pragma unroll
        for (int i = 0; i < 8; i++) squares = fmaf(values[i], values[i], squares);
        squares = warp_sum(squares);
        if (threadIdx.x % 32 == 0) scratch[warp] = squares;
        __syncthreads();
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < SMALL_WARPS; i++) sum += scratch[i];
        const float inverse = 1.f / sqrtf(sum / cols + source.eps);
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = values[i] * inverse * weights[i];
        if (256 * warp < cols) emit(out, 0, 256 * warp, values);
        return out;
    }
    wait_for_previous_kernel();
    if (source.kind == SOURCE_ACTIVATED) {
        make_pieces(RowsArgs{source.x, source.gate, out, 1, cols}, cols);
    } else {
        make_pieces(HeadNormArgs{source.x, source.gate, source.weight, out, cols / source.dim, source.dim, source.padded_dim,
                                 source.eps},
                    cols);
    }
    return out;
}

// Up to R rows of activations with the matrices of a launch. A block takes SMALL_WARPS / split * SMALL_ROWS weight rows, or,
// of matrices whose rows have a warp each, some times as many, one after the other. Where they are staged, all are on their
// way in whole lines before the kernel waits for the one that makes the activations.
// Shared: [SMALL_WARPS][SMALL_ROWS * R] sums, then what `make_source` makes, then weights from `staged_at` on.
template <int R, bool EXACT>
__device__ __forceinline__ void matmul_small(const MatmulArgs& args) {
    float* scratch = reinterpret_cast<float*>(SHARED);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int index = 0;
    while (index + 1 < args.matrix_count && args.matrices[index + 1].first_block <= static_cast<int>(blockIdx.x)) index++;
    const Matrix& matrix = args.matrices[index];
    const int split = matrix.split, part = warp % split, block_rows = matrix.block_rows;
    const int block_first = (static_cast<int>(blockIdx.x) - matrix.first_block) * block_rows;
    const int cols = static_cast<int>(args.x.cols), units = (cols + 31) / 32;
    // With experts a launch has one row of activations for each y.
    const int out_row = args.experts ? blockIdx.y : args.first_row + R * blockIdx.y;
    const int left = args.first_row + args.rows - out_row;
    const int live = args.experts ? 1 : left < R ? left : R;
    allow_next_kernel();
    const u8* weights = matrix.weights;
    if (args.experts) {
        wait_for_previous_kernel();
        weights += args.expert_bytes * args.experts[out_row];
    }
    weights += matrix.row_bytes * block_first;
    if (matrix.staged) {
        const int count = matrix.rows - block_first < block_rows ? matrix.rows - block_first : block_rows;
        // Whole pieces of 16 bytes, at the same places modulo 16.
        const u32 before = static_cast<u32>(reinterpret_cast<u64>(weights) & 15);
        const u8* from = weights - before;
        u8* to = SHARED + args.staged_at;
        const int pieces = static_cast<int>((before + count * matrix.row_bytes + 15) / 16);
        for (int i = threadIdx.x; i < pieces; i += 32 * SMALL_WARPS) async_copy16(to + 16 * i, from + 16 * i);
        weights = to + before;
    }
    Forms x = args.x;
    int row = args.experts ? out_row / args.pairs : out_row;
    if (R == 1 && args.source.kind != SOURCE_FORMS) {
        x = make_source(args, SHARED + 4 * SMALL_WARPS * SMALL_ROWS);
        row = 0;
    } else {
        wait_for_previous_kernel();
    }
    async_wait();
    __syncthreads();
    const int start = part * 32 + lane, step = split * 32;
    const int past = block_first + block_rows, at_once = SMALL_WARPS / split * SMALL_ROWS;
#pragma unroll 1
    for (int first = block_first + warp / split * SMALL_ROWS; first < past; first += at_once) {
        float sums[SMALL_ROWS][R] = {};
        const u8* rows[SMALL_ROWS];
#pragma unroll
        for (int w = 0; w < SMALL_ROWS; w++) {
            // Rows beyond the end repeat the last.
            const int n = first + w < matrix.rows ? first + w : matrix.rows - 1;
            rows[w] = weights + matrix.row_bytes * (n - block_first);
        }
        // What results are added to comes along with the weights.
        float before[SMALL_ROWS][R] = {};
        if (args.accumulate && lane == 0 && part == 0) {
#pragma unroll
            for (int w = 0; w < SMALL_ROWS; w++) {
#pragma unroll
                for (int r = 0; r < R; r++) {
                    if (r < live && first + w < matrix.rows) {
                        before[w][r] = matrix.out[static_cast<u64>(out_row + r) * matrix.out_stride + first + w];
                    }
                }
            }
        }
        if (is_float_format(matrix.format)) {
            with_float_format(matrix.format, [&](auto element) {
                typedef decltype(element) E;
                // Four neighbours a lane, so that a warp reads whole lines.
#pragma unroll 1
                for (int i = 4 * start; i < cols; i += 4 * step) {
                    float4 w[SMALL_ROWS];
#pragma unroll
                    for (int j = 0; j < SMALL_ROWS; j++) w[j] = load4(reinterpret_cast<const E*>(rows[j]) + i);
#pragma unroll
                    for (int r = 0; r < R; r++) {
                        if (r >= live) break;
                        const float4 four = load4(x.values + static_cast<u64>(row + r) * cols + i);
#pragma unroll
                        for (int j = 0; j < SMALL_ROWS; j++) {
                            float chain = fmaf(w[j].x, four.x, sums[j][r]);
                            chain = fmaf(w[j].y, four.y, chain);
                            chain = fmaf(w[j].z, four.z, chain);
                            sums[j][r] = fmaf(w[j].w, four.w, chain);
                        }
                    }
                }
            });
        } else {
            with_block_format(matrix.format, [&](auto format) {
                typedef decltype(format) F;
                if (EXACT) {
                    small_rows<Floats, R>(
                        units, start, step, live, sums,
                        [&](int w, int index, Floats& values) {
                            Unit unit;
                            F::unit(rows[w], index, unit);
                            unit_values(unit, [&](int i, float value) { values.x[i] = value; });
                        },
                        [&](const Floats& values, int r, int index, float chain) {
                            return multiply_unit(values.x, x.values + static_cast<u64>(row + r) * cols + 32 * index, chain);
                        });
                } else {
                    small_rows<Unit, R>(
                        units, start, step, live, sums,
                        [&](int w, int index, Unit& unit) { F::unit(rows[w], index, unit); },
                        [&](const Unit& unit, int r, int index, float chain) {
                            const u64 at = static_cast<u64>(row + r) * units + index;
                            u32 words[8];
                            load_words_of_row(x.bytes.quants + 32 * at, words);
                            return multiply_unit<F::OFFSETS>(unit, words, x.bytes.scales[at], x.bytes.sums + 2 * at, chain);
                        });
                }
            });
        }
#pragma unroll
        for (int w = 0; w < SMALL_ROWS; w++) {
#pragma unroll
            for (int r = 0; r < R; r++) sums[w][r] = warp_sum(sums[w][r]);
        }
        if (split > 1) {
            if (lane == 0) {
#pragma unroll
                for (int w = 0; w < SMALL_ROWS; w++) {
#pragma unroll
                    for (int r = 0; r < R; r++) scratch[(warp * SMALL_ROWS + w) * R + r] = sums[w][r];
                }
            }
            __syncthreads();
            if (part > 0) return;  // the only rows of the block
#pragma unroll
            for (int w = 0; w < SMALL_ROWS; w++) {
#pragma unroll
                for (int r = 0; r < R; r++) {
                    for (int other = 1; other < split; other++) {
                        sums[w][r] += scratch[((warp + other) * SMALL_ROWS + w) * R + r];
                    }
                }
            }
        }
        if (lane > 0) continue;
#pragma unroll
        for (int w = 0; w < SMALL_ROWS; w++) {
#pragma unroll
            for (int r = 0; r < R; r++) {
                if (r < live && first + w < matrix.rows) {
                    float* out = matrix.out + static_cast<u64>(out_row + r) * matrix.out_stride + first + w;
                    *out = args.accumulate ? before[w][r] + sums[w][r] : sums[w][r];
                }
            }
        }
    }
}

constexpr int TILE = 64;           // weight rows and activation rows of a block
constexpr int TILE_THREADS = 256;  // 16 x 16, each 4 x 4 outputs
constexpr int TILE_UNITS = 4;      // of 32 values, staged at a time by quantised arithmetic

struct QuantisedTile {
    u32 weights[TILE][TILE_UNITS * 8 + 1];
    u32 x[TILE][TILE_UNITS * 8 + 1];
    float d[TILE][TILE_UNITS + 1];
    float m[TILE][TILE_UNITS + 1];
    int factors[TILE][TILE_UNITS + 1];  // s, s, o, o as bytes
    float scales[TILE][TILE_UNITS + 1];
    int sums[TILE][TILE_UNITS + 1];     // two 16-bit sums
};

struct ExactTile {
    float weights[TILE][33];
    float x[TILE][33];
};

// Where a block of the tiled product works.
struct TilePlace {
    const Matrix& matrix;
    int first;  // weight row
    int row;    // activation row
    int rows;   // past the last activation row

    __device__ __forceinline__ const u8* weights(int n) const {
        n += first;
        return matrix.weights + matrix.row_bytes * (n < matrix.rows ? n : matrix.rows - 1);
    }

    __device__ __forceinline__ u64 x(int m) const {
        m += row;
        return static_cast<u64>(m < rows ? m : rows - 1);
    }
};

template <class F>
__device__ __forceinline__ void stage_weights(const TilePlace& place, int unit, int units, QuantisedTile& tile) {
    const int n = threadIdx.x / TILE_UNITS, u = threadIdx.x % TILE_UNITS;
    Unit values = {};
    if (unit + u < units) F::unit(place.weights(n), unit + u, values);
#pragma unroll
    for (int i = 0; i < 8; i++) tile.weights[n][8 * u + i] = values.q[i];
    tile.d[n][u] = values.d;
    tile.m[n][u] = values.m;
    tile.factors[n][u] = static_cast<int>((values.s[0] & 255) | (values.s[1] & 255) << 8 | values.o[0] << 16 |
                                          static_cast<u32>(values.o[1]) << 24);
}

__device__ __forceinline__ void stage_activations(const TilePlace& place, const ByteRows& x, int unit, int units,
                                                  QuantisedTile& tile) {
    const int m = threadIdx.x / TILE_UNITS, u = threadIdx.x % TILE_UNITS;
    u32 words[8] = {};
    float scale = 0.f;
    int sums = 0;
    if (unit + u < units) {
        const u64 at = place.x(m) * units + unit + u;
        load_words_of_row(x.quants + 32 * at, words);
        scale = x.scales[at];
        sums = (x.sums[2 * at] & 0xffff) | x.sums[2 * at + 1] << 16;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) tile.x[m][8 * u + i] = words[i];
    tile.scales[m][u] = scale;
    tile.sums[m][u] = sums;
}

template <bool OFFSETS>
__device__ __forceinline__ void multiply_tile(const QuantisedTile& tile, int tn, int tm, float (*sums)[4]) {
#pragma unroll 1
    for (int u = 0; u < TILE_UNITS; u++) {
        int parts[2][4][4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) parts[half][i][j] = 0;
            }
#pragma unroll
            for (int k = 0; k < 4; k++) {
                u32 w[4], x[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    w[i] = tile.weights[tn + 16 * i][8 * u + 4 * half + k];
                    x[i] = tile.x[tm + 16 * i][8 * u + 4 * half + k];
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
#pragma unroll
                    for (int j = 0; j < 4; j++) parts[half][i][j] = dot4(w[i], x[j], parts[half][i][j]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int n = tn + 16 * i, factors = tile.factors[n][u];
            const int s0 = static_cast<i8>(factors), s1 = static_cast<i8>(factors >> 8);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const int m = tm + 16 * j;
                const float scale = tile.scales[m][u];
                const int product = parts[0][i][j] * s0 + parts[1][i][j] * s1;
                sums[i][j] = fmaf(static_cast<float>(product), tile.d[n][u] * scale, sums[i][j]);
                if (OFFSETS) {
                    const int both = tile.sums[m][u];
                    const int offset = static_cast<short>(both) * ((factors >> 16) & 255) +
                                       (both >> 16) * ((factors >> 24) & 255);
                    sums[i][j] = fmaf(static_cast<float>(offset), -(tile.m[n][u] * scale), sums[i][j]);
                }
            }
        }
    }
}

__device__ __forceinline__ void multiply_tile(const ExactTile& tile, int tn, int tm, float (*sums)[4]) {
#pragma unroll 8
    for (int k = 0; k < 32; k++) {
        float w[4], x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[i] = tile.weights[tn + 16 * i][k];
            x[i] = tile.x[tm + 16 * i][k];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] = fmaf(w[i], x[j], sums[i][j]);
        }
    }
}

// 32 columns from `column` on of 64 activation rows, and, for float formats, of 64 weight rows.
__device__ __forceinline__ void stage_floats(const float* x, const TilePlace& place, int column, int cols, ExactTile& tile) {
    for (int i = threadIdx.x; i < TILE * 32; i += TILE_THREADS) {
        const int m = i / 32, k = i % 32;
        tile.x[m][k] = column + k < cols ? x[place.x(m) * cols + column + k] : 0.f;
    }
}

template <bool EXACT>
__device__ __forceinline__ void matmul_tiled(const MatmulArgs& args) {
    int index = 0;
    while (index + 1 < args.matrix_count && args.matrices[index + 1].first_block <= static_cast<int>(blockIdx.x)) index++;
    const Matrix& matrix = args.matrices[index];
    const TilePlace place = {matrix, (static_cast<int>(blockIdx.x) - matrix.first_block) * TILE,
                             args.first_row + static_cast<int>(blockIdx.y) * TILE, args.first_row + args.rows};
    const int cols = static_cast<int>(args.x.cols), units = cols / 32;
    const int tn = threadIdx.x % 16, tm = threadIdx.x / 16;
    float sums[4][4] = {};
    allow_next_kernel();
    wait_for_previous_kernel();
    if (is_float_format(matrix.format)) {
        ExactTile& tile = *reinterpret_cast<ExactTile*>(SHARED);
#pragma unroll 1
        for (int column = 0; column < cols; column += 32) {
            __syncthreads();
            stage_floats(args.x.values, place, column, cols, tile);
            with_float_format(matrix.format, [&](auto element) {
                typedef decltype(element) E;
#pragma unroll 1
                for (int i = threadIdx.x; i < TILE * 32; i += TILE_THREADS) {
                    const int n = i / 32, k = i % 32;
                    const E* row = reinterpret_cast<const E*>(place.weights(n));
                    tile.weights[n][k] = column + k < cols ? widen(row[column + k]) : 0.f;
                }
            });
            __syncthreads();
            multiply_tile(tile, tn, tm, sums);
        }
    } else if (EXACT) {
        ExactTile& tile = *reinterpret_cast<ExactTile*>(SHARED);
#pragma unroll 1
        for (int unit = 0; unit < units; unit++) {
            __syncthreads();
            stage_floats(args.x.values, place, 32 * unit, cols, tile);
            with_block_format(matrix.format, [&](auto format) {
                if (threadIdx.x < TILE) {
                    Unit values;
                    decltype(format)::unit(place.weights(threadIdx.x), unit, values);
                    float* to = tile.weights[threadIdx.x];
                    unit_values(values, [&](int i, float value) { to[i] = value; });
                }
            });
            __syncthreads();
            multiply_tile(tile, tn, tm, sums);
        }
    } else {
        QuantisedTile& tile = *reinterpret_cast<QuantisedTile*>(SHARED);
        const ByteRows& x = args.x.bytes;
        const bool offsets = has_offsets(matrix.format);
#pragma unroll 1
        for (int unit = 0; unit < units; unit += TILE_UNITS) {
            __syncthreads();
            stage_activations(place, x, unit, units, tile);
            with_block_format(matrix.format,
                              [&](auto format) { stage_weights<decltype(format)>(place, unit, units, tile); });
            __syncthreads();
            if (offsets) {
                multiply_tile<true>(tile, tn, tm, sums);
            } else {
                multiply_tile<false>(tile, tn, tm, sums);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int m = place.row + tm + 16 * j;
        if (m >= place.rows) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int n = place.first + tn + 16 * i;
            if (n >= matrix.rows) continue;
            float* out = matrix.out + static_cast<u64>(m) * matrix.out_stride + n;
            *out = args.accumulate ? *out + sums[i][j] : sums[i][j];
        }
    }
}
