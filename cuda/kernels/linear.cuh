// Data shared by the kernels of the linear mixer and the host (src/linear/abi.rs mirrors these structures).
#pragma once
#include "device.cuh"

constexpr int MAX_STEPS = 29;

// What one sequence does in one launch: windows and folds, in order, as the host's plan says.
struct SequencePlan {
    int slot;       // base state, convolution ring
    int ring;       // log
    int first_row;  // of the batch
    u32 start;      // absolute position of the first row
    u16 log;        // log entries before the launch: positions start - log .. start
    u16 rows;
    unsigned char has_base;
    unsigned char step_count;
    u16 steps[MAX_STEPS];  // kind in the two top bits, rows or entries below
};

constexpr u32 STEP_WINDOW = 0, STEP_PREVIEW = 1, STEP_FOLD = 2;
__device__ __forceinline__ u32 step_kind(u32 step) { return step >> 14; }
__device__ __forceinline__ int step_count(u32 step) { return static_cast<int>(step & 0x3fffu); }

struct LinearShape {
    int key_heads;
    int value_heads;
    int capacity;  // entries of a log ring, a power of two; the entry of position p is p & (capacity - 1)
    // Value head h reads key head h % divisor where `tiled`, h / divisor otherwise.
    int tiled;
    int divisor;
    u64 inverse;  // ceil(2^32 / divisor)
};

__device__ __forceinline__ int key_head_of(const LinearShape& shape, int value_head) {
    const int quotient = static_cast<int>((static_cast<u64>(value_head) * shape.inverse) >> 32);
    return shape.tiled ? value_head - quotient * shape.divisor : quotient;
}

// Keys and queries are logged as the convolution yields them, with the inverse of their length beside them: a
// 16-bit key then loses nothing, and the normalisation is one product per score.
struct LinearStepArgs {
    const SequencePlan* plans;  // one per blockIdx.z
    float* base;                // [slots][value_heads][value_dim][key_dim]
    const void* key_log;        // [rings][key_heads][capacity][key_dim]
    const float* key_scale;     // [rings][key_heads][capacity]
    float* delta_log;           // [rings][value_heads][capacity][value_dim]
    const float* gate_log;      // [rings][value_heads][capacity], log decays
    const void* queries;        // [rows][key_heads][key_dim]
    const float* query_scale;   // [rows][key_heads], softmax scale included
    const void* values;         // [rows][value_heads][value_dim]
    const float* beta;          // [rows][value_heads]
    void* out;                  // [rows][value_heads][value_dim]
    LinearShape shape;
    int value_dim;              // padded to whole blocks
    int unused;
};

struct LinearPrepareArgs {
    const SequencePlan* plans;
    const void* inputs;        // [rows][conv_channels]: queries, keys, values before the convolution
    const float* beta_inputs;  // [rows][value_heads] before the sigmoid
    const float* alpha_inputs; // [rows][value_heads] before bias and softplus
    void* conv_ring;           // [slots][conv_rows][conv_channels], row position & (conv_rows - 1)
    const float* conv_weights; // [conv_channels][conv_width], oldest tap first
    const float* decay_bias;   // [value_heads]
    const float* decay_rate;   // [value_heads], -exp(A_log)
    void* key_log;
    float* key_scale;
    float* gate_log;
    void* queries;
    float* query_scale;
    void* values;
    float* beta;
    LinearShape shape;
    int key_dim;          // of the model; padded to the kernel's with zeros
    int value_dim;        // of the model
    int padded_value_dim;
    int conv_width;
    int conv_rows;  // a power of two
    float beta_max;
    float query_factor;   // 1 / sqrt(key_dim)
    int unused;
};

struct GatedNormArgs {
    const void* x;        // [rows][heads][padded_dim]
    const void* gate;     // [rows][heads][dim]
    const float* weight;  // [dim]
    void* out;            // [rows][heads][dim]
    int vectors;          // rows * heads
    int dim;
    int padded_dim;
    float eps;
};

// The plain recurrence: the yardstick, and the oracle on the device.
struct LinearRecurrenceArgs {
    float* base;              // [sequences][value_heads][value_dim][key_dim]
    float* snapshots;         // [sequences][rows][value_heads][value_dim][key_dim], or null
    const void* keys;         // [sequences][rows][key_heads][key_dim]
    const void* queries;      // as keys
    const void* values;       // [sequences][rows][value_heads][value_dim]
    const float* gates;       // [sequences][rows][value_heads], log decays
    const float* beta;        // as gates
    void* out;                // as values
    LinearShape shape;
    int value_dim;
    int rows;
    int store;                // whether the base is written back
    float scale;
};

static_assert(sizeof(SequencePlan) == 80 && sizeof(LinearShape) == 32, "as src/linear/abi.rs");
static_assert(sizeof(LinearPrepareArgs) == 15 * 8 + 32 + 8 * 4 && sizeof(LinearStepArgs) == 11 * 8 + 32 + 2 * 4,
              "as src/linear/abi.rs");
static_assert(sizeof(GatedNormArgs) == 4 * 8 + 4 * 4 && sizeof(LinearRecurrenceArgs) == 8 * 8 + 32 + 4 * 4,
              "as src/linear/abi.rs");
