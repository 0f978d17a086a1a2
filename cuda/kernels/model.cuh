// Data shared by the kernels of whole models and the host (src/model/abi.rs mirrors these structures).
#pragma once
#include "numbers.cuh"

// Rows of activations as bytes: value = scale * quant, one scale for each 32 values.
struct ByteRows {
    i8* quants;     // [rows][cols]
    float* scales;  // [rows][cols / 32]
    int* sums;      // [rows][cols / 16], of the quants
};

// The forms in which matrices take a row; absent ones are null.
struct Forms {
    float* values;
    ByteRows bytes;
    u64 cols;
};

struct EmbedArgs {
    const u8* weights;
    u64 row_bytes;
    const u32* tokens;  // [rows]
    float* out;         // [rows][cols]
    int format;
    int cols;
};

struct NormArgs {
    const float* x;       // [..][cols]
    const float* weight;  // [cols]
    const u32* gather;    // [rows] rows of x, or null for all in order
    Forms out;
    float* plain;         // besides, at the start of rows of plain_stride values; or null
    int plain_stride;
    int cols;
    float eps;
    int unused;
};

struct RowsArgs {
    const float* x;     // [rows][cols]
    const float* gate;  // silu(gate) * x; null for x itself
    Forms out;
    int rows;
    int cols;
};

struct HeadNormArgs {
    const float* x;       // [rows][heads][padded_dim]
    const float* gate;    // [rows][heads][dim]
    const float* weight;  // [dim]
    Forms out;            // [rows][heads * dim]
    int heads;
    int dim;
    int padded_dim;
    float eps;
};

struct Matrix {
    const u8* weights;  // [experts][rows][row_bytes]
    u64 row_bytes;
    float* out;         // [x rows][out_stride]
    int rows;
    int out_stride;
    int format;
    int first_block;  // of the grid
    int block_rows;   // of a block
    u16 split;        // warps that share a row: 1, 2 or 4
    u16 staged;       // whether a block's rows go through shared memory
};

// What a product with a single row makes its activations from, in every block: a kernel less to wait for.
enum SourceKind {
    SOURCE_FORMS,     // nothing: they are there
    SOURCE_NORM,      // x / sqrt(mean(x^2) + eps) * weight
    SOURCE_ACTIVATED, // silu(gate) * x
    SOURCE_HEADS,     // heads of x normed by themselves, times silu(gate)
};

struct Source {
    const float* x;
    const float* gate;
    const float* weight;
    int kind;
    int dim;         // of heads
    int padded_dim;  // of heads in x
    float eps;
};

constexpr int MAX_MATRICES = 4;

struct MatmulArgs {
    Matrix matrices[MAX_MATRICES];
    Forms x;
    const int* experts;  // the expert of each output row, or null
    u64 expert_bytes;
    int matrix_count;
    int first_row;   // of x and out
    int rows;        // from there
    int accumulate;  // add to what is there
    int pairs;       // output rows of a row of x, where there are experts
    int staged_at;   // place of weights in shared memory
    Source source;   // then the addresses of x only say which forms there are
};

struct RouteArgs {
    const float* scores;  // [rows][experts]
    int* choices;         // [rows][top_k]
    float* weights;       // [rows][top_k]
    int experts;
    int top_k;
    int normalize;
    int rows;
};

struct MixExpertsArgs {
    const float* returned;      // [rows][top_k][cols]
    const float* weights;       // [rows][top_k]
    const float* shared;        // [rows][cols], or null
    const float* shared_gate;   // [rows] before the sigmoid
    float* out;                 // [rows][cols], added to
    int top_k;
    int cols;
};

// Where a row of attention stands.
struct AttentionRow {
    int position;
    int table;  // of the pages of its sequence, in the table of all
};

struct AttentionArgs {
    const AttentionRow* rows;
    const u64* pages;  // addresses
    const float* q;    // [rows][heads][dim], or [rows][heads][2][dim] with the gate after each query
    const float* k;    // [rows][kv_heads][dim]
    const float* v;
    const float* q_norm;       // [dim]
    const float* k_norm;       // [dim]
    const float* frequencies;  // [rotary / 2]
    float* queries;            // [rows][heads][dim]
    float* partial;            // [rows][heads][spans][dim], sums of values
    float* partial_max;        // [rows][heads][spans]
    float* partial_sum;        // [rows][heads][spans]
    Forms out;                 // [rows][heads * dim]
    u64 page_offset;           // of the layer, in values
    int heads;
    int kv_heads;
    int dim;
    int rotary;
    int gated;
    int first_row;  // of this launch; partial results start at it
    int spans;      // there is room for
    float eps;
    float scale;
    int unused;
};

static_assert(sizeof(Forms) == 40 && sizeof(EmbedArgs) == 40 && sizeof(NormArgs) == 88, "as src/model/abi.rs");
static_assert(sizeof(RowsArgs) == 64 && sizeof(HeadNormArgs) == 80 && sizeof(Matrix) == 48, "as src/model/abi.rs");
static_assert(sizeof(MatmulArgs) == 312 && sizeof(Source) == 40 && sizeof(RouteArgs) == 40, "as src/model/abi.rs");
static_assert(sizeof(MixExpertsArgs) == 48 && sizeof(AttentionArgs) == 184, "as src/model/abi.rs");
