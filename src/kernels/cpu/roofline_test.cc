#include "kernels/cpu/roofline.h"

#include <gtest/gtest.h>

namespace exo::kernels::cpu {
namespace {

TEST(Roofline, EachInstructionSetHasTheLimitsOfItsUnits) {
  ThreadPool pool(2);
  Buffer memory;
  for (Isa isa : {supported_isas().front(), supported_isas().back()}) {
    SCOPED_TRACE(to_string(isa));
    const auto limits = measure_limits(pool, isa, memory);
    ASSERT_TRUE(limits.ok()) << limits.status().message();
    EXPECT_GT(limits->read_gb_per_s, 0);
    EXPECT_GE(memory.size_bytes(), int64_t{256} << 20);
    EXPECT_EQ(limits->amx_int8_tops > 0, isa == Isa::amx);
    EXPECT_EQ(limits->amx_bf16_tflops > 0, isa == Isa::amx);
    EXPECT_EQ(limits->vnni_tops > 0, has_avx512(isa));
    EXPECT_EQ(limits->bf16_tflops > 0, isa != Isa::reference);
    EXPECT_EQ(limits->fp32_gflops > 0, isa != Isa::reference);
  }
}

}  // namespace
}  // namespace exo::kernels::cpu
