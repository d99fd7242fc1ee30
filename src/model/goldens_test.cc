// The scalar reference bodies on every golden checkpoint. tests/goldens_test.cc asks the same of
// every instruction set.
#include <gtest/gtest.h>

#include "model/testing/golden_checks.h"

namespace exo::model::testing {
namespace {

class GoldenCases : public ::testing::TestWithParam<std::string> {
 protected:
  const ops::OpTable& table() const { return ops::reference_table(); }
};

TEST_P(GoldenCases, Prompts) { check_prompts(GetParam(), table()); }
TEST_P(GoldenCases, InnerTensors) { check_inner_tensors(GetParam(), table()); }
TEST_P(GoldenCases, GreedyContinuation) { check_greedy(GetParam(), table()); }
TEST_P(GoldenCases, SameBits) {
  check_same_bits(GetParam(), table(), "", /*fp32=*/true);
  for (const char* format : {"", "int8"})
    check_same_bits(GetParam(), table(), format, /*fp32=*/false);
}
TEST_P(GoldenCases, MixedBatch) { check_mixed_batch(GetParam(), table(), "", /*fp32=*/true); }
TEST_P(GoldenCases, NativeModel) { check_native_model(GetParam(), table()); }
TEST_P(GoldenCases, NativeModules) { NativeModules(GetParam(), table()).check(); }

TEST(Goldens, Fp8AsBf16) { check_fp8_as_bf16(ops::reference_table()); }

// v2_lite's 4,160 tokens are for the fast tables, in tests/.
class LongGoldens : public GoldenCases {};
TEST_P(LongGoldens, LongPrompt) {
  const int64_t chunks[] = {128, 7};
  check_long_prompt(GetParam(), table(), 2, chunks);
}
INSTANTIATE_TEST_SUITE_P(Cases, LongGoldens,
                         ::testing::Values("v3_bf16", "v3_fp8", "v2_grouped", "moonlight",
                                           "v3_mtp"),
                         [](const auto& golden) { return golden.param; });

INSTANTIATE_TEST_SUITE_P(Cases, GoldenCases, ::testing::ValuesIn(golden_cases()),
                         [](const auto& golden) { return golden.param; });

}  // namespace
}  // namespace exo::model::testing
