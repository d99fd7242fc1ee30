#include "text/pre_tokenizer.h"

#include <fmt/core.h>

#include <string>
#include <utility>

namespace exo::text {
namespace {

constexpr int kMaxDepth = 8;
constexpr size_t kMaxStages = 64;

// GPT-2's words, which ByteLevel cuts by itself under use_regex.
constexpr std::string_view kGpt2Words =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

}  // namespace

// Reads one pre-tokenizer after the other, in their order.
class PreTokenizer::Builder {
 public:
  Status add(const Json& json, const std::string& where, int depth);

  std::vector<Stage> stages;
  bool has_byte_level = false;

 private:
  Status add_sequence(const JsonObject& o, const std::string& where, int depth);
  Status add_split(const JsonObject& o, const std::string& where);
  Status add_byte_level(const JsonObject& o, const std::string& where);
  Status add_stage(std::string_view pattern, bool literal, Behavior behavior, bool invert,
                   const std::string& where);
};

Status PreTokenizer::Builder::add(const Json& json, const std::string& where, int depth) {
  const JsonObject o(json, where);
  EXO_ASSIGN_OR_RETURN(const std::string type_text, o.string("type"));
  const std::string_view type = type_text;
  if (type == "Sequence") return add_sequence(o, where, depth);
  if (has_byte_level)
    return unimplemented(
        fmt::format("{}: '{}' after ByteLevel is not supported", where, type.substr(0, 60)));
  if (type == "Split") return add_split(o, where);
  if (type == "ByteLevel") return add_byte_level(o, where);
  if (type == "Digits") {
    EXO_ASSIGN_OR_RETURN(const bool individual, o.boolean_or("individual_digits", false));
    return add_stage("\\p{N}", /*literal=*/false,
                     individual ? Behavior::isolated : Behavior::contiguous, /*invert=*/false,
                     where);
  }
  return unimplemented(
      fmt::format("{}: pre-tokenizer '{}' is not known (known: Sequence, Split, Digits, ByteLevel)",
                  where, type.substr(0, 60)));
}

Status PreTokenizer::Builder::add_sequence(const JsonObject& o, const std::string& where,
                                           int depth) {
  EXO_ASSIGN_OR_RETURN(const Json* list, o.array("pretokenizers"));
  if (depth == kMaxDepth)
    return invalid_argument(fmt::format("{}: nested deeper than {} levels", where, kMaxDepth));
  for (size_t i = 0; i < list->size(); ++i)
    EXO_RETURN_IF_ERROR(add((*list)[i], fmt::format("{}.pretokenizers[{}]", where, i), depth + 1));
  return ok_status();
}

Status PreTokenizer::Builder::add_split(const JsonObject& o, const std::string& where) {
  EXO_ASSIGN_OR_RETURN(const Json* pattern_json, o.object("pattern"));
  const JsonObject pattern(*pattern_json, where + ".pattern");
  const bool literal = pattern.has("String");
  EXO_ASSIGN_OR_RETURN(const std::string text, pattern.string(literal ? "String" : "Regex"));
  EXO_ASSIGN_OR_RETURN(const std::string behavior_name, o.string("behavior"));
  EXO_ASSIGN_OR_RETURN(const bool invert, o.boolean_or("invert", false));

  static constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
      {"Removed", Behavior::removed},
      {"Isolated", Behavior::isolated},
      {"MergedWithPrevious", Behavior::merged_with_previous},
      {"MergedWithNext", Behavior::merged_with_next},
      {"Contiguous", Behavior::contiguous}};
  for (const auto& [name, behavior] : kBehaviors)
    if (name == behavior_name) return add_stage(text, literal, behavior, invert, where);
  return unimplemented(
      fmt::format("{}: behavior '{}' is not known", where, behavior_name.substr(0, 60)));
}

Status PreTokenizer::Builder::add_byte_level(const JsonObject& o, const std::string& where) {
  EXO_ASSIGN_OR_RETURN(const bool add_prefix_space, o.boolean_or("add_prefix_space", true));
  EXO_ASSIGN_OR_RETURN(const bool use_regex, o.boolean_or("use_regex", true));
  if (add_prefix_space)
    return unimplemented(
        fmt::format("{}: ByteLevel with add_prefix_space is not supported", where));
  if (use_regex)
    EXO_RETURN_IF_ERROR(add_stage(kGpt2Words, /*literal=*/false, Behavior::isolated,
                                  /*invert=*/false, where));
  has_byte_level = true;
  return ok_status();
}

Status PreTokenizer::Builder::add_stage(std::string_view pattern, bool literal, Behavior behavior,
                                        bool invert, const std::string& where) {
  if (stages.size() == kMaxStages)
    return invalid_argument(fmt::format("{}: more than {} stages", where, kMaxStages));
  Result<Pattern> compiled = Pattern::compile(pattern, literal);
  if (!compiled.ok()) return compiled.status().with_context(where);
  stages.push_back({*std::move(compiled), behavior, invert});
  return ok_status();
}

Result<PreTokenizer> PreTokenizer::from_json(const Json& json, const std::string& where) {
  Builder builder;
  EXO_RETURN_IF_ERROR(builder.add(json, where, 0));
  if (!builder.has_byte_level)
    return unimplemented(fmt::format(
        "{}: only byte-level tokenizers are supported, and there is no ByteLevel", where));
  PreTokenizer pre_tokenizer;
  pre_tokenizer.stages_ = std::move(builder.stages);
  return pre_tokenizer;
}

PreTokenizer::Scratch::Scratch(const PreTokenizer& pre_tokenizer) {
  for (const Stage& stage : pre_tokenizer.stages_) patterns.emplace_back(stage.pattern);
}

// Does a part of a text join the part before it?
bool PreTokenizer::joins(Behavior behavior, bool previous_is_match, bool is_match) {
  switch (behavior) {
    case Behavior::contiguous:
      return previous_is_match == is_match;
    case Behavior::merged_with_previous:
      return !previous_is_match && is_match;
    case Behavior::merged_with_next:
      return previous_is_match && !is_match;
    case Behavior::removed:
    case Behavior::isolated:
      break;
  }
  return false;
}

Status PreTokenizer::apply(const Stage& stage, std::string_view text, Pattern::Scratch& scratch,
                           std::vector<std::string_view>& words) {
  bool is_first = true;
  bool previous_is_match = false;
  const auto add = [&](size_t begin, size_t end, bool is_match) {
    if (begin == end) return;
    is_match = is_match != stage.invert;
    if (stage.behavior == Behavior::removed && is_match) return;
    if (!is_first && joins(stage.behavior, previous_is_match, is_match))
      words.back() = {words.back().data(), words.back().size() + (end - begin)};
    else
      words.push_back(text.substr(begin, end - begin));
    is_first = false;
    previous_is_match = is_match;
  };
  for (size_t at = 0; at < text.size();) {
    EXO_ASSIGN_OR_RETURN(const Pattern::Match match, stage.pattern.find(text, at, scratch));
    add(at, match.begin, false);
    if (match.found) add(match.begin, match.end, true);
    at = match.end;
  }
  return ok_status();
}

Status PreTokenizer::split(std::string_view text, Scratch& scratch) const {
  scratch.words.clear();
  if (!text.empty()) scratch.words.push_back(text);
  for (size_t i = 0; i < stages_.size(); ++i) {
    scratch.next_words.clear();
    for (const std::string_view word : scratch.words)
      EXO_RETURN_IF_ERROR(apply(stages_[i], word, scratch.patterns[i], scratch.next_words));
    std::swap(scratch.words, scratch.next_words);
  }
  return ok_status();
}

}  // namespace exo::text
