// The scalar reference bodies on every golden checkpoint. tests/goldens_test.cc asks the same of
// every instruction set.
#include <gtest/gtest.h>

#include "model/testing/golden_checks.h"

namespace exo::model::testing {
namespace {

class Goldens : public ::testing::TestWithParam<std::string> {
 protected:
  const ops::OpTable& table() const { return ops::reference_table(); }
};

TEST_P(Goldens, Prompts) { check_prompts(GetParam(), table()); }
TEST_P(Goldens, InnerTensors) { check_inner_tensors(GetParam(), table()); }
TEST_P(Goldens, GreedyContinuation) { check_greedy(GetParam(), table()); }
TEST_P(Goldens, SameBits) {
  check_same_bits(GetParam(), table(), "", /*fp32=*/true);
  check_same_bits(GetParam(), table(), "int8", /*fp32=*/false);
}
TEST_P(Goldens, MixedBatch) { check_mixed_batch(GetParam(), table(), "", /*fp32=*/true); }
TEST_P(Goldens, NativeModel) { check_native_model(GetParam(), table()); }
TEST_P(Goldens, NativeModules) { NativeModules(GetParam(), table()).check(); }

// v2_lite's 4,160 tokens are for the fast tables, in tests/.
class LongGoldens : public Goldens {};
TEST_P(LongGoldens, LongPrompt) {
  const int64_t chunks[] = {128, 7};
  check_long_prompt(GetParam(), table(), 2, chunks);
}
INSTANTIATE_TEST_SUITE_P(Cases, LongGoldens,
                         ::testing::Values("v3_bf16", "v3_fp8", "v2_grouped", "moonlight",
                                           "v3_mtp"),
                         [](const auto& golden) { return golden.param; });

INSTANTIATE_TEST_SUITE_P(Cases, Goldens, ::testing::ValuesIn(golden_cases()),
                         [](const auto& golden) { return golden.param; });

}  // namespace
}  // namespace exo::model::testing
