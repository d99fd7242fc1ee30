#include "kernels/cpu/isa.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace exo::kernels::cpu {
namespace {

// A test program has tiles in software (testing/emulated_amx.h).
#if defined(EXO_EMULATE_AMX)
constexpr bool kEmulatedTiles = true;
#else
constexpr bool kEmulatedTiles = false;
#endif

struct Feature {
  const char* name;
  bool present;
};

#if defined(__x86_64__)

struct Cpuid {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};
Cpuid cpuid(uint32_t leaf, uint32_t subleaf) {
  Cpuid r;
  if (__get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d) == 0) return {};
  return r;
}
bool bit(uint32_t word, int i) { return (word >> i & 1) != 0; }

// What the operating system saves at a context switch (XCR0). Intel SDM volume 1, section 13.3.
uint64_t xcr0(bool osxsave) {
  if (!osxsave) return 0;
  uint32_t lo = 0, hi = 0;
  asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return uint64_t{hi} << 32 | lo;
}

// Linux gives a process tile registers only when asked (Documentation/x86/xstate.rst).
bool ask_for_tile_data() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureXtiledata = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtiledata) == 0;
#else
  return false;
#endif
}

std::vector<Feature> find_features() {
  const Cpuid l1 = cpuid(1, 0), l7 = cpuid(7, 0), l71 = cpuid(7, 1);
  const uint64_t saved = xcr0(bit(l1.c, 27));
  const bool ymm = (saved & 0x6) == 0x6, zmm = (saved & 0xE6) == 0xE6;
  const bool tiles = (saved & 0x60000) == 0x60000 && bit(l7.d, 24) && ask_for_tile_data();
  const auto on_tiles = [&](bool unit) { return kEmulatedTiles || (tiles && unit); };
  return {
      {"avx2", ymm && bit(l7.b, 5)},
      {"fma", ymm && bit(l1.c, 12)},
      {"f16c", ymm && bit(l1.c, 29)},
      {"bmi2", bit(l7.b, 3) && bit(l7.b, 8)},
      {"aes", bit(l1.c, 1) && bit(l1.c, 25)},
      {"avx512f", zmm && bit(l7.b, 16)},
      {"avx512dq", zmm && bit(l7.b, 17)},
      {"avx512bw", zmm && bit(l7.b, 30)},
      {"avx512vl", zmm && bit(l7.b, 31)},
      {"avx512_vbmi", zmm && bit(l7.c, 1)},
      {"avx512_vbmi2", zmm && bit(l7.c, 6)},
      {"gfni", bit(l7.c, 8)},
      {"vaes", ymm && bit(l7.c, 9)},
      {"vpclmulqdq", ymm && bit(l7.c, 10)},
      {"avx512_vnni", zmm && bit(l7.c, 11)},
      {"avx512_bitalg", zmm && bit(l7.c, 12)},
      {"avx512_vpopcntdq", zmm && bit(l7.c, 14)},
      {"avx512_bf16", zmm && bit(l71.a, 5)},
      {"avx_vnni", ymm && bit(l71.a, 4)},
      {"amx_tile", on_tiles(true)},
      {"amx_int8", on_tiles(bit(l7.d, 25))},
      {"amx_bf16", on_tiles(bit(l7.d, 22))},
  };
}

bool vendor_is(uint32_t b, uint32_t d, uint32_t c) {
  const Cpuid vendor = cpuid(0, 0);
  return vendor.b == b && vendor.d == d && vendor.c == c;
}
// AMD's processors up to Zen 4 read slower the farther ahead they are asked.
bool reads_best_asked_late() {
  const Cpuid version = cpuid(1, 0);
  const uint32_t family = (version.a >> 8 & 15) + (version.a >> 20 & 255);  // Zen 5: 1Ah
  return vendor_is(0x68747541, 0x69746E65, 0x444D4163) && family < 0x1A;    // AuthenticAMD
}
bool is_intel() { return vendor_is(0x756E6547, 0x49656E69, 0x6C65746E); }  // GenuineIntel

#else

bool reads_best_asked_late() { return false; }
bool is_intel() { return false; }

// Advanced SIMD is part of AArch64.
std::vector<Feature> find_features() { return {{"neon", true}}; }

#endif

const std::vector<Feature>& features() {
  static const std::vector<Feature> kFeatures = find_features();
  return kFeatures;
}

// The features that the compilers may use in an instruction set's sources; bf16-less AVX-512 also
// needs what Highway's AVX3_DL names.
#define EXO_AVX2_FEATURES "avx2 fma f16c bmi2 aes "
#define EXO_AVX512_FEATURES                                                           \
  EXO_AVX2_FEATURES                                                                   \
  "avx512f avx512dq avx512bw avx512vl avx512_vbmi avx512_vbmi2 gfni vaes vpclmulqdq " \
  "avx512_vnni avx512_bitalg avx512_vpopcntdq "
std::string_view needed_features(Isa isa) {
  switch (isa) {
    case Isa::reference:
      return "";
    case Isa::avx2:
      return EXO_AVX2_FEATURES;
    case Isa::avxvnni:
      return EXO_AVX2_FEATURES "avx_vnni ";
    case Isa::avx512:
      return EXO_AVX512_FEATURES;
    case Isa::avx512bf16:
      return EXO_AVX512_FEATURES "avx512_bf16 ";
    case Isa::amx:
      return EXO_AVX512_FEATURES "avx512_bf16 amx_tile amx_int8 amx_bf16 ";
    case Isa::neon:
      return "neon ";
  }
  return "";
}

bool has(std::string_view name) {
  return std::any_of(features().begin(), features().end(),
                     [&](const Feature& f) { return f.present && f.name == name; });
}

bool supported(Isa isa) {
  for (std::string_view rest = needed_features(isa); !rest.empty();) {
    const size_t space = rest.find(' ');
    if (!has(rest.substr(0, space))) return false;
    rest.remove_prefix(space + 1);
  }
  return true;
}

}  // namespace

std::string_view to_string(Isa isa) {
  switch (isa) {
    case Isa::reference:
      return "reference";
    case Isa::avx2:
      return "avx2";
    case Isa::avxvnni:
      return "avxvnni";
    case Isa::avx512:
      return "avx512";
    case Isa::avx512bf16:
      return "avx512bf16";
    case Isa::amx:
      return "amx";
    case Isa::neon:
      return "neon";
  }
  return "?";
}

std::span<const Isa> supported_isas() {
  static const std::vector<Isa> kIsas = [] {
    std::vector<Isa> isas{Isa::reference};
    for (Isa isa : {Isa::neon, Isa::avx2, Isa::avxvnni, Isa::avx512, Isa::avx512bf16, Isa::amx}) {
      if (supported(isa)) isas.push_back(isa);
    }
    return isas;
  }();
  return kIsas;
}

Result<Isa> parse_isa(std::string_view name) {
  const auto isas = supported_isas();
  if (name == "auto") return isas.back();
  std::string known;
  for (Isa isa : isas) {
    if (to_string(isa) == name) return isa;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", to_string(isa));
  }
  return invalid_argument(fmt::format(
      "instruction set '{}': this machine has {}; use one of them or 'auto'", name, known));
}

std::string describe_features() {
  std::string s;
  for (const Feature& f : features()) {
    if (f.present) s += fmt::format("{}{}", s.empty() ? "" : " ", f.name);
  }
  return s;
}

int64_t read_ahead_bytes() {
  static const int64_t kBytes = reads_best_asked_late() ? 512 : 2048;
  return kBytes;
}
bool reads_in_many_streams() {
  static const bool kMany = is_intel();
  return kMany;
}

}  // namespace exo::kernels::cpu
