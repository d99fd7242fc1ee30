#include "base/json.h"

#include <fmt/core.h>

#include <cmath>
#include <set>
#include <vector>

#include "base/os.h"

namespace exo {
namespace {

constexpr size_t kMaxDepth = 256;

// Watches the parse for what nlohmann accepts and we don't: duplicate keys and absurd nesting.
class StrictCallback {
 public:
  // `name_keys`: remember all keys, to say which one is there twice; several times slower.
  explicit StrictCallback(bool name_keys) : name_keys_(name_keys) {}

  bool operator()(int depth, Json::parse_event_t event, Json& parsed) {
    if (static_cast<size_t>(depth) > kMaxDepth)
      problem = fmt::format("nested deeper than {} levels", kMaxDepth);
    if (event == Json::parse_event_t::object_start) open_.emplace_back();
    if (event == Json::parse_event_t::key) add_key(parsed);
    if (event == Json::parse_event_t::object_end && !open_.empty()) {
      // An object keeps one value a key.
      if (open_.back().n_keys != parsed.size()) has_duplicate = true;
      open_.pop_back();
    }
    return problem.empty();
  }

  std::string problem;
  bool has_duplicate = false;

 private:
  struct Object {
    size_t n_keys = 0;
    std::set<std::string> keys;
  };

  void add_key(const Json& parsed) {
    ++open_.back().n_keys;
    if (!name_keys_ || !problem.empty()) return;
    const auto key = parsed.get<std::string>();
    if (!open_.back().keys.insert(key).second)
      problem = fmt::format("key '{}' appears twice", key.substr(0, 200));
  }

  bool name_keys_;
  std::vector<Object> open_;
};

}  // namespace

Result<Json> parse_json(std::string_view text, std::string_view what) {
  try {
    for (const bool name_keys : {false, true}) {
      StrictCallback strict(name_keys);
      Json json = Json::parse(text, std::ref(strict));
      if (!strict.problem.empty())
        return invalid_argument(fmt::format("{}: {}", what, strict.problem));
      if (!strict.has_duplicate) return json;
    }
    return internal_error(fmt::format("{}: a key appears twice and was not found", what));
  } catch (const nlohmann::json::exception& e) {
    return invalid_argument(fmt::format("{}: not valid JSON: {}", what, e.what()));
  }
}

Result<Json> read_json_file(const std::string& path, uint64_t max_bytes) {
  EXO_ASSIGN_OR_RETURN(std::string text, read_file(path, max_bytes));
  return parse_json(text, path);
}

Result<const Json*> JsonObject::find(std::string_view key) const {
  if (!json_.is_object())
    return invalid_argument(
        fmt::format("{}: expected an object, got {}", where_, json_.type_name()));
  auto it = json_.find(key);
  if (it == json_.end() || it->is_null())
    return not_found(fmt::format("{}: field '{}' is missing", where_, key));
  return &*it;
}

Status JsonObject::wrong_type(std::string_view key, std::string_view expected,
                              const Json& got) const {
  std::string text = got.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return invalid_argument(
      fmt::format("{}: field '{}': expected {}, got {}", where_, key, expected, text));
}

bool JsonObject::has(std::string_view key) const {
  if (!json_.is_object()) return false;
  auto it = json_.find(key);
  return it != json_.end() && !it->is_null();
}

Result<int64_t> JsonObject::integer(std::string_view key, int64_t min, int64_t max) const {
  EXO_ASSIGN_OR_RETURN(const Json* v, find(key));
  const std::string expected = fmt::format("an integer in [{}, {}]", min, max);
  if (!v->is_number_integer()) return wrong_type(key, expected, *v);
  if (v->is_number_unsigned() &&
      v->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return wrong_type(key, expected, *v);
  }
  const auto n = v->get<int64_t>();
  if (n < min || n > max) return wrong_type(key, expected, *v);
  return n;
}

Result<int64_t> JsonObject::integer_or(std::string_view key, int64_t fallback, int64_t min,
                                       int64_t max) const {
  return has(key) || !json_.is_object() ? integer(key, min, max) : Result<int64_t>(fallback);
}

Result<double> JsonObject::number(std::string_view key) const {
  EXO_ASSIGN_OR_RETURN(const Json* v, find(key));
  if (!v->is_number() || !std::isfinite(v->get<double>()))
    return wrong_type(key, "a finite number", *v);
  return v->get<double>();
}

Result<double> JsonObject::number_or(std::string_view key, double fallback) const {
  return has(key) || !json_.is_object() ? number(key) : Result<double>(fallback);
}

Result<bool> JsonObject::boolean_or(std::string_view key, bool fallback) const {
  if (!has(key) && json_.is_object()) return fallback;
  EXO_ASSIGN_OR_RETURN(const Json* v, find(key));
  if (!v->is_boolean()) return wrong_type(key, "true or false", *v);
  return v->get<bool>();
}

Result<std::string> JsonObject::string(std::string_view key) const {
  EXO_ASSIGN_OR_RETURN(const Json* v, find(key));
  if (!v->is_string()) return wrong_type(key, "a string", *v);
  return v->get<std::string>();
}

Result<std::string> JsonObject::string_or(std::string_view key, std::string fallback) const {
  return has(key) || !json_.is_object() ? string(key) : Result<std::string>(std::move(fallback));
}

Result<const Json*> JsonObject::object(std::string_view key) const {
  EXO_ASSIGN_OR_RETURN(const Json* v, find(key));
  if (!v->is_object()) return wrong_type(key, "an object", *v);
  return v;
}

Result<const Json*> JsonObject::array(std::string_view key) const {
  EXO_ASSIGN_OR_RETURN(const Json* v, find(key));
  if (!v->is_array()) return wrong_type(key, "an array", *v);
  return v;
}

}  // namespace exo
