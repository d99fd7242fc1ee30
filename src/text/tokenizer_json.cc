// Reads a tokenizer.json into TokenizerParts.

#include <fmt/core.h>

#include <array>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/json.h"
#include "text/byte_level.h"
#include "text/tokenizer_parts.h"

namespace exo::text {
namespace {

// Far above any vocabulary (V4: 129,280 ids), and small enough that a table by id is harmless.
constexpr int64_t kMaxIds = 1 << 20;
constexpr size_t kMaxAddedTokenBytes = 1024;

// Bytes that no valid UTF-8 text has; V2's vocabulary leaves them out.
constexpr bool occurs_in_utf8(int byte) { return byte < 0xc0 || (byte > 0xc1 && byte < 0xf5); }

// null, or a Sequence of nothing: the text is taken as it is.
Status check_normalizer(const Json& root, const std::string& what) {
  const auto it = root.find("normalizer");
  if (it == root.end() || it->is_null()) return ok_status();
  const std::string where = what + ": normalizer";
  const JsonObject o(*it, where);
  EXO_ASSIGN_OR_RETURN(const std::string type, o.string("type"));
  if (std::string_view(type) == "Sequence") {
    EXO_ASSIGN_OR_RETURN(const Json* list, o.array("normalizers"));
    if (list->empty()) return ok_status();
    EXO_ASSIGN_OR_RETURN(const std::string first,
                         JsonObject(list->front(), where + ".normalizers[0]").string("type"));
    return unimplemented(
        fmt::format("{}: normalizer '{}' is not supported", where, first.substr(0, 60)));
  }
  return unimplemented(
      fmt::format("{}: normalizer '{}' is not supported", where, type.substr(0, 60)));
}

Status check_decoder(const JsonObject& root, const std::string& what) {
  EXO_ASSIGN_OR_RETURN(const Json* decoder, root.object("decoder"));
  EXO_ASSIGN_OR_RETURN(const std::string type,
                       JsonObject(*decoder, what + ": decoder").string("type"));
  if (std::string_view(type) == "ByteLevel") return ok_status();
  return unimplemented(fmt::format("{}: decoder '{}' is not supported (known: ByteLevel)", what,
                                   type.substr(0, 60)));
}

// Everything that would change ids and isn't implemented must be off.
Status check_model(const JsonObject& model, const std::string& where) {
  EXO_ASSIGN_OR_RETURN(const std::string type, model.string("type"));
  if (std::string_view(type) != "BPE")
    return unimplemented(
        fmt::format("{}: model '{}' is not supported (known: BPE)", where, type.substr(0, 60)));
  EXO_ASSIGN_OR_RETURN(const double dropout, model.number_or("dropout", 0));
  if (dropout != 0) return unimplemented(where + ": dropout is not supported");
  for (const char* flag : {"byte_fallback", "ignore_merges"}) {
    EXO_ASSIGN_OR_RETURN(const bool on, model.boolean_or(flag, false));
    if (on) return unimplemented(fmt::format("{}: {} is not supported", where, flag));
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    EXO_ASSIGN_OR_RETURN(const std::string text, model.string_or(affix, ""));
    if (!text.empty()) return unimplemented(fmt::format("{}: {} is not supported", where, affix));
  }
  return ok_status();
}

using Vocabulary = std::unordered_map<std::string_view, int32_t>;

Result<Vocabulary> read_vocabulary(const Json& json, const std::string& where) {
  Vocabulary vocabulary;
  vocabulary.reserve(json.size());
  for (const auto& [text, id] : json.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= kMaxIds)
      return invalid_argument(
          fmt::format("{}['{}']: expected an id in [0, {})", where, text.substr(0, 60), kMaxIds));
    vocabulary.emplace(text, id.get<int32_t>());
  }
  return vocabulary;
}

// "left right", or ["left", "right"] as newer files write it.
Result<std::pair<std::string_view, std::string_view>> merge_halves(const Json& json) {
  if (json.is_array() && json.size() == 2 && json[0].is_string() && json[1].is_string())
    return std::pair<std::string_view, std::string_view>(json[0].get_ref<const std::string&>(),
                                                         json[1].get_ref<const std::string&>());
  if (json.is_string()) {
    const std::string_view text = json.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos)
      return std::pair(text.substr(0, space), text.substr(space + 1));
  }
  return invalid_argument("expected two tokens: \"a b\" or [\"a\", \"b\"]");
}

Result<std::vector<Merge>> read_merges(const Json& json, const Vocabulary& vocabulary,
                                       const std::string& where) {
  std::vector<Merge> merges;
  merges.reserve(json.size());
  std::string joined;
  for (size_t i = 0; i < json.size(); ++i) {
    const auto halves = merge_halves(json[i]);
    if (!halves.ok()) return halves.status().with_context(fmt::format("{}[{}]", where, i));
    const auto [left, right] = *halves;
    joined.assign(left).append(right);
    int32_t ids[3];
    const std::string_view texts[3] = {left, right, joined};
    for (int k = 0; k < 3; ++k) {
      const auto it = vocabulary.find(texts[k]);
      if (it == vocabulary.end())
        return invalid_argument(
            fmt::format("{}[{}]: '{}' is not in the vocabulary", where, i, texts[k].substr(0, 60)));
      ids[k] = it->second;
    }
    merges.push_back({ids[0], ids[1], ids[2]});
  }
  return merges;
}

struct AddedEntry {
  AddedToken token;
  bool normalized;
  bool special;
};

Result<AddedEntry> read_added_token(const Json& json, const std::string& where) {
  const JsonObject o(json, where);
  AddedEntry entry;
  EXO_ASSIGN_OR_RETURN(const int64_t id, o.integer("id", 0, kMaxIds - 1));
  entry.token.id = static_cast<int32_t>(id);
  EXO_ASSIGN_OR_RETURN(entry.token.text, o.string("content"));
  if (entry.token.text.empty() || entry.token.text.size() > kMaxAddedTokenBytes)
    return invalid_argument(fmt::format("{}: content has {} bytes, expected 1 to {}", where,
                                        entry.token.text.size(), kMaxAddedTokenBytes));
  EXO_ASSIGN_OR_RETURN(entry.token.lstrip, o.boolean_or("lstrip", false));
  EXO_ASSIGN_OR_RETURN(entry.token.rstrip, o.boolean_or("rstrip", false));
  EXO_ASSIGN_OR_RETURN(const bool single_word, o.boolean_or("single_word", false));
  if (single_word)
    return unimplemented(fmt::format("{}: '{}': single_word is not supported", where,
                                     entry.token.text.substr(0, 60)));
  EXO_ASSIGN_OR_RETURN(entry.special, o.boolean_or("special", false));
  EXO_ASSIGN_OR_RETURN(entry.normalized, o.boolean_or("normalized", !entry.special));
  return entry;
}

// Fills the parts field by field; each method leaves what the next one needs.
class Loader {
 public:
  explicit Loader(TokenizerParts& parts, std::string what)
      : parts_(parts), what_(std::move(what)) {}

  Status load(const Json& json) {
    const JsonObject root(json, what_);
    EXO_ASSIGN_OR_RETURN(const Json* model_json, root.object("model"));
    const std::string where = what_ + ": model";
    const JsonObject model(*model_json, where);
    EXO_RETURN_IF_ERROR(check_normalizer(json, what_));
    EXO_RETURN_IF_ERROR(check_decoder(root, what_));
    EXO_RETURN_IF_ERROR(check_model(model, where));
    EXO_ASSIGN_OR_RETURN(const Json* pre_tokenizer, root.object("pre_tokenizer"));
    EXO_ASSIGN_OR_RETURN(parts_.pre_tokenizer,
                         PreTokenizer::from_json(*pre_tokenizer, what_ + ": pre_tokenizer"));

    EXO_ASSIGN_OR_RETURN(const Json* vocabulary_json, model.object("vocab"));
    EXO_ASSIGN_OR_RETURN(const Vocabulary vocabulary,
                         read_vocabulary(*vocabulary_json, where + ".vocab"));
    for (const auto& [text, id] : vocabulary)
      EXO_RETURN_IF_ERROR(define(id, byte_level_bytes(text), Kind::vocabulary));
    EXO_RETURN_IF_ERROR(load_bpe(model, vocabulary, where));
    return load_added(json, vocabulary);
  }

 private:
  using Kind = TokenizerParts::Kind;

  Status define(int32_t id, std::string_view bytes, Kind kind) {
    if (static_cast<size_t>(id) >= parts_.tokens.size())
      parts_.tokens.resize(static_cast<size_t>(id) + 1);
    TokenizerParts::Token& token = parts_.tokens[id];
    if (token.kind != Kind::undefined)
      return invalid_argument(fmt::format("{}: id {} is given to two tokens", what_, id));
    token = {static_cast<uint32_t>(parts_.token_bytes.size()), static_cast<uint32_t>(bytes.size()),
             kind};
    parts_.token_bytes += bytes;
    return ok_status();
  }

  Status load_bpe(const JsonObject& model, const Vocabulary& vocabulary, const std::string& where) {
    std::array<int32_t, 256> byte_ids;
    for (int byte = 0; byte < 256; ++byte) {
      const auto it = vocabulary.find(byte_level_symbol(static_cast<uint8_t>(byte)));
      byte_ids[byte] = it == vocabulary.end() ? -1 : it->second;
      if (byte_ids[byte] < 0 && occurs_in_utf8(byte))
        return invalid_argument(
            fmt::format("{}.vocab: no token for the byte 0x{:02x}", where, byte));
    }
    EXO_ASSIGN_OR_RETURN(const Json* merges_json, model.array("merges"));
    EXO_ASSIGN_OR_RETURN(std::vector<Merge> merges,
                         read_merges(*merges_json, vocabulary, where + ".merges"));
    parts_.bpe = Bpe(byte_ids, std::move(merges));
    return ok_status();
  }

  Status load_added(const Json& json, const Vocabulary& vocabulary) {
    const auto list = json.find("added_tokens");
    if (list == json.end() || list->is_null()) return ok_status();
    if (!list->is_array())
      return invalid_argument(fmt::format("{}: added_tokens: expected a list", what_));
    std::unordered_set<std::string> seen;
    std::vector<AddedToken> first, second;
    for (size_t i = 0; i < list->size(); ++i) {
      const std::string where = fmt::format("{}: added_tokens[{}]", what_, i);
      EXO_ASSIGN_OR_RETURN(AddedEntry entry, read_added_token((*list)[i], where));
      const AddedToken& token = entry.token;
      if (!seen.insert(token.text).second)
        return invalid_argument(
            fmt::format("{}: '{}' appears twice", where, token.text.substr(0, 60)));
      // An added token may repeat an entry of the vocabulary (BOS does); it then stands for its
      // text.
      const auto it = vocabulary.find(token.text);
      if (it != vocabulary.end()) {
        if (it->second != token.id)
          return invalid_argument(fmt::format("{}: '{}' has id {}, and {} in the vocabulary", where,
                                              token.text.substr(0, 60), token.id, it->second));
        parts_.tokens[token.id].kind = entry.special ? Kind::special : Kind::added;
      } else {
        EXO_RETURN_IF_ERROR(define(token.id, byte_level_bytes(token.text),
                                   entry.special ? Kind::special : Kind::added));
      }
      (entry.normalized ? second : first).push_back(std::move(entry.token));
    }
    parts_.added_first = AddedTokens(std::move(first));
    parts_.added_second = AddedTokens(std::move(second));
    return ok_status();
  }

  TokenizerParts& parts_;
  std::string what_;
};

}  // namespace

Result<std::unique_ptr<TokenizerParts>> TokenizerParts::from_json(std::string_view json,
                                                                  std::string_view what) {
  EXO_ASSIGN_OR_RETURN(const Json root, parse_json(json, what));
  auto parts = std::make_unique<TokenizerParts>();
  EXO_RETURN_IF_ERROR(Loader(*parts, std::string(what)).load(root));
  return parts;
}

}  // namespace exo::text
