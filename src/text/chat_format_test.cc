#include "text/chat_format.h"

#include "text/jsonl.h"
#include "text/test_data.h"

namespace exo::text {
namespace {

const ChatFormat& format(std::string_view name) {
  const auto found = chat_format_by_name(name);
  EXPECT_TRUE(found.ok());
  return **found;
}

// A row of the goldens as the line that `exo render` gets; kwargs of the golden file hold
// add_generation_prompt where the row has none of its own.
ChatRequest request_of(const Json& row) {
  const auto request = parse_chat_request(row.dump(), "row");
  EXPECT_TRUE(request.ok()) << request.status().message();
  return request.ok() ? *request : ChatRequest();
}

TEST(ChatGoldens, PromptsAndIds) {
  size_t n_rows = 0;
  for (const Json& row : read_jsonl("goldens/chat/cases.jsonl")) {
    const auto name = row["template"].get<std::string>();
    const auto case_name = row["case"].get<std::string>();
    SCOPED_TRACE(name + " " + case_name);
    const auto prompt = format(name).render(request_of(row));
    ASSERT_TRUE(prompt.ok()) << prompt.status().message();
    EXPECT_EQ(prompt->text, row["prompt"].get<std::string>());
    const Tokenizer& tokenizer =
        shared_tokenizer(name == "deepseek-r1-0528" ? "deepseek-r1" : name);
    const auto ids = tokenizer.encode(prompt->text);
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*ids, row["ids"].get<std::vector<int32_t>>());
    ++n_rows;
  }
  EXPECT_EQ(n_rows, 220u);
}

}  // namespace
}  // namespace exo::text
