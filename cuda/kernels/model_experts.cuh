// Mixtures of experts: which experts a row visits, and the sum of what they return.
#pragma once
#include "model.cuh"

// Softmax over all experts, then the best of each row; equal probabilities go to the lower expert. One warp a row.
__device__ __forceinline__ void route(const RouteArgs& args) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const int lane = threadIdx.x & 31;
    const int row = blockIdx.x * (blockDim.x / 32) + (threadIdx.x >> 5);
    if (row >= args.rows) return;
    const float* scores = args.scores + static_cast<u64>(row) * args.experts;
    float largest = __uint_as_float(NEGATIVE_INFINITY);
    for (int i = lane; i < args.experts; i += 32) largest = fmaxf(largest, scores[i]);
    largest = warp_max(largest);
    float total = 0.f;
    for (int i = lane; i < args.experts; i += 32) total += expf(scores[i] - largest);
    total = warp_sum(total);
    // Each choice is the best below the one before: scores do not change, so nothing needs to be crossed out.
    float bound = __uint_as_float(0x7f800000u), chosen = 0.f;
    int last = -1;
    for (int k = 0; k < args.top_k; k++) {
        float best = __uint_as_float(NEGATIVE_INFINITY);
        int at = args.experts;
        for (int i = lane; i < args.experts; i += 32) {
            const float score = scores[i];
            const bool open = score < bound || (score == bound && i > last);
            if (open && (score > best || at == args.experts)) {
                best = score;
                at = i;
            }
        }
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) {
            const float other = lane_xor(best, offset);
            const int other_at = static_cast<int>(lane_xor(static_cast<float>(at), offset));
            if (other_at < args.experts && (at == args.experts || other > best || (other == best && other_at < at))) {
                best = other;
                at = other_at;
            }
        }
        // Scores that are not numbers have no best: any expert will do, and its weight is no number either.
        const int choice = at < args.experts ? at : k;
        const float weight = expf(scores[choice] - largest) / total;
        chosen += weight;
        if (lane == 0) {
            args.choices[row * args.top_k + k] = choice;
            args.weights[row * args.top_k + k] = weight;
        }
        bound = best;
        last = at;
    }
    if (args.normalize && lane == 0) {
        for (int k = 0; k < args.top_k; k++) args.weights[row * args.top_k + k] /= chosen;
    }
}

// out += sum of the chosen experts' results, best first, and the shared expert's times its gate.
__device__ __forceinline__ void mix_experts(const MixExpertsArgs& args) {
    allow_next_kernel();
    wait_for_previous_kernel();
    const u64 row = blockIdx.y;
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= args.cols) return;
    float sum = 0.f;
    for (int k = 0; k < args.top_k; k++) {
        const u64 pair = row * args.top_k + k;
        sum = fmaf(args.weights[pair], args.returned[pair * args.cols + column], sum);
    }
    if (args.shared) {
        sum = fmaf(sigmoid_of(args.shared_gate[row]), args.shared[row * args.cols + column], sum);
    }
    args.out[row * args.cols + column] += sum;
}
