// Block formats of weights as files hold them, taken apart 32 values at a time.
//
// Value i of a unit is d * s[i / 16] * q[i] - m * o[i / 16]: d and m are the block's scale and offset unit, s and o
// the integers of 16 values. The layouts are those of simd/src/quant.
#pragma once
#include "numbers.cuh"

struct Unit {
    u32 q[8];  // 32 signed bytes in order
    int s[2];
    int o[2];
    float d;
    float m;
};

// Numbers of the formats, as src/model/abi.rs spells them.
enum Format {
    FORMAT_F32,
    FORMAT_F16,
    FORMAT_BF16,
    FORMAT_Q4_0,
    FORMAT_Q4_1,
    FORMAT_Q5_0,
    FORMAT_Q5_1,
    FORMAT_Q8_0,
    FORMAT_Q2K,
    FORMAT_Q3K,
    FORMAT_Q4K,
    FORMAT_Q5K,
    FORMAT_Q6K,
    FORMAT_IQ4NL,
    FORMAT_IQ4XS,
    FORMAT_MXFP4,
};

// Subtracts z from every byte; bytes are below 128.
__device__ __forceinline__ u32 centred(u32 bytes, u32 z) {
    return ((bytes | 0x80808080u) - z * 0x01010101u) ^ 0x80808080u;
}

// Bit i of four to the lowest bit of byte i.
__device__ __forceinline__ u32 spread4(u32 bits) { return ((bits & 15u) * 0x00204081u) & 0x01010101u; }

__device__ __forceinline__ void whole_scale(Unit& unit, float d) {
    unit.d = d;
    unit.m = 0.f;
    unit.s[0] = unit.s[1] = 1;
    unit.o[0] = unit.o[1] = 0;
}

// 16 bytes of nibbles: byte i holds values i and i + 16.
__device__ __forceinline__ void split_nibbles(const u32* words, u32* q) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        q[i] = words[i] & 0x0f0f0f0fu;
        q[i + 4] = (words[i] >> 4) & 0x0f0f0f0fu;
    }
}

template <int BYTES, bool OFFSET, bool FIFTH, int CENTRE>
struct Legacy {
    static constexpr bool OFFSETS = OFFSET;
    static __device__ __forceinline__ void unit(const u8* row, int index, Unit& unit) {
        const u8* block = row + static_cast<u64>(index) * BYTES;
        whole_scale(unit, half_at(block));
        if (OFFSET) {
            unit.m = -half_at(block + 2);
            unit.o[0] = unit.o[1] = 1;
        }
        constexpr int FIRST = OFFSET ? 4 : 2;
        u32 words[FIFTH ? 5 : 4];
        load_words<FIFTH ? 5 : 4>(block + FIRST, words);
        split_nibbles(words + FIFTH, unit.q);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (FIFTH) unit.q[i] |= spread4(words[0] >> (4 * i)) << 4;
            if (CENTRE) unit.q[i] = centred(unit.q[i], CENTRE);
        }
    }
};

typedef Legacy<18, false, false, 8> Q4_0;
typedef Legacy<20, true, false, 0> Q4_1;
typedef Legacy<22, false, true, 16> Q5_0;
typedef Legacy<24, true, true, 0> Q5_1;

struct Q8_0 {
    static constexpr bool OFFSETS = false;
    static __device__ __forceinline__ void unit(const u8* row, int index, Unit& unit) {
        const u8* block = row + static_cast<u64>(index) * 34;
        whole_scale(unit, half_at(block));
        load_words<8>(block + 2, unit.q);
    }
};

struct Q2K {
    static constexpr bool OFFSETS = true;
    static __device__ __forceinline__ void unit(const u8* row, int index, Unit& unit) {
        const u8* block = row + static_cast<u64>(index / 8) * 84;
        const int group = index % 8;
        load_words<8>(block + 16 + 32 * (group / 4), unit.q);
#pragma unroll
        for (int i = 0; i < 8; i++) unit.q[i] = (unit.q[i] >> (2 * (group % 4))) & 0x03030303u;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            unit.s[i] = block[2 * group + i] & 15;
            unit.o[i] = block[2 * group + i] >> 4;
        }
        unit.d = half_at(block + 80);
        unit.m = half_at(block + 82);
    }
};

struct Q3K {
    static constexpr bool OFFSETS = false;
    static __device__ __forceinline__ void unit(const u8* row, int index, Unit& unit) {
        const u8* block = row + static_cast<u64>(index / 8) * 110;
        const int group = index % 8;
        u32 third[8];
        load_words<8>(block, third);
        load_words<8>(block + 32 + 32 * (group / 4), unit.q);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 low = (unit.q[i] >> (2 * (group % 4))) & 0x03030303u;
            unit.q[i] = centred(low | ((third[i] >> group) & 0x01010101u) << 2, 4);
        }
        const u8* scales = block + 96;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int sub = 2 * group + i;
            const int nibble = (scales[sub % 8] >> (4 * (sub / 8))) & 15;
            unit.s[i] = (nibble | ((scales[8 + sub % 4] >> (2 * (sub / 4))) & 3) << 4) - 32;
            unit.o[i] = 0;
        }
        unit.d = half_at(block + 108);
        unit.m = 0.f;
    }
};

// Scale and offset of group `group` from the twelve bytes of eight pairs of six bits.
__device__ __forceinline__ void six_bit_pair(const u8* bytes, int group, Unit& unit) {
    u32 words[3];
    words[0] = reinterpret_cast<const u32*>(bytes)[0];
    words[1] = reinterpret_cast<const u32*>(bytes)[1];
    words[2] = reinterpret_cast<const u32*>(bytes)[2];
    const u32 shift = 8 * (group % 4);
    const u32 first = words[0] >> shift, second = words[1] >> shift, third = words[2] >> shift;
    const bool early = group < 4;
    const int scale = early ? first & 63 : (third & 15) | ((first >> 6) & 3) << 4;
    const int offset = early ? second & 63 : ((third >> 4) & 15) | ((second >> 6) & 3) << 4;
    unit.s[0] = unit.s[1] = scale;
    unit.o[0] = unit.o[1] = offset;
}

// Q4_K blocks are 144 and Q5_K blocks 176 bytes long, and matrices start at multiples of 256 bytes: every block at a
// multiple of 16.
struct Q4K {
    static constexpr bool OFFSETS = true;
    static __device__ __forceinline__ void unit(const u8* row, int index, Unit& unit) {
        const u8* block = row + static_cast<u64>(index / 8) * 144;
        const int group = index % 8;
        load_aligned_words<8>(block + 16 + 32 * (group / 2), unit.q);
        six_bit_pair(block + 4, group, unit);
        unit.d = half_at(block);
        unit.m = half_at(block + 2);
#pragma unroll
        for (int i = 0; i < 8; i++) unit.q[i] = (unit.q[i] >> (4 * (group % 2))) & 0x0f0f0f0fu;
    }
};

struct Q5K {
    static constexpr bool OFFSETS = true;
    static __device__ __forceinline__ void unit(const u8* row, int index, Unit& unit) {
        const u8* block = row + static_cast<u64>(index / 8) * 176;
        const int group = index % 8;
        u32 fifth[8];
        load_aligned_words<8>(block + 16, fifth);
        load_aligned_words<8>(block + 48 + 32 * (group / 2), unit.q);
        six_bit_pair(block + 4, group, unit);
        unit.d = half_at(block);
        unit.m = half_at(block + 2);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 four = (unit.q[i] >> (4 * (group % 2))) & 0x0f0f0f0fu;
            unit.q[i] = four | ((fifth[i] >> group) & 0x01010101u) << 4;
        }
    }
};

struct Q6K {
    static constexpr bool OFFSETS = false;
    static __device__ __forceinline__ void unit(const u8* row, int index, Unit& unit) {
        const u8* block = row + static_cast<u64>(index / 8) * 210;
        const int group = index % 8, half = group / 4, pair = group % 4;
        u32 upper[8];
        load_words<8>(block + 64 * half + 32 * (pair % 2), unit.q);
        load_words<8>(block + 128 + 32 * half, upper);
        const u8* scales = block + 192 + 2 * group;
        unit.s[0] = static_cast<i8>(scales[0]);
        unit.s[1] = static_cast<i8>(scales[1]);
        unit.o[0] = unit.o[1] = 0;
        unit.d = half_at(block + 208);
        unit.m = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const u32 four = (unit.q[i] >> (4 * (pair / 2))) & 0x0f0f0f0fu;
            unit.q[i] = centred(four | ((upper[i] >> (2 * pair)) & 0x03030303u) << 4, 32);
        }
    }
};

// Replaces nibbles in bytes by the levels of a table of sixteen bytes.
__device__ __forceinline__ void look_up(u32* q, u64 low, u64 high) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 levels = 0;
#pragma unroll
        for (int byte = 0; byte < 4; byte++) {
            const u32 nibble = (q[i] >> (8 * byte)) & 15u;
            const u64 half = nibble < 8 ? low : high;
            levels |= static_cast<u32>((half >> (8 * (nibble & 7))) & 255u) << (8 * byte);
        }
        q[i] = levels;
    }
}

// -127 -104 -83 -65 -49 -35 -22 -10 and 1 13 25 38 53 69 89 113, lowest byte first.
constexpr u64 IQ4_LOW = 0xf6eaddcfbfad9881ull, IQ4_HIGH = 0x7159453526190d01ull;
// 0 1 2 3 4 6 8 12 and their negatives: twice the values of E2M1.
constexpr u64 FP4_LOW = 0x0c08060403020100ull, FP4_HIGH = 0xf4f8fafcfdfeff00ull;

struct IQ4NL {
    static constexpr bool OFFSETS = false;
    static __device__ __forceinline__ void unit(const u8* row, int index, Unit& unit) {
        const u8* block = row + static_cast<u64>(index) * 18;
        whole_scale(unit, half_at(block));
        u32 words[4];
        load_words<4>(block + 2, words);
        split_nibbles(words, unit.q);
        look_up(unit.q, IQ4_LOW, IQ4_HIGH);
    }
};

struct IQ4XS {
    static constexpr bool OFFSETS = false;
    static __device__ __forceinline__ void unit(const u8* row, int index, Unit& unit) {
        const u8* block = row + static_cast<u64>(index / 8) * 136;
        const int group = index % 8;
        whole_scale(unit, half_at(block));
        const u32 upper = *reinterpret_cast<const u16*>(block + 2);
        const int low = (block[4 + group / 2] >> (4 * (group % 2))) & 15;
        unit.s[0] = unit.s[1] = (low | static_cast<int>((upper >> (2 * group)) & 3) << 4) - 32;
        u32 words[4];
        load_words<4>(block + 8 + 16 * group, words);
        split_nibbles(words, unit.q);
        look_up(unit.q, IQ4_LOW, IQ4_HIGH);
    }
};

struct MXFP4 {
    static constexpr bool OFFSETS = false;
    static __device__ __forceinline__ void unit(const u8* row, int index, Unit& unit) {
        const u8* block = row + static_cast<u64>(index) * 17;
        const u32 exponent = block[0];
        // 2^(exponent - 128), because the levels are doubled; the two smallest are subnormal.
        whole_scale(unit, __uint_as_float(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23));
        u32 words[4];
        load_words<4>(block + 1, words);
        split_nibbles(words, unit.q);
        look_up(unit.q, FP4_LOW, FP4_HIGH);
    }
};

// The signed byte at place `i` of a unit.
__device__ __forceinline__ float byte_value(const u32* q, int i) {
    return static_cast<float>(static_cast<i8>(q[i / 4] >> (8 * (i % 4))));
}

// The 32 values of a unit, each through use(i, value).
template <class Use>
__device__ __forceinline__ void unit_values(const Unit& unit, Use use) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float scale = unit.d * static_cast<float>(unit.s[half]);
        const float offset = unit.m * static_cast<float>(unit.o[half]);
#pragma unroll
        for (int i = 16 * half; i < 16 * half + 16; i++) use(i, fmaf(scale, byte_value(unit.q, i), -offset));
    }
}

// Calls use(F()) with the block format F of a number.
template <class Use>
__device__ __forceinline__ void with_block_format(int format, Use use) {
    switch (format) {
        case FORMAT_Q4_0: use(Q4_0()); break;
        case FORMAT_Q4_1: use(Q4_1()); break;
        case FORMAT_Q5_0: use(Q5_0()); break;
        case FORMAT_Q5_1: use(Q5_1()); break;
        case FORMAT_Q8_0: use(Q8_0()); break;
        case FORMAT_Q2K: use(Q2K()); break;
        case FORMAT_Q3K: use(Q3K()); break;
        case FORMAT_Q4K: use(Q4K()); break;
        case FORMAT_Q5K: use(Q5K()); break;
        case FORMAT_Q6K: use(Q6K()); break;
        case FORMAT_IQ4NL: use(IQ4NL()); break;
        case FORMAT_IQ4XS: use(IQ4XS()); break;
        case FORMAT_MXFP4: use(MXFP4()); break;
        default: break;
    }
}

// Calls use(e) with a value of the float format of a number.
template <class Use>
__device__ __forceinline__ void with_float_format(int format, Use use) {
    switch (format) {
        case FORMAT_F32: use(float()); break;
        case FORMAT_F16: use(f16()); break;
        case FORMAT_BF16: use(bf16()); break;
        default: break;
    }
}

__device__ __forceinline__ bool is_float_format(int format) { return format <= FORMAT_BF16; }

__device__ __forceinline__ bool has_offsets(int format) {
    return format == FORMAT_Q4_1 || format == FORMAT_Q5_1 || format == FORMAT_Q2K || format == FORMAT_Q4K ||
           format == FORMAT_Q5K;
}

// Eight words of activations.
__device__ __forceinline__ void load_words_of_row(const i8* from, u32* words) {
    load_aligned_words<8>(reinterpret_cast<const u8*>(from), words);
}
