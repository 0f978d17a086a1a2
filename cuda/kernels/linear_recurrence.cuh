// The plain recurrence, state read and written for every launch: the yardstick of the buffered step, and its oracle.
#pragma once
#include "linear_step.cuh"

// One block of 128 threads owns ROWS values of one head and keeps them in registers.
template <class A, int DK, int ROWS>
__device__ __forceinline__ void linear_recurrence(const LinearRecurrenceArgs& args) {
    constexpr int WARP_ROWS = ROWS / 4, NI = WARP_ROWS / 4, CHUNKS = DK / 32;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, column = (lane & 7) * 4;
    const int head = blockIdx.y, sequence = blockIdx.z, heads = args.shape.value_heads;
    const int key_head = key_head_of(args.shape, head);
    const int first = blockIdx.x * ROWS + warp * WARP_ROWS + (lane >> 3);
    float* base = args.base + ((static_cast<u64>(sequence) * heads + head) * args.value_dim + first) * DK + column;
    float4 state[NI][CHUNKS];
#pragma unroll
    for (int i = 0; i < NI; i++) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) state[i][c] = load4(base + i * 4 * DK + c * 32);
    }
    wait_for_previous_kernel();
    allow_next_kernel();
    for (int t = 0; t < args.rows; t++) {
        const u64 row = static_cast<u64>(sequence) * args.rows + t;
        const A* key_row = static_cast<const A*>(args.keys) + (row * args.shape.key_heads + key_head) * DK + column;
        const A* query_row = static_cast<const A*>(args.queries) + (row * args.shape.key_heads + key_head) * DK + column;
        float4 key[CHUNKS], query[CHUNKS];
        float lengths[3] = {0.f, 0.f, 0.f};
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            const float4 k = load4(key_row + c * 32), q = load4(query_row + c * 32);
            key[c] = k;
            query[c] = q;
            lengths[0] += k.x * k.x + k.y * k.y + k.z * k.z + k.w * k.w;
            lengths[1] += q.x * q.x + q.y * q.y + q.z * q.z + q.w * q.w;
            lengths[2] += k.x * q.x + k.y * q.y + k.z * q.z + k.w * q.w;
        }
#pragma unroll
        for (int j = 0; j < 3; j++) {
#pragma unroll
            for (int offset = 4; offset > 0; offset /= 2) lengths[j] += lane_xor(lengths[j], offset);
        }
        const float key_scale = 1.f / sqrtf(lengths[0] + 1e-6f);
        const float query_scale = args.scale / sqrtf(lengths[1] + 1e-6f);
        const float decay = expf(args.gates[row * heads + head]), beta = args.beta[row * heads + head];
        float sums[NI][2];
#pragma unroll
        for (int i = 0; i < NI; i++) {
            sums[i][0] = sums[i][1] = 0.f;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                const float4 x = state[i][c], k = key[c], q = query[c];
                sums[i][0] += x.x * k.x + x.y * k.y + x.z * k.z + x.w * k.w;
                sums[i][1] += x.x * q.x + x.y * q.y + x.z * q.z + x.w * q.w;
            }
#pragma unroll
            for (int offset = 4; offset > 0; offset /= 2) {
                sums[i][0] += lane_xor(sums[i][0], offset);
                sums[i][1] += lane_xor(sums[i][1], offset);
            }
        }
#pragma unroll
        for (int i = 0; i < NI; i++) {
            const u64 at = (row * heads + head) * args.value_dim + first + i * 4;
            const float value = widen(static_cast<const A*>(args.values)[at]);
            const float delta = beta * (value - decay * key_scale * sums[i][0]);
            const float out = query_scale * (decay * sums[i][1] + key_scale * lengths[2] * delta);
            if (column == 0) narrow(out, static_cast<A*>(args.out) + at);
            const float write = key_scale * delta;
#pragma unroll
            for (int c = 0; c < CHUNKS; c++) {
                state[i][c].x = decay * state[i][c].x + write * key[c].x;
                state[i][c].y = decay * state[i][c].y + write * key[c].y;
                state[i][c].z = decay * state[i][c].z + write * key[c].z;
                state[i][c].w = decay * state[i][c].w + write * key[c].w;
                if (args.snapshots) {
                    float* snapshot = args.snapshots + at * DK + column + c * 32;
                    store_streaming(reinterpret_cast<float4*>(snapshot), state[i][c]);
                }
            }
        }
    }
    if (!args.store) return;
#pragma unroll
    for (int i = 0; i < NI; i++) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            *reinterpret_cast<float4*>(base + i * 4 * DK + c * 32) = state[i][c];
        }
    }
}
