// Work on whole rows of activations: embedding, norms, activation functions, and the forms that products take.
//
// A row's bits depend on that row alone: every sum has an order fixed by its length.
#pragma once
#include "formats.cuh"
#include "model.cuh"

constexpr int ROW_THREADS = 256;
constexpr float SMALLEST_SCALED = 1.4926315e-36f;  // 127 * 2^-126: below it 127 / m overflows

// 32 lanes write 8 values each, from column `first` + 8 lane on, in every form asked for. Beyond `cols` there is
// nothing; whole groups are beyond or not.
__device__ __forceinline__ void emit(const Forms& forms, u64 row, int first, const float* values) {
    const int lane = threadIdx.x & 31;
    const int cols = static_cast<int>(forms.cols), column = first + 8 * lane;
    const bool live = column < cols;
    if (forms.values) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (column + i < cols) forms.values[row * cols + column + i] = values[i];
        }
    }
    float largest = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float size = fabsf(values[i]);
        // What is not finite makes the whole group so: the largest is then infinite.
        if (live) largest = fmaxf(largest, size <= __uint_as_float(LARGEST_FLOAT) ? size : __uint_as_float(0x7f800000u));
    }
    largest = fmaxf(largest, lane_xor(largest, 1));
    largest = fmaxf(largest, lane_xor(largest, 2));
    const ByteRows& out = forms.bytes;
    if (!out.quants) return;
    const bool finite = largest <= __uint_as_float(LARGEST_FLOAT), zero = largest < SMALLEST_SCALED;
    const float inverse = zero || !finite ? 0.f : 127.f / largest;
    const float scale = !finite ? __uint_as_float(NOT_A_NUMBER) : zero ? 0.f : largest / 127.f;
    u32 words[2] = {0, 0};
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float q = finite ? rintf(values[i] * inverse) : 0.f;
        sum += q;
        words[i / 4] |= (static_cast<u32>(static_cast<int>(q)) & 255u) << (8 * (i % 4));
    }
    sum += lane_xor(sum, 1);
    if (!live) return;
    u32* to = reinterpret_cast<u32*>(out.quants + row * cols + column);
    to[0] = words[0];
    to[1] = words[1];
    if (lane % 2 == 0) out.sums[row * (cols / 16) + column / 16] = static_cast<int>(sum);
    if (lane % 4 == 0) out.scales[row * (cols / 32) + column / 32] = scale;
}

__device__ __forceinline__ void load8(const float* from, float* values) {
    const float4 first = load4(from), second = load4(from + 4);
    values[0] = first.x;
    values[1] = first.y;
    values[2] = first.z;
    values[3] = first.w;
    values[4] = second.x;
    values[5] = second.y;
    values[6] = second.z;
    values[7] = second.w;
}

// A row of a block in every form, from value(column).
template <class Value>
__device__ __forceinline__ void emit_row(const Forms& forms, u64 row, Value value) {
    const int cols = static_cast<int>(forms.cols), lane = threadIdx.x & 31;
    for (int first = 256 * (threadIdx.x >> 5); first < cols; first += 256 * (blockDim.x / 32)) {
        float values[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int column = first + 8 * lane + i;
            values[i] = column < cols ? value(column) : 0.f;
        }
        emit(forms, row, first, values);
    }
}

// Sum over the threads of a block, in every thread; the block has at most 32 warps.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    value = warp_sum(value);
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    float sum = 0.f;
    for (int i = 0; i < blockDim.x / 32; i++) sum += scratch[i];
    return sum;
}

// One block a row.
__device__ __forceinline__ void embed(const EmbedArgs& args) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const int row = blockIdx.x;
    const u8* weights = args.weights + args.row_bytes * args.tokens[row];
    float* out = args.out + static_cast<u64>(row) * args.cols;
    if (is_float_format(args.format)) {
        with_float_format(args.format, [&](auto element) {
            typedef decltype(element) E;
            for (int i = threadIdx.x; i < args.cols; i += blockDim.x) {
                out[i] = widen(reinterpret_cast<const E*>(weights)[i]);
            }
        });
        return;
    }
    with_block_format(args.format, [&](auto format) {
        for (int index = threadIdx.x; index < args.cols / 32; index += blockDim.x) {
            Unit unit;
            decltype(format)::unit(weights, index, unit);
            unit_values(unit, [&](int i, float value) { out[32 * index + i] = value; });
        }
    });
}

// out = x / sqrt(mean(x^2) + eps) * weight, one block a row.
__device__ __forceinline__ void rms_norm(const NormArgs& args) {
    float* scratch = reinterpret_cast<float*>(SHARED);
    allow_next_kernel();
    float weights[8] = {};
    if (8 * static_cast<int>(threadIdx.x) < args.cols && args.cols % 8 == 0) load8(args.weight + 8 * threadIdx.x, weights);
    wait_for_previous_kernel();
    const u64 row = blockIdx.x;
    const float* x = args.x + (args.gather ? args.gather[row] : row) * args.cols;
    // A lane's share of a row stays in registers where the row is short enough.
    const int column = 8 * threadIdx.x;
    const bool short_row = args.cols <= 8 * ROW_THREADS && args.cols % 8 == 0;
    float values[8] = {};
    float squares = 0.f;
    if (short_row) {
        if (column < args.cols) load8(x + column, values);
#pragma unroll
        for (int i = 0; i < 8; i++) squares = fmaf(values[i], values[i], squares);
    } else {
        for (int i = threadIdx.x; i < args.cols; i += blockDim.x) squares = fmaf(x[i], x[i], squares);
    }
    const float inverse = 1.f / sqrtf(block_sum(squares, scratch) / args.cols + args.eps);
    if (args.plain) {
        float* plain = args.plain + row * args.plain_stride;
        for (int i = threadIdx.x; i < args.cols; i += blockDim.x) plain[i] = x[i] * inverse * args.weight[i];
    } else if (short_row) {
#pragma unroll
        for (int i = 0; i < 8; i++) values[i] = values[i] * inverse * weights[i];
        if (256 * (static_cast<int>(threadIdx.x) >> 5) < args.cols) {
            emit(args.out, row, 256 * (threadIdx.x >> 5), values);
        }
    } else {
        emit_row(args.out, row, [&](int column) { return x[column] * inverse * args.weight[column]; });
    }
}

// A lane's part of a row in 256 columns, as a kernel finds it.
struct Piece {
    float values[8];
    float gates[8];
};

// From `first` on, of row `row`; zeros beyond the end.
__device__ __forceinline__ void load_piece(const RowsArgs& args, u64 row, int first, Piece& piece) {
    const int column = first + 8 * (threadIdx.x & 31);
    const u64 at = row * args.cols + column;
#pragma unroll
    for (int i = 0; i < 8; i++) piece.values[i] = piece.gates[i] = 0.f;
    if (args.cols % 8 == 0) {
        if (column < args.cols) {
            load8(args.x + at, piece.values);
            if (args.gate) load8(args.gate + at, piece.gates);
        }
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (column + i >= args.cols) break;
        piece.values[i] = args.x[at + i];
        if (args.gate) piece.gates[i] = args.gate[at + i];
    }
}

// x, or silu(gate) * x; one warp for 256 columns.
__device__ __forceinline__ void emit_piece(const RowsArgs& args, u64 row, int first, Piece& piece) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (args.gate) piece.values[i] *= piece.gates[i] * sigmoid_of(piece.gates[i]);
    }
    emit(args.out, row, first, piece.values);
}

__device__ __forceinline__ void make_forms(const RowsArgs& args) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const int first = 256 * (blockIdx.x * (blockDim.x / 32) + (threadIdx.x >> 5));
    if (first >= args.cols) return;
    Piece piece;
    load_piece(args, blockIdx.y, first, piece);
    emit_piece(args, blockIdx.y, first, piece);
}

__device__ __forceinline__ void load_piece(const HeadNormArgs& args, u64 row, int first, Piece& piece) {
    const int cols = args.heads * args.dim, column = first + 8 * (threadIdx.x & 31);
    const int head = column / args.dim, i = column - head * args.dim;
#pragma unroll
    for (int j = 0; j < 8; j++) piece.values[j] = piece.gates[j] = 0.f;
    if (column < cols) {
        load8(args.x + (row * args.heads + head) * args.padded_dim + i, piece.values);
        load8(args.gate + row * cols + column, piece.gates);
    }
}

// Every head normed on its own, times silu(gate). One warp for 256 columns, which hold whole heads.
__device__ __forceinline__ void emit_piece(const HeadNormArgs& args, u64 row, int first, Piece& piece) {
    const int cols = args.heads * args.dim, column = first + 8 * (threadIdx.x & 31), i = column % args.dim;
    float squares = 0.f;
#pragma unroll
    for (int j = 0; j < 8; j++) squares = fmaf(piece.values[j], piece.values[j], squares);
    for (int offset = 1; offset < args.dim / 8; offset *= 2) squares += lane_xor(squares, offset);
    const float inverse = 1.f / sqrtf(squares / args.dim + args.eps);
    if (column < cols) {
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float gate = piece.gates[j] * sigmoid_of(piece.gates[j]);
            piece.values[j] = piece.values[j] * inverse * args.weight[i + j] * gate;
        }
    }
    emit(args.out, row, first, piece.values);
}

__device__ __forceinline__ void head_norm(const HeadNormArgs& args) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const int first = 256 * (blockIdx.x * (blockDim.x / 32) + (threadIdx.x >> 5));
    if (first >= args.heads * args.dim) return;
    Piece piece;
    load_piece(args, blockIdx.y, first, piece);
    emit_piece(args, blockIdx.y, first, piece);
}

// The same for heads of any width; one block a row.
__device__ __forceinline__ void odd_head_norm(const HeadNormArgs& args) {
    float* inverse = reinterpret_cast<float*>(SHARED);  // [heads]
    allow_next_kernel();
    wait_for_previous_kernel();
    const u64 row = blockIdx.x;
    const int lane = threadIdx.x & 31;
    const float* x = args.x + row * args.heads * args.padded_dim;
    const float* gate = args.gate + row * args.heads * args.dim;
    for (int head = threadIdx.x >> 5; head < args.heads; head += blockDim.x / 32) {
        const float* values = x + head * args.padded_dim;
        float squares = 0.f;
        for (int i = lane; i < args.dim; i += 32) squares = fmaf(values[i], values[i], squares);
        squares = warp_sum(squares);
        if (lane == 0) inverse[head] = 1.f / sqrtf(squares / args.dim + args.eps);
    }
    __syncthreads();
    emit_row(args.out, row, [&](int column) {
        const int head = column / args.dim, i = column - head * args.dim;
        const float z = gate[column];
        return x[head * args.padded_dim + i] * inverse[head] * args.weight[i] * (z * sigmoid_of(z));
    });
}
