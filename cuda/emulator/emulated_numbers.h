// numbers.cuh on a CPU.
#pragma once

static inline int dot4(unsigned a, unsigned b, int c) {
    for (int i = 0; i < 4; i++) {
        c += static_cast<int>(static_cast<signed char>(a >> (8 * i))) * static_cast<signed char>(b >> (8 * i));
    }
    return c;
}

static inline unsigned funnel_right(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((static_cast<unsigned long long>(high) << 32) | low) >> (shift & 31));
}

static inline float half_value(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, mantissa = bits & 0x3ffu;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | (mantissa << 13));
    if (exponent == 0) {
        const float value = static_cast<float>(mantissa) * __uint_as_float(0x33800000u);  // 2^-24
        return sign ? -value : value;
    }
    return __uint_as_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Round to nearest even; a NaN stays one.
static inline unsigned short half_bits(float value) {
    const unsigned bits = __float_as_uint(value), sign = (bits >> 16) & 0x8000u;
    const float magnitude = __uint_as_float(bits & 0x7fffffffu);
    if (magnitude != magnitude) return static_cast<unsigned short>(sign | 0x7e00u);
    if (magnitude >= 65520.f) return static_cast<unsigned short>(sign | 0x7c00u);
    if (magnitude < __uint_as_float(0x38800000u)) {  // below 2^-14: whole multiples of 2^-24
        return static_cast<unsigned short>(sign | static_cast<unsigned>(nearbyintf(magnitude * 16777216.f)));
    }
    const unsigned rounded = (bits & 0x7fffffffu) + 0xfffu + ((bits >> 13) & 1u);
    return static_cast<unsigned short>(sign | ((rounded >> 13) - (112u << 10)));
}
