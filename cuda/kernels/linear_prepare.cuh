// Before the gated delta rule: causal convolution with SiLU, lengths of queries and keys, write strengths and decays.
//
// One warp per sequence and head (queries, then keys, then values), CHANNELS channels per lane. A lane keeps the taps
// of its channels in registers and walks over the rows of the sequence. Keys, their scales and the gates go straight
// to the log.
#pragma once
#include "linear.cuh"

constexpr int MAX_TAPS = 8;
constexpr float NORMALIZE_EPS = 1e-6f;

__device__ __forceinline__ float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

// ln(1 + e^x), x itself above 20.
__device__ __forceinline__ float softplus(float x) { return x > 20.f ? x : fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

// CHANNELS neighbouring channels: 4 are one access.
template <int CHANNELS, class E>
__device__ __forceinline__ void load_channels(const E* from, float* x) {
    if constexpr (CHANNELS == 4) {
        const float4 four = load4(from);
        x[0] = four.x;
        x[1] = four.y;
        x[2] = four.z;
        x[3] = four.w;
    } else {
        x[0] = widen(from[0]);
    }
}

template <int CHANNELS, class E>
__device__ __forceinline__ void store_channels(E* to, const float* x) {
    if constexpr (CHANNELS == 4) {
        store4(to, make_float4(x[0], x[1], x[2], x[3]));
    } else {
        narrow(x[0], to);
    }
}

// A head of up to 32 CHANNELS channels at a time.
template <class A, int CHANNELS>
struct LinearPrepare {
    static constexpr int WIDTH = 32 * CHANNELS;

    const LinearPrepareArgs& args;
    const SequencePlan& plan;
    int head;     // of its kind
    int lane;
    int channel;  // of the head, the lane's first; channels from the model's width on are padding

    __device__ __forceinline__ int ring_row(int row) const {
        return static_cast<int>((plan.start + row) & (args.shape.capacity - 1));
    }

    // Calls use(row, values) with the convolved values of each row; `first` is the head's first channel. Convolutions
    // of fewer than TAPS taps have zero weights for the oldest.
    template <int TAPS, class Use>
    __device__ __forceinline__ void convolve_taps(int first, int model_width, Use use) {
        const LinearShape& shape = args.shape;
        const int channels = 2 * shape.key_heads * args.key_dim + shape.value_heads * args.value_dim;
        const int at = first + channel;
        const bool live = channel < model_width;
        const A* inputs = static_cast<const A*>(args.inputs) + static_cast<u64>(plan.first_row) * channels + at;
        A* ring = static_cast<A*>(args.conv_ring) + static_cast<u64>(plan.slot) * args.conv_rows * channels + at;
        const u32 mask = args.conv_rows - 1;
        float taps[TAPS][CHANNELS], weights[TAPS][CHANNELS];
#pragma unroll
        for (int tap = 0; tap < TAPS; tap++) {
            const int age = TAPS - 1 - tap;
            const bool used = live && age < args.conv_width;
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                const int weight = (at + c) * args.conv_width + args.conv_width - 1 - age;
                weights[tap][c] = used ? args.conv_weights[weight] : 0.f;
                taps[tap][c] = 0.f;
            }
            if (used && age > 0 && plan.start >= static_cast<u32>(age)) {
                load_channels<CHANNELS>(ring + static_cast<u64>((plan.start - age) & mask) * channels, taps[tap]);
            }
        }
        for (int row = 0; row < plan.rows; row++) {
            float values[CHANNELS];
            if (live) {
                load_channels<CHANNELS>(inputs + static_cast<u64>(row) * channels, taps[TAPS - 1]);
                A* kept = ring + static_cast<u64>((plan.start + row) & mask) * channels;
                store_channels<CHANNELS>(kept, taps[TAPS - 1]);
            }
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                float sum = 0.f;
#pragma unroll
                for (int tap = 0; tap < TAPS; tap++) sum = fmaf(weights[tap][c], taps[tap][c], sum);
                values[c] = live ? sum * sigmoid(sum) : 0.f;
#pragma unroll
                for (int tap = 1; tap < TAPS; tap++) taps[tap - 1][c] = taps[tap][c];
            }
            use(row, values);
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
    __device__ __forceinline__ float inverse_length(const float* values) {
        float squares = 0.f;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            const float x = rounded(values[c], static_cast<const A*>(nullptr));
            squares = fmaf(x, x, squares);
        }
        return 1.f / sqrtf(warp_sum(squares) + NORMALIZE_EPS);
    }

    __device__ __forceinline__ void query() {
        convolve(head * args.key_dim, args.key_dim, [&](int row, const float* values) {
            const u64 at = static_cast<u64>(plan.first_row + row) * args.shape.key_heads + head;
            store_channels<CHANNELS>(static_cast<A*>(args.queries) + at * WIDTH + channel, values);
            const float scale = inverse_length(values) * args.query_factor;
            if (lane == 0) args.query_scale[at] = scale;
        });
    }

    __device__ __forceinline__ void key() {
        const int first = (args.shape.key_heads + head) * args.key_dim;
        const u64 ring = (static_cast<u64>(plan.ring) * args.shape.key_heads + head) * args.shape.capacity;
        convolve(first, args.key_dim, [&](int row, const float* values) {
            const u64 at = ring + ring_row(row);
            store_channels<CHANNELS>(static_cast<A*>(args.key_log) + at * WIDTH + channel, values);
            const float scale = inverse_length(values);
            if (lane == 0) args.key_scale[at] = scale;
        });
    }

    __device__ __forceinline__ void value() {
        const LinearShape& shape = args.shape;
        // Values can be wider than a warp's channels.
        for (; channel < args.padded_value_dim; channel += WIDTH) {
            convolve(2 * shape.key_heads * args.key_dim + head * args.value_dim, args.value_dim,
                     [&](int row, const float* values) {
                         const u64 at = static_cast<u64>(plan.first_row + row) * shape.value_heads + head;
                         A* to = static_cast<A*>(args.values) + at * args.padded_value_dim + channel;
                         store_channels<CHANNELS>(to, values);
                     });
        }
        const u64 ring = (static_cast<u64>(plan.ring) * shape.value_heads + head) * shape.capacity;
        for (int row = lane; row < plan.rows; row += 32) {
            const u64 at = static_cast<u64>(plan.first_row + row) * shape.value_heads + head;
            args.beta[at] = args.beta_max * sigmoid(args.beta_inputs[at]);
            const float rate = softplus(args.alpha_inputs[at] + args.decay_bias[head]);
            args.gate_log[ring + ring_row(row)] = args.decay_rate[head] * rate;
        }
    }

    __device__ __forceinline__ void run(int unit) {
        const int keys = args.shape.key_heads;
        if (unit < keys) {
            head = unit;
            query();
        } else if (unit < 2 * keys) {
            head = unit - keys;
            key();
        } else if (unit < 2 * keys + args.shape.value_heads) {
            head = unit - 2 * keys;
            value();
        }
    }
};

template <class A, int CHANNELS>
__device__ __forceinline__ void linear_prepare(const LinearPrepareArgs& args) {
    const int lane = threadIdx.x & 31;
    const int unit = blockIdx.x * (blockDim.x / 32) + (threadIdx.x >> 5);
    wait_for_previous_kernel();
    allow_next_kernel();
    LinearPrepare<A, CHANNELS>{args, args.plans[blockIdx.z], 0, lane, lane * CHANNELS}.run(unit);
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
