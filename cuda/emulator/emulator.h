// The machine of device.cuh on a CPU: every thread of a block is a fiber, barriers and warp exchanges switch fibers.
//
// It models values and barriers, not races: asynchronous copies take effect only when they are waited for, shared
// memory starts as NaN in every block, and a barrier that some threads never reach is an error. What compute-sanitizer
// sees on a GPU (races, memory order, bank conflicts) it does not.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstring>

#define __device__
#define __forceinline__ inline

struct float4 {
    float x, y, z, w;
};
struct uint2 {
    unsigned x, y;
};
struct Dimensions {
    int x, y, z;
};

extern thread_local Dimensions threadIdx, blockIdx, blockDim;
extern thread_local unsigned char* emulated_shared;
#define SHARED emulated_shared

void __syncthreads();
// The value that lane `lane` of the warp passes to the same call.
float emulated_exchange(float value, int lane);
void emulated_copy(void* to, const void* from, size_t bytes);
void emulated_copies_finish();

static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static inline float lane_xor(float value, int offset) { return emulated_exchange(value, (threadIdx.x & 31) ^ offset); }

static inline float lane_up(float value, int offset) {
    const int lane = threadIdx.x & 31;
    return emulated_exchange(value, lane >= offset ? lane - offset : lane);
}

static inline float lane_get(float value, int lane) { return emulated_exchange(value, lane); }

static inline void async_copy16(void* to, const void* from) { emulated_copy(to, from, 16); }
static inline void async_copy4(float* to, const float* from) { emulated_copy(to, from, 4); }
static inline void async_wait() { emulated_copies_finish(); }
static inline void store_streaming(float4* to, float4 value) { *to = value; }
static inline void wait_for_previous_kernel() {}
static inline void allow_next_kernel() {}

#ifdef BULK_COPY
void emulated_bulk_copy(void* to, const void* from, unsigned bytes, unsigned long long* barrier);
void emulated_bulk_wait(unsigned long long* barrier);
#define bulk_copy emulated_bulk_copy
#define bulk_wait emulated_bulk_wait
#endif

#define KERNEL(name, Args, threads, blocks, body)                  \
    static void name##_body(const Args& args) { body; }            \
    extern "C" void name(const void* args) {                       \
        name##_body(*static_cast<const Args*>(args));              \
    }
