// What kernels use of the machine: number formats, warp exchanges, asynchronous copies, dependent launches.
//
// Everything that needs inline PTX stands here, so that the emulator (emulator.h) can replace it and run the same
// kernel sources on a CPU.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#ifdef MILLPOND_EMULATED
#include "emulator.h"
#else

// A kernel with one argument structure. Its dynamic shared memory is SHARED.
#define KERNEL(name, Args, threads, blocks, body)                                                                   \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args args) { body; }

extern __shared__ float4 shared_memory[];
#define SHARED (reinterpret_cast<unsigned char*>(shared_memory))

constexpr u32 WHOLE_WARP = 0xffffffffu;

__device__ __forceinline__ float lane_xor(float value, int offset) {
    return __shfl_xor_sync(WHOLE_WARP, value, offset);
}

// The value of the lane `offset` below; the lowest lanes get their own.
__device__ __forceinline__ float lane_up(float value, int offset) {
    return __shfl_up_sync(WHOLE_WARP, value, offset);
}

__device__ __forceinline__ float lane_get(float value, int lane) {
    return __shfl_sync(WHOLE_WARP, value, lane);
}

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, without registers. Finished after `async_wait`.
__device__ __forceinline__ void async_copy16(void* to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// The same for a single float.
__device__ __forceinline__ void async_copy4(float* to, const float* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

__device__ __forceinline__ void async_wait() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// Writes that nobody reads again soon.
__device__ __forceinline__ void store_streaming(float4* to, float4 value) {
    __stcs(to, value);
}

#if __CUDA_ARCH__ >= 900
#define BULK_COPY 1

// Copies `bytes` from global to shared memory; one thread calls it, everybody else may wait after a barrier.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, u32 bytes, u64* barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
                 "fence.mbarrier_init.release.cluster;\n\t"
                 "fence.proxy.async.shared::cta;" ::"r"(shared_address(barrier))
                 : "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

__device__ __forceinline__ void bulk_wait(u64* barrier) {
    asm volatile("{\n\t"
                 ".reg .pred done;\n\t"
                 "again:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n\t"
                 "@!done bra again;\n\t"
                 "}" ::"r"(shared_address(barrier))
                 : "memory");
}

// Waits for the kernel before this one in its stream; at once where the launch was an ordinary one.
__device__ __forceinline__ void wait_for_previous_kernel() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the kernel after this one start as far as it does not wait for this one.
__device__ __forceinline__ void allow_next_kernel() {
    asm volatile("griddepcontrol.launch_dependents;");
}
#else
__device__ __forceinline__ void wait_for_previous_kernel() {}
__device__ __forceinline__ void allow_next_kernel() {}
#endif
#endif

// 16-bit activations: bfloat16 as its bits.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }

__device__ __forceinline__ void narrow(float x, float* out) { *out = x; }
// Round to nearest even; a NaN stays one.
__device__ __forceinline__ void narrow(float x, bf16* out) {
    const u32 bits = __float_as_uint(x);
    const u32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    out->bits = static_cast<u16>(x == x ? rounded : (bits >> 16) | 0x40u);
}

__device__ __forceinline__ float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ __forceinline__ float4 load4(const bf16* from) {
    const uint2 raw = *reinterpret_cast<const uint2*>(from);
    return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u),
                       __uint_as_float(raw.y << 16), __uint_as_float(raw.y & 0xffff0000u));
}

__device__ __forceinline__ void store4(float* to, float4 x) { *reinterpret_cast<float4*>(to) = x; }
__device__ __forceinline__ void store4(bf16* to, float4 x) {
    bf16 parts[4];
    narrow(x.x, parts + 0);
    narrow(x.y, parts + 1);
    narrow(x.z, parts + 2);
    narrow(x.w, parts + 3);
    uint2 packed;
    packed.x = parts[0].bits | static_cast<u32>(parts[1].bits) << 16;
    packed.y = parts[2].bits | static_cast<u32>(parts[3].bits) << 16;
    *reinterpret_cast<uint2*>(to) = packed;
}

// As it reads back from memory.
__device__ __forceinline__ float rounded(float x, const float*) { return x; }
__device__ __forceinline__ float rounded(float x, const bf16*) {
    bf16 stored;
    narrow(x, &stored);
    return widen(stored);
}

// Sum over the 32 lanes of a warp, in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value += lane_xor(value, offset);
    return value;
}
