// Number formats of weights and caches beyond those of device.cuh: bytes multiplied four at a time, half floats, words
// at any address.
#pragma once
#include "device.cuh"

typedef unsigned char u8;
typedef signed char i8;

#ifdef MILLPOND_EMULATED
#include "emulated_numbers.h"
#else
// c plus the products of four signed bytes.
__device__ __forceinline__ int dot4(u32 a, u32 b, int c) { return __dp4a(static_cast<int>(a), static_cast<int>(b), c); }

// The low word of high:low shifted right by less than 32 bits.
__device__ __forceinline__ u32 funnel_right(u32 low, u32 high, u32 shift) {
    return __funnelshift_r(low, high, shift);
}

__device__ __forceinline__ float half_value(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ u16 half_bits(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

constexpr u32 NEGATIVE_INFINITY = 0xff800000u;
constexpr u32 LARGEST_FLOAT = 0x7f7fffffu;
constexpr u32 NOT_A_NUMBER = 0x7fc00000u;

// Half floats of the attention cache.
struct f16 {
    u16 bits;
};

__device__ __forceinline__ float widen(f16 x) { return half_value(x.bits); }
__device__ __forceinline__ void narrow(float x, f16* out) { out->bits = half_bits(x); }

__device__ __forceinline__ float4 load4(const f16* from) {
    const uint2 raw = *reinterpret_cast<const uint2*>(from);
    return make_float4(half_value(static_cast<u16>(raw.x)), half_value(static_cast<u16>(raw.x >> 16)),
                       half_value(static_cast<u16>(raw.y)), half_value(static_cast<u16>(raw.y >> 16)));
}

// N words from any address. Reads up to the end of the aligned word behind them.
template <int N>
__device__ __forceinline__ void load_words(const u8* from, u32* words) {
    const u64 address = reinterpret_cast<u64>(from);
    const u32* aligned = reinterpret_cast<const u32*>(address & ~static_cast<u64>(3));
    const u32 shift = static_cast<u32>(address & 3) * 8;
    u32 low = aligned[0];
#pragma unroll
    for (int i = 0; i < N; i++) {
        const u32 high = aligned[i + 1];
        words[i] = funnel_right(low, high, shift);
        low = high;
    }
}

// N words, a multiple of four, from an address that 16 divides.
template <int N>
__device__ __forceinline__ void load_aligned_words(const u8* from, u32* words) {
#pragma unroll
    for (int i = 0; i < N / 4; i++) {
        const float4 four = reinterpret_cast<const float4*>(from)[i];
        words[4 * i + 0] = __float_as_uint(four.x);
        words[4 * i + 1] = __float_as_uint(four.y);
        words[4 * i + 2] = __float_as_uint(four.z);
        words[4 * i + 3] = __float_as_uint(four.w);
    }
}

__device__ __forceinline__ float half_at(const u8* from) { return half_value(*reinterpret_cast<const u16*>(from)); }

__device__ __forceinline__ float sigmoid_of(float x) { return 1.f / (1.f + expf(-x)); }

// Largest value over the lanes of a warp, in every lane.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) value = fmaxf(value, lane_xor(value, offset));
    return value;
}
