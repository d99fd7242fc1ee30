/// What tests of this room share: the data folder, golden cases, folders that vanish.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <string>
#include <vector>

#include "base/json.h"
#include "model/config.h"

namespace exo::model::testing {

/// The shared data folder (goldens, facts), as the build set it.
inline std::string shared_dir() {
  const char* dir = std::getenv("EXO_SHARED");
  return dir != nullptr ? dir : "../shared";
}
inline std::string golden_dir(const std::string& name) { return shared_dir() + "/goldens/" + name; }

/// The golden cases that this family runs.
inline const std::vector<std::string>& golden_cases() {
  static const std::vector<std::string> cases = {"v3_bf16",    "v3_fp8",    "v2_lite",
                                                 "v2_grouped", "moonlight", "v3_mtp"};
  return cases;
}

inline Json read_json(const std::string& path) {
  Result<Json> json = read_json_file(path);
  EXPECT_TRUE(json.ok()) << json.status().message();
  return json.ok() ? *json : Json();
}

inline HfConfig read_config(const std::string& path) {
  Result<HfConfig> config = parse_config(read_json(path), path);
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : HfConfig();
}

/// A real model's config by its name in the shared facts ("deepseek-v3").
inline HfConfig fact(const std::string& name) {
  return read_config(shared_dir() + "/facts/configs/" + name + ".json");
}

/// A folder of its own, removed at the end.
class TempDir {
 public:
  TempDir() {
    std::string name = ::testing::TempDir() + "exo_model_XXXXXX";
    const char* made = ::mkdtemp(name.data());
    EXPECT_NE(made, nullptr);
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace exo::model::testing
