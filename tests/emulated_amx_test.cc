// Of the program that runs the kernels' tests with AMX tiles in software: that it has them.
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/cpu/isa.h"

namespace exo::kernels::cpu {
namespace {

TEST(EmulatedAmx, IsThereWhereverBf16VectorsAre) {
  const auto isas = supported_isas();
  const auto here = [&](Isa isa) { return std::find(isas.begin(), isas.end(), isa) != isas.end(); };
  EXPECT_EQ(here(Isa::amx), here(Isa::avx512bf16));
}

}  // namespace
}  // namespace exo::kernels::cpu
