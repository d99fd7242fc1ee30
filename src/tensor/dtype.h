/// Element types and their conversions to fp32. The scalar conversions here are the meaning of each
/// format; kernels are tested against them.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace exo {

enum class DType : uint8_t { f32, f16, bf16, f8_e4m3, f8_e8m0, i8, u8, i32, i64 };

constexpr int64_t size_bytes(DType t) {
  switch (t) {
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::f8_e4m3:
    case DType::f8_e8m0:
    case DType::i8:
    case DType::u8:
      return 1;
    case DType::i64:
      return 8;
  }
  return 0;
}

constexpr std::string_view to_string(DType t) {
  switch (t) {
    case DType::f32:
      return "f32";
    case DType::f16:
      return "f16";
    case DType::bf16:
      return "bf16";
    case DType::f8_e4m3:
      return "f8_e4m3";
    case DType::f8_e8m0:
      return "f8_e8m0";
    case DType::i8:
      return "i8";
    case DType::u8:
      return "u8";
    case DType::i32:
      return "i32";
    case DType::i64:
      return "i64";
  }
  return "?";
}

/// bfloat16: the upper half of an fp32.
struct bf16 {
  uint16_t bits;
};
/// OCP FP8 E4M3 (no infinities; S.1111.111 is NaN; largest 448, smallest subnormal 2^-9).
struct f8_e4m3 {
  uint8_t bits;
};

inline float to_f32(bf16 v) { return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16); }

/// Round to nearest even; NaN stays (quiet) NaN.
inline bf16 to_bf16(float f) {
  const auto u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7FFFFFFF) > 0x7F800000) return {static_cast<uint16_t>(u >> 16 | 0x40)};
  return {static_cast<uint16_t>((u + 0x7FFF + (u >> 16 & 1)) >> 16)};
}

inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000 | mantissa << 13);
  if (exponent == 0) {
    const float f = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -f : f;
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline float to_f32(f8_e4m3 v) {
  const uint32_t exponent = v.bits >> 3 & 15, mantissa = v.bits & 7;
  float f;
  if (exponent == 15 && mantissa == 7) {
    f = std::bit_cast<float>(0x7FC00000u);
  } else if (exponent == 0) {
    f = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    f = std::bit_cast<float>((exponent + 120) << 23 | mantissa << 20);
  }
  return (v.bits & 0x80) != 0 ? -f : f;
}

/// Round to nearest even, saturating at +-448 (what torch's cast does for finite values in range;
/// NaN stays NaN).
inline f8_e4m3 to_f8_e4m3(float f) {
  const uint8_t sign = std::signbit(f) ? 0x80 : 0;
  const float a = std::fabs(f);
  if (std::isnan(f)) return {static_cast<uint8_t>(sign | 0x7F)};
  if (a >= 448.0f) return {static_cast<uint8_t>(sign | 0x7E)};
  if (a < 0x1p-6f)
    return {static_cast<uint8_t>(sign | static_cast<uint8_t>(std::nearbyint(a * 0x1p9f)))};
  const auto u = std::bit_cast<uint32_t>(a);
  const uint32_t rounded = u + 0x7FFFF + (u >> 20 & 1);
  const uint32_t bits = (rounded >> 20) - (120u << 3);
  return {static_cast<uint8_t>(sign | (bits > 0x7E ? 0x7E : bits))};
}

/// UE8M0: 2^(bits - 127); 255 is NaN.
inline float f8_e8m0_to_f32(uint8_t bits) {
  if (bits == 255) return std::bit_cast<float>(0x7FC00000u);
  return std::ldexp(1.0f, static_cast<int>(bits) - 127);
}

}  // namespace exo
