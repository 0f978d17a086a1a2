// Softmax attention over pages of keys and values.
//
// Positions are cut into spans at absolute places, so a row's result depends on its position alone: `attend` takes one
// span of one row for up to QUERY_HEADS query heads that share a key/value head, `merge_spans` joins the spans of a
// row in order.
#pragma once
#include "model_rows.cuh"

constexpr int PAGE_POSITIONS = 64;
constexpr int SPAN_POSITIONS = 32;  // one tile: even short contexts keep many blocks busy
constexpr int ATTEND_THREADS = 128;
constexpr int QUERY_HEADS = 8;
constexpr int MAX_HEAD_DIM = 256;

// Where a head's keys (or, with `heads` added, its values) of a position stand.
template <class E>
__device__ __forceinline__ E* cache_row(const AttentionArgs& args, const AttentionRow& row, int position, int head) {
    E* page = reinterpret_cast<E*>(args.pages[row.table + position / PAGE_POSITIONS]) + args.page_offset;
    return page + (static_cast<u64>(head) * PAGE_POSITIONS + position % PAGE_POSITIONS) * args.dim;
}

// One warp: norms x, rotates its first dimensions for a position, and gives store(i, value).
template <class Store>
__device__ __forceinline__ void norm_and_rotate(const AttentionArgs& args, const float* x, const float* weight,
                                                int position, Store store) {
    const int lane = threadIdx.x & 31, half = args.rotary / 2;
    float squares = 0.f;
    for (int i = lane; i < args.dim; i += 32) squares = fmaf(x[i], x[i], squares);
    const float inverse = 1.f / sqrtf(warp_sum(squares) / args.dim + args.eps);
    for (int i = lane; i < half; i += 32) {
        const float angle = static_cast<float>(position) * args.frequencies[i];
        const float c = cosf(angle), s = sinf(angle);
        const float a = x[i] * inverse * weight[i], b = x[i + half] * inverse * weight[i + half];
        store(i, a * c - b * s);
        store(i + half, b * c + a * s);
    }
    for (int i = args.rotary + lane; i < args.dim; i += 32) store(i, x[i] * inverse * weight[i]);
}

// One warp for each row and head: queries, then keys, then values.
template <class E>
__device__ __forceinline__ void attention_prepare(const AttentionArgs& args) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const int lane = threadIdx.x & 31, unit = blockIdx.x * (blockDim.x / 32) + (threadIdx.x >> 5);
    if (unit >= args.heads + 2 * args.kv_heads) return;
    const u64 row = blockIdx.y;
    const AttentionRow place = args.rows[row];
    if (unit < args.heads) {
        const u64 head = row * args.heads + unit;
        const float* x = args.q + head * args.dim * (args.gated ? 2 : 1);
        float* out = args.queries + head * args.dim;
        norm_and_rotate(args, x, args.q_norm, place.position, [&](int i, float value) { out[i] = value * args.scale; });
        return;
    }
    const int head = unit - args.heads;
    if (head < args.kv_heads) {
        E* out = cache_row<E>(args, place, place.position, head);
        const float* x = args.k + (row * args.kv_heads + head) * args.dim;
        norm_and_rotate(args, x, args.k_norm, place.position, [&](int i, float value) { narrow(value, out + i); });
    } else {
        // Values of head h stand where keys of head kv_heads + h would.
        E* out = cache_row<E>(args, place, place.position, head);
        const float* x = args.v + (row * args.kv_heads + head - args.kv_heads) * args.dim;
        for (int i = lane; i < args.dim; i += 32) narrow(x[i], out + i);
    }
}

// Rows of a tile lie this much further apart than they are long: lanes that read neighbouring rows then take different
// banks, four floats at a time.
constexpr int TILE_GAP = 4;

struct AttendShared {
    float queries[QUERY_HEADS][MAX_HEAD_DIM];
    float tile[SPAN_POSITIONS * (MAX_HEAD_DIM + TILE_GAP)];
    float weights[QUERY_HEADS][SPAN_POSITIONS];
};

// 32 positions of keys or values of one head to shared memory, zeros from `end` on. They lie in one page, one after the
// other.
template <class E>
__device__ __forceinline__ void stage_positions(const AttentionArgs& args, const AttentionRow& place, int first, int end,
                                                int head, float* tile) {
    constexpr int WARPS = ATTEND_THREADS / 32;
    const int dim = args.dim, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const E* from = cache_row<E>(args, place, first, head);
    for (int d = 4 * lane; d < dim; d += 128) {
        // All loads are on their way before the first is used; beyond the end they repeat the first position.
        float4 fours[SPAN_POSITIONS / WARPS];
#pragma unroll
        for (int i = 0; i < SPAN_POSITIONS / WARPS; i++) {
            const int p = warp + WARPS * i;
            fours[i] = load4(from + (first + p < end ? p : 0) * dim + d);
        }
#pragma unroll
        for (int i = 0; i < SPAN_POSITIONS / WARPS; i++) {
            const int p = warp + WARPS * i;
            const float4 four = first + p < end ? fours[i] : make_float4(0.f, 0.f, 0.f, 0.f);
            *reinterpret_cast<float4*>(tile + p * (dim + TILE_GAP) + d) = four;
        }
    }
}

// Grid: spans, key/value heads times groups of query heads, rows.
template <class E>
__device__ __forceinline__ void attend(const AttentionArgs& args) {
    AttendShared& s = *reinterpret_cast<AttendShared*>(SHARED);
    allow_next_kernel();
    wait_for_previous_kernel();
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, dim = args.dim;
    const int group = args.heads / args.kv_heads, parts = (group + QUERY_HEADS - 1) / QUERY_HEADS;
    const int kv_head = blockIdx.y / parts, member = (blockIdx.y % parts) * QUERY_HEADS;
    const int count = group - member < QUERY_HEADS ? group - member : QUERY_HEADS;
    const int head = kv_head * group + member;
    const u64 row = args.first_row + blockIdx.z;
    const AttentionRow place = args.rows[row];
    const int begin = blockIdx.x * SPAN_POSITIONS;
    const int end = begin + SPAN_POSITIONS < place.position + 1 ? begin + SPAN_POSITIONS : place.position + 1;
    if (begin >= end) return;
    for (int i = threadIdx.x; i < QUERY_HEADS * dim; i += ATTEND_THREADS) {
        const int h = i / dim;
        s.queries[h][i - h * dim] = h < count ? args.queries[(row * args.heads + head) * dim + i] : 0.f;
    }
    __syncthreads();
    stage_positions<E>(args, place, begin, end, kv_head, s.tile);
    __syncthreads();
    // Warp w follows heads w and w + 4; a thread sums dimensions t and t + 128 of every head.
    float largest[2], total[2], sums[QUERY_HEADS][2] = {}, scores[2] = {0.f, 0.f};
    const float* key = s.tile + lane * (dim + TILE_GAP);
#pragma unroll 4
    for (int d = 0; d < dim; d += 4) {
        const float4 k = load4(key + d);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float4 q = load4(s.queries[warp + 4 * i] + d);
            scores[i] = fmaf(q.x, k.x, scores[i]);
            scores[i] = fmaf(q.y, k.y, scores[i]);
            scores[i] = fmaf(q.z, k.z, scores[i]);
            scores[i] = fmaf(q.w, k.w, scores[i]);
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float score = scores[i];
        if (begin + lane >= end) score = __uint_as_float(NEGATIVE_INFINITY);
        // A span has at least one position, but its scores may be no numbers.
        largest[i] = warp_max(score);
        const float weight = expf(score - largest[i]);
        total[i] = warp_sum(weight);
        s.weights[warp + 4 * i][lane] = weight;
    }
    __syncthreads();
    stage_positions<E>(args, place, begin, end, args.kv_heads + kv_head, s.tile);
    __syncthreads();
#pragma unroll 2
    for (int p = 0; p < SPAN_POSITIONS; p += 4) {
        float values[4][2];
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int d = threadIdx.x + i * ATTEND_THREADS;
                values[j][i] = d < dim ? s.tile[(p + j) * (dim + TILE_GAP) + d] : 0.f;
            }
        }
#pragma unroll
        for (int h = 0; h < QUERY_HEADS; h++) {
            const float4 weights = load4(s.weights[h] + p);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                sums[h][i] = fmaf(weights.x, values[0][i], sums[h][i]);
                sums[h][i] = fmaf(weights.y, values[1][i], sums[h][i]);
                sums[h][i] = fmaf(weights.z, values[2][i], sums[h][i]);
                sums[h][i] = fmaf(weights.w, values[3][i], sums[h][i]);
            }
        }
    }
    const u64 at = (static_cast<u64>(blockIdx.z) * args.heads + head) * args.spans + blockIdx.x;
#pragma unroll
    for (int h = 0; h < QUERY_HEADS; h++) {
        if (h >= count) break;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int d = threadIdx.x + i * ATTEND_THREADS;
            if (d < dim) args.partial[(at + static_cast<u64>(h) * args.spans) * dim + d] = sums[h][i];
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int h = warp + 4 * i;
        if (lane == 0 && h < count) {
            args.partial_max[at + static_cast<u64>(h) * args.spans] = largest[i];
            args.partial_sum[at + static_cast<u64>(h) * args.spans] = total[i];
        }
    }
}

constexpr int MERGE_COLUMNS = 256;  // of a row, in one block; its threads take one each

struct MergeShared {
    float values[MERGE_COLUMNS];       // read four at a time
    float largest[MERGE_COLUMNS + 1];  // of each head in the block's columns
    float total[MERGE_COLUMNS + 1];
};

// Joins the spans of a row, applies the gate, and writes the forms. Grid: pieces of MERGE_COLUMNS columns, rows.
__device__ __forceinline__ void merge_spans(const AttentionArgs& args) {
    MergeShared& s = *reinterpret_cast<MergeShared*>(SHARED);
    allow_next_kernel();
    wait_for_previous_kernel();
    const u64 row = args.first_row + blockIdx.y;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, dim = args.dim, cols = args.heads * dim;
    const int spans = args.rows[row].position / SPAN_POSITIONS + 1;
    const u64 partial = static_cast<u64>(blockIdx.y) * args.heads * args.spans;
    const int first = blockIdx.x * MERGE_COLUMNS, past = first + MERGE_COLUMNS < cols ? first + MERGE_COLUMNS : cols;
    const int first_head = first / dim, heads = (past - 1) / dim + 1 - first_head;
    for (int h = warp; h < heads; h += MERGE_COLUMNS / 32) {
        const u64 at = partial + static_cast<u64>(first_head + h) * args.spans;
        float largest = __uint_as_float(NEGATIVE_INFINITY), total = 0.f;
        for (int span = lane; span < spans; span += 32) largest = fmaxf(largest, args.partial_max[at + span]);
        largest = warp_max(largest);
        for (int span = lane; span < spans; span += 32) {
            total = fmaf(args.partial_sum[at + span], expf(args.partial_max[at + span] - largest), total);
        }
        total = warp_sum(total);
        if (lane == 0) {
            s.largest[h] = largest;
            s.total[h] = total;
        }
    }
    __syncthreads();
    const int column = first + threadIdx.x;
    float value = 0.f;
    if (column < cols) {
        const int head = column / dim, d = column - head * dim;
        const u64 at = partial + static_cast<u64>(head) * args.spans;
        float sum = 0.f;
#pragma unroll 4
        for (int span = 0; span < spans; span++) {
            const float weight = expf(args.partial_max[at + span] - s.largest[head - first_head]);
            sum = fmaf(args.partial[(at + span) * dim + d], weight, sum);
        }
        value = sum / s.total[head - first_head];
        if (args.gated) value *= sigmoid_of(args.q[((row * args.heads + head) * 2 + 1) * dim + d]);
    }
    s.values[threadIdx.x] = value;
    __syncthreads();
    if (warp > 0) return;
    float values[8];
    load8(s.values + 8 * lane, values);
    emit(args.out, row, first, values);
}
