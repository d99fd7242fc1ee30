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

// A row of the goldens is the line that `exo render` gets, and some fields more.
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

TEST(ChatGoldens, JinjaRendered) {
  const auto rows = read_json_file(shared_path("facts/chat_templates/golden/jinja_rendered.json"));
  ASSERT_TRUE(rows.ok()) << rows.status().message();
  ASSERT_EQ(rows->size(), 29u);
  for (Json row : *rows) {
    const auto name = row["template"].get<std::string>();
    SCOPED_TRACE(name + " " + row["case"].get<std::string>());
    row["add_generation_prompt"] = true;
    const auto prompt = format(name).render(request_of(row));
    ASSERT_TRUE(prompt.ok()) << prompt.status().message();
    EXPECT_EQ(prompt->text, row["prompt"].get<std::string>());
  }
}

Result<RenderedPrompt> render(std::string_view name, const std::string& json) {
  const auto request = parse_chat_request(json, "request");
  if (!request.ok()) return request.status();
  return format(name).render(*request);
}

TEST(ChatFormat, SaysHowTheAnswerBegins) {
  const std::string asks =
      R"({"messages":[{"role":"user","content":"Hi"}],"add_generation_prompt":true,"kwargs":{"thinking":)";
  const auto reasoning = [&](std::string_view name, const std::string& thinking) {
    const auto prompt = render(name, asks + thinking + "}}");
    EXPECT_TRUE(prompt.ok());
    return prompt->reasoning;
  };
  EXPECT_EQ(reasoning("deepseek-v2", "true"), ReasoningStart::none);
  EXPECT_EQ(reasoning("deepseek-v3", "true"), ReasoningStart::none);
  EXPECT_EQ(reasoning("deepseek-r1", "null"), ReasoningStart::in_prompt);
  EXPECT_EQ(reasoning("deepseek-r1-0528", "null"), ReasoningStart::by_model);
  EXPECT_EQ(reasoning("deepseek-v3.1", "true"), ReasoningStart::in_prompt);
  EXPECT_EQ(reasoning("deepseek-v3.1", "false"), ReasoningStart::none);
  // R1 writes no tag after tool results; the model may.
  const auto after_tool = render("deepseek-r1",
                                 R"({"messages":[{"role":"user","content":"Hi"},
      {"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]},
      {"role":"tool","content":"5"}],"add_generation_prompt":true})");
  ASSERT_TRUE(after_tool.ok()) << after_tool.status().message();
  EXPECT_EQ(after_tool->reasoning, ReasoningStart::by_model);
}

// What the goldens don't show; the expected texts are the templates' under jinja2 3.1.6.
TEST(ChatFormat, OdditiesOfTheTemplates) {
  const std::string no_calls =
      R"({"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"x","tool_calls":[]}]})";
  EXPECT_EQ(render("deepseek-v3", no_calls)->text,
            "<｜begin▁of▁sentence｜><｜User｜>u<｜Assistant｜>x<｜end▁of▁sentence｜>");
  EXPECT_EQ(render("deepseek-r1", no_calls)->text,
            "<｜begin▁of▁sentence｜><｜User｜>u<｜tool▁calls▁end｜><｜end▁of▁sentence｜>");
  EXPECT_EQ(render("deepseek-v3.1", no_calls)->text,
            "<｜begin▁of▁sentence｜><｜User｜>u<｜Assistant｜></"
            "think><｜tool▁calls▁end｜><｜end▁of▁sentence｜>");
  const std::string prefix =
      R"({"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"x","prefix":true}],)"
      R"("kwargs":{"thinking":true}})";
  EXPECT_EQ(render("deepseek-v3.1", prefix)->text,
            "<｜begin▁of▁sentence｜><｜User｜>u<｜Assistant｜><think>x<｜end▁of▁sentence｜>");
  EXPECT_EQ(render("deepseek-v3", R"({"messages":[{"role":"assistant","content":null}]})")->text,
            "<｜begin▁of▁sentence｜>");
  EXPECT_EQ(render("deepseek-v2", R"({"messages":[{"role":"tool","content":"5"}]})")->text,
            "<｜begin▁of▁sentence｜>");
  EXPECT_EQ(render("deepseek-v2", R"({"messages":[]})")->text, "<｜begin▁of▁sentence｜>");
}

TEST(ChatFormat, NullContentWhereTextIsNeededIsAnError) {
  for (const auto& [name, json] :
       {std::pair("deepseek-v2", R"({"messages":[{"role":"assistant","content":null}]})"),
        std::pair("deepseek-v3", R"({"messages":[{"role":"user"}]})"),
        std::pair("deepseek-r1", R"({"messages":[{"role":"assistant","content":null}]})"),
        std::pair("deepseek-v3.1", R"({"messages":[{"role":"system"}]})")}) {
    const auto prompt = render(name, json);
    ASSERT_FALSE(prompt.ok()) << name;
    EXPECT_NE(prompt.status().message().find("messages[0].content: null"), std::string::npos);
  }
}

TEST(ChatRequest, ReadsWhatOpenAiSends) {
  const auto request = parse_chat_request(
      R"({"messages":[{"role":"developer","content":"s"},
          {"role":"user","name":"Ann","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
          {"role":"assistant","content":null,"tool_calls":[
             {"id":"c1","type":"function","function":{"name":"f","arguments":"{}"}}]},
          {"role":"tool","tool_call_id":"c1","content":"5"},
          {"role":"assistant","content":"x","tool_calls":null}],
        "tools":[{"type":"function"}],"kwargs":{"thinking":true,"other":[1]},"ignored":1})",
      "request");
  ASSERT_TRUE(request.ok()) << request.status().message();
  const auto& messages = request->messages;
  ASSERT_EQ(messages.size(), 5u);
  EXPECT_EQ(messages[0].role, Role::system);
  EXPECT_EQ(messages[1].content, "a\nb");
  EXPECT_EQ(messages[1].name, "Ann");
  EXPECT_FALSE(messages[2].content.has_value());
  EXPECT_EQ(messages[2].tool_calls->at(0).id, "c1");
  EXPECT_EQ(messages[2].tool_calls->at(0).name, "f");
  EXPECT_EQ(messages[3].tool_call_id, "c1");
  EXPECT_FALSE(messages[4].tool_calls.has_value());
  EXPECT_EQ(request->n_tools, 1u);
  EXPECT_TRUE(request->thinking);
  EXPECT_FALSE(request->add_generation_prompt);
}

TEST(ChatRequest, ErrorsNameTheField) {
  for (
      const auto& [json, field] : {
          std::pair(R"([])", "request: expected an object"),
          std::pair(R"({})", "field 'messages'"),
          std::pair(R"({"messages":{}})", "field 'messages'"),
          std::pair(R"({"messages":[5]})", "messages[0]: expected an object"),
          std::pair(R"({"messages":[{"content":"x"}]})", "messages[0]: field 'role'"),
          std::pair(R"({"messages":[{"role":"bot","content":"x"}]})", "messages[0].role"),
          std::pair(R"({"messages":[{"role":"user","content":5}]})", "messages[0].content"),
          std::pair(R"({"messages":[{"role":"user","content":["x"]}]})",
                    "messages[0].content[0]: expected an object"),
          std::pair(R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})",
                    "messages[0].content[0].type: only text"),
          std::pair(R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})",
                    "messages[0].content[0]: field 'text'"),
          std::pair(R"({"messages":[{"role":"assistant","tool_calls":[{}]}]})",
                    "messages[0].tool_calls[0]: field 'function'"),
          std::pair(
              R"({"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":{}}}]}]})",
              "messages[0].tool_calls[0].function: field 'arguments'"),
          std::pair(R"({"messages":[],"tools":{}})", "field 'tools'"),
          std::pair(R"({"messages":[],"add_generation_prompt":1})", "'add_generation_prompt'"),
          std::pair(R"({"messages":[],"kwargs":[]})", "field 'kwargs'"),
          std::pair(R"({"messages":[],"kwargs":{"thinking":"yes"}})", "kwargs: field 'thinking'"),
          std::pair(R"({"messages":[{"role":"user","content":"\ud83d"}]})", "not valid JSON"),
      }) {
    const auto request = parse_chat_request(json, "request");
    ASSERT_FALSE(request.ok()) << json;
    EXPECT_NE(request.status().message().find(field), std::string::npos)
        << json << "\n"
        << request.status().message();
  }
}

TEST(ChooseChatFormat, KnowsThePublishedTemplates) {
  for (const ChatFormat& known : chat_formats()) {
    TokenizerConfig config;
    const auto jinja = read_file(
        shared_path("facts/chat_templates/" + std::string(known.name) + ".jinja"), 1 << 20);
    ASSERT_TRUE(jinja.ok()) << jinja.status().message();
    config.chat_template = *jinja;
    const auto chosen = choose_chat_format(config, "");
    ASSERT_TRUE(chosen.ok()) << chosen.status().message();
    EXPECT_EQ((*chosen)->name, known.name);
  }
  for (const auto& [folder, name] :
       {std::pair("deepseek-v2", "deepseek-v2"), std::pair("deepseek-v3", "deepseek-v3")}) {
    const auto chosen = choose_chat_format(shared_tokenizer(folder).config(), "deepseek-r1");
    ASSERT_TRUE(chosen.ok());
    EXPECT_EQ((*chosen)->name, name);  // the model's own template goes before the hint
  }
}

TEST(ChooseChatFormat, LineBreaksDontCountAndTextDoes) {
  EXPECT_EQ(template_fingerprint("{{ a }}\n\t{{'\\n'}}"), template_fingerprint("{{a}}{{'\n'}}"));
  EXPECT_NE(template_fingerprint("{{a}}"), template_fingerprint("{{b}}"));
  EXPECT_EQ(template_fingerprint(""), 0xcbf29ce484222325u);
}

TEST(ChooseChatFormat, UnknownTemplatesNeedAHint) {
  TokenizerConfig config;
  auto chosen = choose_chat_format(config, "");
  ASSERT_FALSE(chosen.ok());
  EXPECT_NE(chosen.status().message().find("no chat template"), std::string::npos);
  config.chat_template = "{{ messages }}";
  chosen = choose_chat_format(config, "");
  ASSERT_FALSE(chosen.ok());
  EXPECT_NE(chosen.status().message().find("doesn't know"), std::string::npos);
  EXPECT_NE(chosen.status().message().find("deepseek-r1-0528"), std::string::npos);
  ASSERT_TRUE(choose_chat_format(config, "deepseek-r1").ok());
  EXPECT_EQ((*choose_chat_format(config, "deepseek-r1"))->name, "deepseek-r1");
  EXPECT_FALSE(choose_chat_format(config, "gpt-2").ok());
}

}  // namespace
}  // namespace exo::text
