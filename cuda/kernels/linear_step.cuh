// The gated delta rule over base state and log: windows and folds of one sequence, value head and block of values.
//
// With base state S (here [value][key]: a value's row is contiguous), unit keys k, scaled queries q, deltas d and log
// decays g, row t after n entries:
//
//     w_i = exp(g_{i+1} + .. + g_t)          base = exp(g_0 + .. + g_t)
//     d_t = beta_t (v_t - base S k_t - sum_{i<t} w_i (k_i . k_t) d_i)
//     o_t = base S q_t + sum_{i<t} w_i (k_i . q_t) d_i + (k_t . q_t) d_t
//
// and a fold turns the oldest entries into the state: S <- base S + sum_i (w_i d_i) k_i^T.
//
// One block of 128 threads owns ROWS values of one head. The state tile, the log's keys and its deltas come to shared
// memory by asynchronous copies; nothing is written back but new deltas, outputs, and the tile where a fold is
// durable. A preview fold changes the copy in shared memory only.
//
// The order of every sum depends on the position of a row and of the folds before it, never on how many rows share a
// launch: a verify window has the bits of single steps.
#pragma once
#include "linear.cuh"

constexpr int STEP_THREADS = 128;

template <class A, int DK, int ROWS, int T, int ENTRIES>
struct StepShared {
    float tile[ROWS * DK];
    float panel[2 * T * DK];  // keys, then queries, of the window's rows
    float deltas[ENTRIES * ROWS];
    A keys[ENTRIES * DK];
    A queries[T * DK];
    A values[T * ROWS];
    float gates[ENTRIES];
    float key_scale[ENTRIES];
    float weights[ENTRIES * T];      // decay from an entry to a row
    float erase[ENTRIES * T];        // coefficients of the deltas in what a row erases
    float read[ENTRIES * T];         // and in what it reads
    float state_sums[2 * T * ROWS];  // S k_t, then S q_t
    float base_weight[T];
    float beta[T];
    float query_scale[T];
    u64 barrier;
};

// Sums over the key dimension of NI rows (`stride` apart) with N vectors of a panel, each lane its 4 columns of 32.
template <int NI, int N, int DK, class E>
__device__ __forceinline__ void dot_panel(const E* rows, int stride, const float* panel, int column, float* sums) {
#pragma unroll
    for (int c = 0; c < DK / 32; c++) {
        float4 vectors[N];
#pragma unroll
        for (int v = 0; v < N; v++) vectors[v] = load4(panel + v * DK + c * 32 + column);
#pragma unroll
        for (int i = 0; i < NI; i++) {
            const float4 x = load4(rows + i * stride + c * 32 + column);
#pragma unroll
            for (int v = 0; v < N; v++) {
                float sum = c == 0 ? 0.f : sums[i * N + v];
                sum = fmaf(x.x, vectors[v].x, sum);
                sum = fmaf(x.y, vectors[v].y, sum);
                sum = fmaf(x.z, vectors[v].z, sum);
                sums[i * N + v] = fmaf(x.w, vectors[v].w, sum);
            }
        }
    }
}

// One level of `reduce8`: adds the partner's values; while several are left, each of the two keeps one half of them.
template <int N, int OFFSET>
__device__ __forceinline__ void halve(float* sums, int lane) {
    if (N == 1) {
        sums[0] += lane_xor(sums[0], OFFSET);
        return;
    }
    const bool upper = lane & OFFSET;
#pragma unroll
    for (int j = 0; j < N / 2; j++) {
        const float sent = upper ? sums[j] : sums[j + N / 2];
        const float kept = upper ? sums[j + N / 2] : sums[j];
        sums[j] = kept + lane_xor(sent, OFFSET);
    }
}

// Sums of N values over groups of 8 lanes. Each lane ends with max(N / 8, 1) of them; returns the index of its first.
template <int N>
__device__ __forceinline__ int reduce8(float* sums, int lane) {
    constexpr int N2 = N > 1 ? N / 2 : 1, N3 = N2 > 1 ? N2 / 2 : 1;
    halve<N, 4>(sums, lane);
    halve<N2, 2>(sums, lane);
    halve<N3, 1>(sums, lane);
    int first = 0;
    if (N > 1) first += lane & 4 ? N / 2 : 0;
    if (N2 > 1) first += lane & 2 ? N2 / 2 : 0;
    if (N3 > 1) first += lane & 1 ? N3 / 2 : 0;
    return first;
}

// Decay sums from entry `newest` back to entry 0, by one warp: calls store(entry, weight) with the decay from each
// entry to the newest, and returns the decay of the state in the lane that met entry 0 (others return a negative).
// The tree of the sums depends on an entry's age alone.
template <class Store>
__device__ __forceinline__ float decay_weights(const float* gates, int newest, int lane, Store store) {
    float carry = 0.f, base = -1.f;
#pragma unroll 1
    for (int first_age = 0; first_age <= newest; first_age += 32) {
        const int entry = newest - first_age - lane;
        float sum = entry >= 0 ? gates[entry] : 0.f;
#pragma unroll
        for (int offset = 1; offset < 32; offset *= 2) {
            const float below = lane_up(sum, offset);
            if (lane >= offset) sum += below;
        }
        sum += carry;
        const float before = lane_up(sum, 1);
        if (entry >= 0) store(entry, expf(lane == 0 ? carry : before));
        if (entry == 0) base = expf(sum);
        carry = lane_get(sum, 31);
    }
    return base;
}

template <class A, int DK, int ROWS, int T, int ENTRIES>
struct LinearStep {
    static constexpr int WARP_ROWS = ROWS / 4;   // of the tile, in one warp
    static constexpr int NI = WARP_ROWS / 4;     // of them, in one lane
    static constexpr int TB = T < 4 ? T : 4;     // window rows of one pass over the tile
    static constexpr int CHUNKS = DK / 32;
    static constexpr int FOLD_CHUNKS = CHUNKS > 1 ? CHUNKS / 2 : 1;

    const LinearStepArgs& args;
    StepShared<A, DK, ROWS, T, ENTRIES>& s;
    const u16* steps;
    const u32 start, step_total;
    const int slot, ring, first_row, log, rows;
    const int thread, lane, warp, column, row_in_warp;
    const int block, head, key_head;
    bool has_state, tile_pending;

    __device__ __forceinline__ LinearStep(const LinearStepArgs& args, const SequencePlan& plan)
        : args(args),
          s(*reinterpret_cast<StepShared<A, DK, ROWS, T, ENTRIES>*>(SHARED)),
          steps(plan.steps),
          start(plan.start),
          step_total(plan.step_count),
          slot(plan.slot),
          ring(plan.ring),
          first_row(plan.first_row),
          log(plan.log),
          rows(plan.rows),
          thread(threadIdx.x),
          lane(thread & 31),
          warp(thread >> 5),
          column((lane & 7) * 4),
          row_in_warp(lane >> 3),
          block(blockIdx.x),
          head(blockIdx.y),
          key_head(key_head_of(args.shape, head)),
          has_state(plan.has_base),
          tile_pending(has_state) {}

    __device__ __forceinline__ float* tile_address() const {
        const u64 index = static_cast<u64>(slot) * args.shape.value_heads + head;
        return args.base + (index * args.value_dim + block * ROWS) * DK;
    }

    __device__ __forceinline__ int ring_row(int entry) const {
        return static_cast<int>((start - log + entry) & (args.shape.capacity - 1));
    }

    __device__ __forceinline__ u64 key_ring() const {
        return (static_cast<u64>(ring) * args.shape.key_heads + key_head) * args.shape.capacity;
    }

    __device__ __forceinline__ u64 value_ring() const {
        return (static_cast<u64>(ring) * args.shape.value_heads + head) * args.shape.capacity;
    }

    __device__ __forceinline__ void request_tile() {
        if (!has_state) return;
        const float* from = tile_address();
#ifdef BULK_COPY
        if (thread == 0) bulk_copy(s.tile, from, ROWS * DK * 4, &s.barrier);
#else
        for (int i = thread * 4; i < ROWS * DK; i += STEP_THREADS * 4) async_copy16(s.tile + i, from + i);
#endif
    }

    // Keys, their scales and gates of log entries `first .. end`.
    __device__ __forceinline__ void request_keys(int first, int end) {
        constexpr int PARTS = DK * static_cast<int>(sizeof(A)) / 16;
        const A* keys = static_cast<const A*>(args.key_log) + key_ring() * DK;
#pragma unroll 1
        for (int i = first * PARTS + thread; i < end * PARTS; i += STEP_THREADS) {
            const int entry = i / PARTS, part = i % PARTS * (16 / static_cast<int>(sizeof(A)));
            async_copy16(s.keys + entry * DK + part, keys + ring_row(entry) * DK + part);
        }
#pragma unroll 1
        for (int entry = first + thread; entry < end; entry += STEP_THREADS) {
            async_copy4(s.gates + entry, args.gate_log + value_ring() + ring_row(entry));
            async_copy4(s.key_scale + entry, args.key_scale + key_ring() + ring_row(entry));
        }
    }

    __device__ __forceinline__ void request_deltas() {
        constexpr int PARTS = ROWS / 4;
        const float* deltas = args.delta_log + value_ring() * args.value_dim + block * ROWS;
#pragma unroll 1
        for (int i = thread; i < log * PARTS; i += STEP_THREADS) {
            const int entry = i / PARTS, part = i % PARTS * 4;
            async_copy16(s.deltas + entry * ROWS + part, deltas + ring_row(entry) * args.value_dim + part);
        }
    }

    // Queries, values and write strengths of `count` rows of the launch from `row` on.
    __device__ __forceinline__ void request_rows(int row, int count) {
        constexpr int EACH = 16 / static_cast<int>(sizeof(A)), QUERY_PARTS = DK / EACH, VALUE_PARTS = ROWS / EACH;
        const u64 batch_row = first_row + row;
        const A* queries = static_cast<const A*>(args.queries) + (batch_row * args.shape.key_heads + key_head) * DK;
        const A* values = static_cast<const A*>(args.values) +
                          (batch_row * args.shape.value_heads + head) * args.value_dim + block * ROWS;
#pragma unroll 1
        for (int i = thread; i < count * (QUERY_PARTS + VALUE_PARTS); i += STEP_THREADS) {
            const int t = i / (QUERY_PARTS + VALUE_PARTS), part = i % (QUERY_PARTS + VALUE_PARTS);
            if (part < QUERY_PARTS) {
                const u64 at = static_cast<u64>(t) * args.shape.key_heads * DK + part * EACH;
                async_copy16(s.queries + t * DK + part * EACH, queries + at);
            } else {
                const int offset = (part - QUERY_PARTS) * EACH;
                const u64 at = static_cast<u64>(t) * args.shape.value_heads * args.value_dim + offset;
                async_copy16(s.values + t * ROWS + offset, values + at);
            }
        }
        if (thread < count) {
            async_copy4(s.beta + thread, args.beta + (batch_row + thread) * args.shape.value_heads + head);
            async_copy4(s.query_scale + thread,
                        args.query_scale + (batch_row + thread) * args.shape.key_heads + key_head);
        }
    }

    // Keys (the first of them log entry `entry`) and queries of the window's rows, widened. Rows from `count` on are
    // zeros.
    __device__ __forceinline__ void make_panel(int entry, int count) {
#pragma unroll
        for (int i0 = 0; i0 < 2 * T * DK / 4; i0 += STEP_THREADS) {
            const int i = i0 + thread;
            const int vector = i / (DK / 4), t = vector % T, part = i % (DK / 4) * 4;
            if (vector >= 2 * T) continue;
            float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
            if (t < count) x = load4((vector < T ? s.keys + (entry + t) * DK : s.queries + t * DK) + part);
            *reinterpret_cast<float4*>(s.panel + panel_row(vector < T ? 0 : 1, t) * DK + part) = x;
        }
    }

    // Vectors of the panel stand in the order in which passes over the tile use them: TB keys, TB queries, and again.
    static __device__ __forceinline__ int panel_row(int query, int t) {
        return t / TB * 2 * TB + query * TB + t % TB;
    }

    // Decay of every entry and of the state at each row of the window.
    __device__ __forceinline__ void decays(int first, int committed, int count) {
#pragma unroll 1
        for (int t = STEP_THREADS / 32 - 1 - warp; t < count; t += STEP_THREADS / 32) {
            float* weights = s.weights + first * T + t;
            const float base = decay_weights(s.gates + first, committed + t, lane,
                                             [&](int entry, float weight) { weights[entry * T] = weight; });
            if (base >= 0.f) s.base_weight[t] = base;
        }
    }

    // Coefficients of every entry at each row of the window.
    __device__ __forceinline__ void scores(int first, int committed, int count) {
        const int entries = committed + count;
#pragma unroll 1
        for (int e0 = 0; e0 < entries; e0 += STEP_THREADS / 8) {
            const int entry = e0 + warp * 4 + row_in_warp;
            const bool live = entry < entries;
#pragma unroll
            for (int pass = 0; pass < T / TB; pass++) {
                float sums[2 * TB];
                const A* key = s.keys + (first + (live ? entry : 0)) * DK;
                dot_panel<1, 2 * TB, DK>(key, 0, s.panel + pass * 2 * TB * DK, column, sums);
                const int index = reduce8<2 * TB>(sums, lane);
                const int t = pass * TB + index % TB;
                if (live && t < count && entry <= committed + t) {
                    const int at = (first + entry) * T + t;
                    const float weight = s.weights[at] * s.key_scale[first + entry];
                    if (index < TB) {
                        s.erase[at] = sums[0] * weight * s.key_scale[first + committed + t];
                    } else {
                        s.read[at] = sums[0] * weight * s.query_scale[t];
                    }
                }
            }
        }
    }

    // What the state returns for the window's keys and queries.
    __device__ __forceinline__ void state_sums() {
#pragma unroll
        for (int pass = 0; pass < T / TB; pass++) {
            constexpr int N = NI * 2 * TB, KEPT = N >= 8 ? N / 8 : 1;
            float sums[N];
            const float* rows = s.tile + (warp * WARP_ROWS + row_in_warp) * DK;
            dot_panel<NI, 2 * TB, DK>(rows, 4 * DK, s.panel + pass * 2 * TB * DK, column, sums);
            const int index = reduce8<N>(sums, lane);
#pragma unroll
            for (int j = 0; j < KEPT; j++) {
                const int i = (index + j) / (2 * TB), vector = (index + j) % (2 * TB);
                const int t = pass * TB + vector % TB, query = vector / TB;
                s.state_sums[(query * T + t) * ROWS + warp * WARP_ROWS + i * 4 + row_in_warp] = sums[j];
            }
        }
    }

    // Deltas and outputs. Half of the threads solve for the deltas, the other half sum the outputs.
    __device__ __forceinline__ void solve(int row, int first, int committed, int count) {
        const int value = thread % ROWS;
        const bool solves = thread < ROWS, reads = thread >= ROWS && thread < 2 * ROWS;
        const float* coefficients = (solves ? s.erase : s.read) + first * T;
        const float* deltas = s.deltas + first * ROWS + value;
        float sums[T];
        if (solves || reads) {
#pragma unroll
            for (int t = 0; t < T; t++) {
                sums[t] = 0.f;
                if (has_state && t < count) {
                    const float scale = solves ? s.key_scale[first + committed + t] : s.query_scale[t];
                    sums[t] = s.base_weight[t] * scale * s.state_sums[((solves ? 0 : T) + t) * ROWS + value];
                }
            }
            for (int i = 0; i < committed; i++) {
                const float delta = deltas[i * ROWS];
#pragma unroll
                for (int t = 0; t < T; t++) {
                    if (t < count) sums[t] = fmaf(coefficients[i * T + t], delta, sums[t]);
                }
            }
        }
        if (solves) {
            float* log = args.delta_log + value_ring() * args.value_dim + block * ROWS + value;
#pragma unroll
            for (int t = 0; t < T; t++) {
                if (t >= count) break;
                const float delta = s.beta[t] * (widen(s.values[t * ROWS + value]) - sums[t]);
                s.deltas[(first + committed + t) * ROWS + value] = delta;
                log[static_cast<u64>(ring_row(first + committed + t)) * args.value_dim] = delta;
#pragma unroll
                for (int later = t + 1; later < T; later++) {
                    if (later < count) {
                        sums[later] = fmaf(coefficients[(committed + t) * T + later], delta, sums[later]);
                    }
                }
            }
        }
        __syncthreads();
        if (reads) {
            A* out = static_cast<A*>(args.out);
#pragma unroll
            for (int t = 0; t < T; t++) {
                if (t >= count) break;
                const float delta = deltas[(committed + t) * ROWS];
#pragma unroll
                for (int later = t; later < T; later++) {
                    if (later < count) {
                        sums[later] = fmaf(coefficients[(committed + t) * T + later], delta, sums[later]);
                    }
                }
                const u64 head_row = (first_row + row + t) * static_cast<u64>(args.shape.value_heads) + head;
                narrow(sums[t], out + head_row * args.value_dim + block * ROWS + value);
            }
        }
    }

    __device__ __forceinline__ void wait_for_tile() {
#ifdef BULK_COPY
        if (tile_pending) bulk_wait(&s.barrier);
#endif
        tile_pending = false;
    }

    // `loaded`: whether the rows are in shared memory already.
    __device__ __forceinline__ void window(int row, int first, int committed, int count, bool loaded) {
        if (!loaded) {
            request_rows(row, count);
            async_wait();
            __syncthreads();
        }
        make_panel(first + committed, count);
        decays(first, committed, count);
        __syncthreads();
        scores(first, committed, count);
        if (has_state) {
            wait_for_tile();
            state_sums();
        }
        __syncthreads();
        solve(row, first, committed, count);
    }

    __device__ __forceinline__ void fold(int first, int entries, bool durable) {
        if (warp == 0) {
            const float base = decay_weights(s.gates + first, entries - 1, lane, [&](int entry, float weight) {
                s.weights[(first + entry) * T] = weight * s.key_scale[first + entry];
            });
            if (base >= 0.f) s.base_weight[0] = base;
        }
        __syncthreads();
        wait_for_tile();
        // Half of the columns at a time, so that the registers do not limit how many blocks run.
#pragma unroll 1
        for (int c0 = 0; c0 < CHUNKS; c0 += FOLD_CHUNKS) fold_columns(first, entries, durable, c0 * 32 + column);
        has_state = true;
        __syncthreads();
    }

    // Columns `at ..` of every row of the tile, FOLD_CHUNKS times 4 of them in a thread.
    __device__ __forceinline__ void fold_columns(int first, int entries, bool durable, int at) {
        const int first_value = warp * WARP_ROWS + row_in_warp;
        float* tile = s.tile + first_value * DK + at;
        float4 state[NI][FOLD_CHUNKS];
#pragma unroll
        for (int i = 0; i < NI; i++) {
#pragma unroll
            for (int c = 0; c < FOLD_CHUNKS; c++) {
                float4 x = make_float4(0.f, 0.f, 0.f, 0.f);
                if (has_state) {
                    const float base = s.base_weight[0];
                    x = load4(tile + i * 4 * DK + c * 32);
                    x = make_float4(base * x.x, base * x.y, base * x.z, base * x.w);
                }
                state[i][c] = x;
            }
        }
#pragma unroll 2
        for (int entry = first; entry < first + entries; entry++) {
            const float weight = s.weights[entry * T];
            float4 key[FOLD_CHUNKS];
#pragma unroll
            for (int c = 0; c < FOLD_CHUNKS; c++) key[c] = load4(s.keys + entry * DK + at + c * 32);
#pragma unroll
            for (int i = 0; i < NI; i++) {
                const float delta = weight * s.deltas[entry * ROWS + first_value + i * 4];
#pragma unroll
                for (int c = 0; c < FOLD_CHUNKS; c++) {
                    state[i][c].x = fmaf(key[c].x, delta, state[i][c].x);
                    state[i][c].y = fmaf(key[c].y, delta, state[i][c].y);
                    state[i][c].z = fmaf(key[c].z, delta, state[i][c].z);
                    state[i][c].w = fmaf(key[c].w, delta, state[i][c].w);
                }
            }
        }
        float* global = tile_address() + first_value * DK + at;
#pragma unroll
        for (int i = 0; i < NI; i++) {
#pragma unroll
            for (int c = 0; c < FOLD_CHUNKS; c++) {
                *reinterpret_cast<float4*>(tile + i * 4 * DK + c * 32) = state[i][c];
                if (durable) store_streaming(reinterpret_cast<float4*>(global + i * 4 * DK + c * 32), state[i][c]);
            }
        }
    }

    // Rows of the first window.
    __device__ __forceinline__ int first_window() const {
        for (u32 i = 0; i < step_total; i++) {
            if (step_kind(steps[i]) == STEP_WINDOW) return step_count(steps[i]);
        }
        return 0;
    }

    __device__ __forceinline__ void run() {
        // What earlier steps of this layer wrote does not depend on the kernel before this one.
        request_tile();
        request_keys(0, log);
        request_deltas();
        wait_for_previous_kernel();
        allow_next_kernel();
        // The first rows travel beside the log, whatever folds come before them.
        const int first_rows = first_window();
        request_keys(log, log + rows);
        request_rows(0, first_rows < T ? first_rows : T);
        async_wait();
        __syncthreads();
        int row = 0, first = 0;
        for (u32 i = 0; i < step_total; i++) {
            const u32 step = steps[i];
            if (step_kind(step) == STEP_WINDOW) {
                const int end = row + step_count(step);
                while (row < end) {
                    const int count = end - row < T ? end - row : T;
                    if (row > 0) __syncthreads();
                    window(row, first, log + row - first, count, row == 0);
                    row += count;
                }
            } else {
                if (row > 0) __syncthreads();
                fold(first, step_count(step), step_kind(step) == STEP_FOLD);
                first += step_count(step);
            }
        }
#ifdef BULK_COPY
        // A block must not end while a copy into its shared memory is under way.
        wait_for_tile();
#endif
    }
};

template <class A, int DK, int ROWS, int T, int ENTRIES>
__device__ __forceinline__ void linear_step(const LinearStepArgs& args) {
    LinearStep<A, DK, ROWS, T, ENTRIES>(args, args.plans[blockIdx.z]).run();
}
