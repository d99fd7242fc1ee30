#include "text/tokenizer.h"

#include <fmt/core.h>

#include <filesystem>
#include <tuple>
#include <unordered_map>

#include "base/os.h"
#include "base/utf8.h"
#include "text/tokenizer_parts.h"

namespace exo::text {
namespace {

constexpr uint64_t kMaxTokenizerBytes = uint64_t{64} << 20;
constexpr const char* kFileName = "tokenizer.json";
// How DeepSeek's tokenizers name them, for folders without tokenizer_config.json.
constexpr std::string_view kDeepSeekBos = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kDeepSeekEos = "<｜end▁of▁sentence｜>";

// Words met before in one text, with their ids. Words repeat, so most of a text is never encoded
// twice.
class WordCache {
 public:
  struct Range {
    uint32_t begin;
    uint32_t end;
  };
  static constexpr size_t kMaxWordBytes = 48;
  static constexpr size_t kMaxWords = 1 << 16;

  // The ids of `word`, made by encode(word, ids) if they aren't known; copied to the end of `out`.
  template <typename Encode>
  void append(std::string_view word, std::vector<int32_t>& out, const Encode& encode) {
    if (words_.size() >= kMaxWords) {
      words_.clear();
      ids_.clear();
    }
    const auto [it, is_new] = words_.try_emplace(word);
    if (is_new) {
      it->second.begin = static_cast<uint32_t>(ids_.size());
      encode(word, ids_);
      it->second.end = static_cast<uint32_t>(ids_.size());
    }
    out.insert(out.end(), ids_.begin() + it->second.begin, ids_.begin() + it->second.end);
  }

 private:
  std::unordered_map<std::string_view, Range> words_;
  std::vector<int32_t> ids_;
};

// One encode(): its buffers and its result.
class Encoder {
 public:
  explicit Encoder(const TokenizerParts& parts)
      : parts_(parts), pre_tokenizer_scratch_(parts.pre_tokenizer) {}

  Status encode(std::string_view text) {
    return cut(parts_.added_first, text, [this](std::string_view outer) {
      return cut(parts_.added_second, outer,
                 [this](std::string_view inner) { return encode_words(inner); });
    });
  }

  std::vector<int32_t> ids;

 private:
  // Writes the ids of the added tokens in `text`, and hands what lies between to encode_rest.
  template <typename EncodeRest>
  Status cut(const AddedTokens& added, std::string_view text, const EncodeRest& encode_rest) {
    size_t at = 0;
    while (const auto match = added.find(text, at)) {
      EXO_RETURN_IF_ERROR(encode_rest(text.substr(at, match->begin - at)));
      ids.push_back(match->id);
      at = match->end;
    }
    return encode_rest(text.substr(at));
  }

  Status encode_words(std::string_view text) {
    EXO_RETURN_IF_ERROR(parts_.pre_tokenizer.split(text, pre_tokenizer_scratch_));
    const auto encode_word = [this](std::string_view word, std::vector<int32_t>& out) {
      parts_.bpe.encode(word, bpe_scratch_, out);
    };
    for (const std::string_view word : pre_tokenizer_scratch_.words) {
      if (word.size() <= WordCache::kMaxWordBytes)
        cache_.append(word, ids, encode_word);
      else
        encode_word(word, ids);
    }
    return ok_status();
  }

  const TokenizerParts& parts_;
  PreTokenizer::Scratch pre_tokenizer_scratch_;
  Bpe::Scratch bpe_scratch_;
  WordCache cache_;
};

}  // namespace

std::optional<int32_t> TokenizerParts::id_of(std::string_view text) const {
  std::optional<int32_t> found;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const Token& token = tokens[id];
    if (token.kind == Kind::undefined || token.n_bytes != text.size() || bytes_of(token) != text)
      continue;
    if (token.kind != Kind::vocabulary) return static_cast<int32_t>(id);
    if (!found) found = static_cast<int32_t>(id);
  }
  return found;
}

Tokenizer::Tokenizer(std::unique_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::string& path) {
  const std::filesystem::path given(path);
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(given, error);
  const std::filesystem::path file = is_folder ? given / kFileName : given;
  EXO_ASSIGN_OR_RETURN(const std::string json, read_file(file.string(), kMaxTokenizerBytes));
  EXO_ASSIGN_OR_RETURN(TokenizerConfig config, TokenizerConfig::load(file.parent_path().string()));
  return from_json(json, file.string(), std::move(config));
}

Result<Tokenizer> Tokenizer::from_json(std::string_view json, std::string_view what,
                                       TokenizerConfig config) {
  EXO_ASSIGN_OR_RETURN(std::unique_ptr<TokenizerParts> parts,
                       TokenizerParts::from_json(json, what));
  for (const auto& [name, token, fallback, id] :
       {std::tuple("bos_token", &config.bos_token, kDeepSeekBos, &parts->bos_id),
        std::tuple("eos_token", &config.eos_token, kDeepSeekEos, &parts->eos_id)}) {
    *id = parts->id_of(token->has_value() ? std::string_view(**token) : fallback);
    if (token->has_value() && !id->has_value())
      return invalid_argument(
          fmt::format("{}: tokenizer_config.json's {} '{}' is not a token of it", what, name,
                      std::string_view(**token).substr(0, 60)));
  }
  parts->config = std::move(config);
  return Tokenizer(std::move(parts));
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text) const {
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  Encoder encoder(*parts_);
  EXO_RETURN_IF_ERROR(encoder.encode(text));
  return std::move(encoder.ids);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids)
    if (!skip_special_tokens || !is_special(id)) bytes += token_bytes(id);
  return is_valid_utf8(bytes) ? bytes : replace_invalid_utf8(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  return is_defined(id) ? parts_->bytes_of(parts_->tokens[id]) : std::string_view();
}

std::optional<int32_t> Tokenizer::id_of(std::string_view token_text) const {
  return parts_->id_of(token_text);
}

int32_t Tokenizer::n_ids() const { return static_cast<int32_t>(parts_->tokens.size()); }

bool Tokenizer::is_defined(int32_t id) const {
  return id >= 0 && id < n_ids() && parts_->tokens[id].kind != TokenizerParts::Kind::undefined;
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < n_ids() && parts_->tokens[id].kind == TokenizerParts::Kind::special;
}

std::vector<int32_t> Tokenizer::undefined_ids(int32_t n_rows) const {
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < n_rows; ++id)
    if (!is_defined(id)) ids.push_back(id);
  return ids;
}

std::optional<int32_t> Tokenizer::bos_id() const { return parts_->bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return parts_->eos_id; }
const TokenizerConfig& Tokenizer::config() const { return parts_->config; }

}  // namespace exo::text
