#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "cli/args.h"
#include "cli/capture.h"
#include "cli/console.h"
#include "cli/reference.h"
#include "cli/text_model.h"

namespace exo::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Glob, MatchesAsAShellDoes) {
  EXPECT_TRUE(glob_matches("*", ""));
  EXPECT_TRUE(glob_matches("layers.*.self_attn.q_a", "layers.12.self_attn.q_a"));
  EXPECT_FALSE(glob_matches("layers.*.self_attn.q_a", "layers.12.self_attn.q_a_norm"));
  EXPECT_TRUE(glob_matches("layers.?.mlp.*", "layers.3.mlp.gate.logits"));
  EXPECT_FALSE(glob_matches("layers.?.mlp.*", "layers.13.mlp.out"));
  EXPECT_FALSE(glob_matches("", "x"));
  EXPECT_TRUE(glob_matches("a*b*c", "axxbyybzzc"));
  EXPECT_FALSE(glob_matches("a*b*c", "axxbyyczzb"));
  EXPECT_FALSE(glob_matches(std::string(40, '*') + "x", std::string(5000, 'a')));
}

TEST(Capture, JoinsChunksAndStrides) {
  const float data[] = {1, 2, 9, 3, 4, 9, 5, 6, 9};
  TensorView view = make_view(data, {3, 3}).columns(0, 2);
  CapturedTensors captured({"x", "*.probs"});
  EXPECT_TRUE(captured.wants("x"));
  EXPECT_FALSE(captured.wants("y"));
  captured.on_tensor("x", view.rows(0, 2));
  captured.on_tensor("x", view.rows(2, 1));
  const auto& tensor = captured.tensors().at("x");
  EXPECT_THAT(tensor.shape, ElementsAre(3, 2));
  const auto* values = reinterpret_cast<const float*>(tensor.bytes.data());
  EXPECT_THAT(std::vector<float>(values, values + 6), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_TRUE(captured.status().ok());
  captured.on_tensor("l.probs", view);
  captured.on_tensor("l.probs", view);
  EXPECT_THAT(captured.status().message(), HasSubstr("--chunk 0"));
}

TEST(Console, Formats) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(-1234), "-1,234");
  EXPECT_EQ(format_count(-123), "-123");
  EXPECT_EQ(format_count(684489845504), "684,489,845,504");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(688586727753), "688.59 GB");
  EXPECT_EQ(format_duration(0.0032), "3 ms");
  EXPECT_EQ(format_duration(245), "4 min 05 s");
  EXPECT_EQ(format_duration(7800), "2 h 10 min");
}

ParsedArgs parse(std::vector<const char*> args) {
  args.insert(args.begin(), "exo");
  return parse_args(static_cast<int>(args.size()), args.data());
}

TEST(Args, CommandsAndExoFlagsInAnyOrder) {
  EXPECT_EQ(parse({}).invocation.command, Command::node);
  const auto run = parse({"--node-id", "n", "run", "m", "--prompt", "p", "--default-temp", "0.5",
                          "--wait-for-peers", "2", "--stop", "a", "--stop", "b", "--no-think"});
  ASSERT_FALSE(run.exit_code);
  EXPECT_EQ(run.invocation.command, Command::run);
  EXPECT_EQ(run.invocation.run.model.model, "m");
  EXPECT_EQ(run.invocation.run.prompt, "p");
  EXPECT_EQ(run.invocation.exo.node_id, "n");
  EXPECT_EQ(run.invocation.exo.default_temp, 0.5);
  EXPECT_EQ(run.invocation.exo.wait_for_peers, 2);
  EXPECT_THAT(run.invocation.run.sampling.stops, ElementsAre("a", "b"));
  EXPECT_EQ(run.invocation.run.thinking, false);
  const auto logits = parse({"logits", "m", "--tokens", "t", "--out", "o", "--positions", "3,1,3",
                             "--compute", "fp32", "--chunk", "0"});
  ASSERT_FALSE(logits.exit_code);
  EXPECT_THAT(logits.invocation.logits.positions, ElementsAre(3, 1, 3));
  EXPECT_EQ(logits.invocation.logits.model.fp32_compute, true);
  EXPECT_EQ(logits.invocation.logits.model.chunk, 0);
  EXPECT_EQ(parse({"run", "m"}).invocation.run.model.fp32_compute, std::nullopt);
  EXPECT_EQ(parse({"verify", "m"}).invocation.verify.model.fp32_compute, true);
  EXPECT_EQ(parse({"verify", "m", "--compute", "native"}).invocation.verify.model.fp32_compute,
            false);
  EXPECT_EQ(parse({"models", "rm", "m"}).invocation.models.action, ModelsOptions::Action::remove);
  EXPECT_EQ(parse({"logits", "m"}).exit_code, 2);
  EXPECT_EQ(parse({"run", "--node-port", "0"}).exit_code, 2);
  EXPECT_EQ(parse({"run", "--prompt", "a", "--prompt-file", "b"}).exit_code, 2);
  EXPECT_THAT(command_names(), ::testing::Contains("verify"));
}

TEST(ByteTokenizer, EveryByteIsItsId) {
  auto tokenizer = byte_tokenizer(300);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  std::vector<int32_t> ids(256);
  for (int32_t i = 0; i < 256; ++i) {
    ids[static_cast<size_t>(i)] = i;
    ASSERT_EQ(tokenizer->token_bytes(i).size(), 1u) << i;
    EXPECT_EQ(static_cast<unsigned char>(tokenizer->token_bytes(i)[0]), i);
  }
  auto encoded = tokenizer->encode("aé\n\x01");
  ASSERT_TRUE(encoded.ok());
  EXPECT_THAT(*encoded, ElementsAre('a', 0xC3, 0xA9, '\n', 1));
  EXPECT_EQ(tokenizer->decode(std::vector<int32_t>{'h', 'i', 299}, true), "hi<299>");
  EXPECT_EQ(tokenizer->n_ids(), 300);
  ASSERT_TRUE(byte_tokenizer(100).ok());  // a vocabulary smaller than a byte
}

TEST(Reference, OrderOfAForward) {
  const std::vector<std::string> names = {"embed",
                                          "layers.0.input_layernorm",
                                          "layers.0.self_attn.q_a",
                                          "layers.0.self_attn.q",
                                          "layers.0.self_attn.q_pe_rope.pairs",
                                          "layers.0.self_attn.out",
                                          "layers.0.mlp.out",
                                          "layers.0.out",
                                          "layers.1.input_layernorm",
                                          "layers.10.out",
                                          "final_norm",
                                          "logits"};
  for (size_t i = 1; i < names.size(); ++i)
    EXPECT_LT(order_of(names[i - 1]), order_of(names[i])) << names[i];
}

TEST(Reference, DifferencesSeeNan) {
  const float nan = std::nanf("");
  EXPECT_EQ(compare_f32(std::vector<float>{1, 2}, std::vector<float>{1, 2}).max_abs, 0);
  EXPECT_FALSE(compare_f32(std::vector<float>{1, nan}, std::vector<float>{1, 2}).within(1e9));
  EXPECT_NEAR(compare_f32(std::vector<float>{3, 4}, std::vector<float>{3, 5}).relative_l2,
              1 / std::sqrt(34.0), 1e-9);
}

}  // namespace
}  // namespace exo::cli
