// Before the gated delta rule: causal convolution with SiLU, lengths of queries and keys, write strengths and decays.
//
// One block per sequence and head (queries, then keys, then values), one thread per channel. A thread keeps the taps
// of its channel in registers and walks over the rows of the sequence. Keys, their scales and the gates go straight
// to the log.
#pragma once
#include "linear.cuh"

constexpr int MAX_TAPS = 8;
constexpr float NORMALIZE_EPS = 1e-6f;

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// ln(1 + e^x), x itself above 20.
__device__ __forceinline__ float softplus(float x) { return x > 20.f ? x : fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

// Sum over the threads of a block, in every thread; `partial` has a place per warp.
__device__ __forceinline__ float block_sum(float value, float* partial) {
    const float sum = warp_sum(value);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = sum;
    __syncthreads();
    float total = 0.f;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; warp++) total += partial[warp];
    return total;
}

template <class A>
struct LinearPrepare {
    const LinearPrepareArgs& args;
    const SequencePlan& plan;
    int head;     // of its kind
    int channel;  // of the head; channels from the model's width on are padding
    int width;    // padded

    __device__ __forceinline__ int ring_row(int row) const {
        return static_cast<int>((plan.start + row) & (args.shape.capacity - 1));
    }

    // Calls use(row, value) with the convolved value of each row; `first` is the head's first channel. Convolutions of
    // fewer than TAPS taps have zero weights for the oldest.
    template <int TAPS, class Use>
    __device__ __forceinline__ void convolve_taps(int first, int model_width, Use use) {
        const LinearShape& shape = args.shape;
        const int channels = 2 * shape.key_heads * args.key_dim + shape.value_heads * args.value_dim;
        const int at = first + channel;
        const bool live = channel < model_width;
        const A* inputs = static_cast<const A*>(args.inputs) + static_cast<u64>(plan.first_row) * channels + at;
        A* ring = static_cast<A*>(args.conv_ring) + static_cast<u64>(plan.slot) * args.conv_rows * channels + at;
        const u32 mask = args.conv_rows - 1;
        float taps[TAPS], weights[TAPS];
#pragma unroll
        for (int tap = 0; tap < TAPS; tap++) {
            const int age = TAPS - 1 - tap;
            const bool used = live && age < args.conv_width;
            weights[tap] = used ? args.conv_weights[at * args.conv_width + args.conv_width - 1 - age] : 0.f;
            const bool past = used && age > 0 && plan.start >= static_cast<u32>(age);
            taps[tap] = past ? widen(ring[static_cast<u64>((plan.start - age) & mask) * channels]) : 0.f;
        }
        for (int row = 0; row < plan.rows; row++) {
            const A input = live ? inputs[static_cast<u64>(row) * channels] : A{};
            if (live) ring[static_cast<u64>((plan.start + row) & mask) * channels] = input;
            taps[TAPS - 1] = widen(input);
            float sum = 0.f;
#pragma unroll
            for (int tap = 0; tap < TAPS; tap++) sum = fmaf(weights[tap], taps[tap], sum);
            use(row, live ? sum * sigmoid(sum) : 0.f);
#pragma unroll
            for (int tap = 1; tap < TAPS; tap++) taps[tap - 1] = taps[tap];
        }
    }

    template <class Use>
    __device__ __forceinline__ void convolve(int first, int model_width, Use use) {
        if (args.conv_width <= 4) {
            convolve_taps<4>(first, model_width, use);
        } else {
            convolve_taps<MAX_TAPS>(first, model_width, use);
        }
    }

    // 1 / length of a head as it is stored.
    __device__ __forceinline__ float inverse_length(A stored) {
        const float x = widen(stored);
        return 1.f / sqrtf(block_sum(x * x, reinterpret_cast<float*>(SHARED)) + NORMALIZE_EPS);
    }

    __device__ __forceinline__ void query() {
        convolve(head * args.key_dim, args.key_dim, [&](int row, float value) {
            const u64 at = static_cast<u64>(plan.first_row + row) * args.shape.key_heads + head;
            A stored;
            narrow(value, &stored);
            static_cast<A*>(args.queries)[at * width + channel] = stored;
            const float scale = inverse_length(stored) * args.query_factor;
            if (channel == 0) args.query_scale[at] = scale;
        });
    }

    __device__ __forceinline__ void key() {
        const int first = (args.shape.key_heads + head) * args.key_dim;
        const u64 ring = (static_cast<u64>(plan.ring) * args.shape.key_heads + head) * args.shape.capacity;
        convolve(first, args.key_dim, [&](int row, float value) {
            const u64 at = ring + ring_row(row);
            A stored;
            narrow(value, &stored);
            static_cast<A*>(args.key_log)[at * width + channel] = stored;
            const float scale = inverse_length(stored);
            if (channel == 0) args.key_scale[at] = scale;
        });
    }

    __device__ __forceinline__ void value() {
        const LinearShape& shape = args.shape;
        // Values can be wider than the block of threads.
        for (; channel < args.padded_value_dim; channel += width) {
            convolve(2 * shape.key_heads * args.key_dim + head * args.value_dim, args.value_dim,
                     [&](int row, float value) {
                         const u64 at = static_cast<u64>(plan.first_row + row) * shape.value_heads + head;
                         narrow(value, static_cast<A*>(args.values) + at * args.padded_value_dim + channel);
                     });
        }
        const u64 ring = (static_cast<u64>(plan.ring) * shape.value_heads + head) * shape.capacity;
        for (int row = threadIdx.x; row < plan.rows; row += width) {
            const u64 at = static_cast<u64>(plan.first_row + row) * shape.value_heads + head;
            args.beta[at] = args.beta_max * sigmoid(args.beta_inputs[at]);
            const float rate = softplus(args.alpha_inputs[at] + args.decay_bias[head]);
            args.gate_log[ring + ring_row(row)] = args.decay_rate[head] * rate;
        }
    }

    __device__ __forceinline__ void run() {
        const int keys = args.shape.key_heads;
        const int block = blockIdx.x;
        if (block < keys) {
            head = block;
            query();
        } else if (block < 2 * keys) {
            head = block - keys;
            key();
        } else {
            head = block - 2 * keys;
            value();
        }
    }
};

// Blocks of as many threads as a padded key has columns.
template <class A>
__device__ __forceinline__ void linear_prepare(const LinearPrepareArgs& args) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const int thread = threadIdx.x, width = blockDim.x;
    LinearPrepare<A>{args, args.plans[blockIdx.z], 0, thread, width}.run();
}

// out = x / sqrt(mean(x^2) + eps) * weight * silu(gate), one warp per head.
template <class A>
__device__ __forceinline__ void gated_norm(const GatedNormArgs& args) {
    wait_for_previous_kernel();
    allow_next_kernel();
    const int lane = threadIdx.x & 31;
    const int vector = blockIdx.x * (blockDim.x / 32) + (threadIdx.x >> 5);
    if (vector >= args.vectors) return;
    const A* x = static_cast<const A*>(args.x) + static_cast<u64>(vector) * args.padded_dim;
    const A* gate = static_cast<const A*>(args.gate) + static_cast<u64>(vector) * args.dim;
    A* out = static_cast<A*>(args.out) + static_cast<u64>(vector) * args.dim;
    float squares = 0.f;
    for (int i = lane; i < args.dim; i += 32) squares = fmaf(widen(x[i]), widen(x[i]), squares);
    const float inverse = 1.f / sqrtf(warp_sum(squares) / args.dim + args.eps);
    for (int i = lane; i < args.dim; i += 32) {
        const float z = widen(gate[i]);
        narrow(widen(x[i]) * inverse * args.weight[i] * (z * sigmoid(z)), out + i);
    }
}
