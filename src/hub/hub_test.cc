#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "base/json.h"
#include "hub/registry.h"
#include "hub/store.h"

namespace exo::hub {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::canonical(fs::temp_directory_path()) /
            ("exo_hub_test_" + std::to_string(::getpid()) + "_" +
             ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(root_);
    fs::create_directories(root_);
    paths_.hf_home = at("hf");
    paths_.exo_home = at("exo");
    paths_.cache = at("cache");
    paths_.shipped_models = {at("nowhere"), at("share")};
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string at(const std::string& path) const { return (root_ / path).string(); }
  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }

  fs::path root_;
  StorePaths paths_;
};

TEST(Registry, EntriesAreConsistent) {
  std::set<std::string_view> ids, repos, used;
  for (const RegistryEntry& entry : registry()) {
    EXPECT_TRUE(ids.insert(entry.id).second) << entry.id;
    if (!entry.hf_repo.empty()) {
      EXPECT_TRUE(repos.insert(entry.hf_repo).second) << entry.hf_repo;
    }
    EXPECT_EQ(find_entry(entry.id), &entry);
    EXPECT_EQ(entry.source.empty(), entry.id == "tiny") << entry.id;
    EXPECT_EQ(config_source(entry).empty(), !entry.has_config()) << entry.id;
    if (!entry.has_config()) {
      EXPECT_FALSE(config_of(entry).ok());
      EXPECT_FALSE(entry.note.empty()) << entry.id;
      continue;
    }
    used.insert(entry.config);
    auto text = config_of(entry);
    ASSERT_TRUE(text.ok()) << entry.id;
    auto json = parse_json(*text, entry.id);
    ASSERT_TRUE(json.ok()) << json.status().message();
    EXPECT_TRUE(json->contains("model_type"));
  }
  EXPECT_EQ(used.size(), embedded_configs().size()) << "a config that no entry names";
}

TEST(Registry, FindsByIdAndRepo) {
  ASSERT_NE(find_entry("DeepSeek-V3"), nullptr);
  EXPECT_EQ(find_entry("deepseek-ai/deepseek-v3")->id, "deepseek-v3");
  EXPECT_EQ(find_entry("deepseek"), nullptr);
  EXPECT_EQ(find_entry(""), nullptr);
  EXPECT_EQ(nearest_id("deepsek-v3"), "deepseek-v3");
  EXPECT_EQ(nearest_id("llama"), "");
  EXPECT_EQ(nearest_id(std::string(1'000'000, 'x')), "");
}

TEST_F(StoreTest, NoModel) {
  EXPECT_THAT(locate(paths_, "").status().message(), HasSubstr("tiny: the model that comes"));
  write("share/tiny/config.json", "{}");
  EXPECT_EQ(locate(paths_, "")->folder, at("share/tiny"));
  write("m/config.json", "{}");
  paths_.default_model = at("m");
  auto location = locate(paths_, "");
  ASSERT_TRUE(location.ok());
  EXPECT_EQ(location->folder, at("m"));
  EXPECT_TRUE(location->folder_exists);
}

TEST_F(StoreTest, Folders) {
  write("m/config.json", "{}");
  auto location = locate(paths_, at("m") + "/../m//");
  ASSERT_TRUE(location.ok());
  EXPECT_EQ(location->folder, at("m"));
  EXPECT_FALSE(location->is_cache);
  write("c/weights.json", "{}");
  EXPECT_TRUE(locate(paths_, at("c"))->is_cache);
  EXPECT_FALSE(locate(paths_, at("gone"))->folder_exists);
  EXPECT_THAT(locate(paths_, at("m/config.json")).status().message(), HasSubstr("is a file"));
  EXPECT_THAT(locate(paths_, "deepsek-v3").status().message(),
              HasSubstr("did you mean deepseek-v3?"));
  EXPECT_FALSE(locate(paths_, std::string("a\0b", 3)).ok());
  EXPECT_FALSE(has_checkpoint(at("m")));
  write("m/model.safetensors", "");
  EXPECT_TRUE(has_checkpoint(at("m")));
}

TEST_F(StoreTest, HuggingFaceCache) {
  auto planned = locate(paths_, "deepseek-v3");  // known, and nothing on disk
  ASSERT_TRUE(planned.ok());
  EXPECT_FALSE(planned->folder_exists);
  EXPECT_EQ(planned->entry->id, "deepseek-v3");
  auto unknown_config = locate(paths_, "deepseek-v3-base");
  EXPECT_THAT(unknown_config.status().message(), HasSubstr("deepseek-ai/DeepSeek-V3-Base"));

  const std::string base = "hf/hub/models--deepseek-ai--DeepSeek-V3/";
  write(base + "snapshots/aaa/config.json", "{}");
  EXPECT_EQ(locate(paths_, "deepseek-v3")->folder, at(base + "snapshots/aaa"));
  write(base + "snapshots/bbb/config.json", "{}");
  write(base + "refs/main", "aaa\n");
  EXPECT_EQ(locate(paths_, "deepseek-ai/DeepSeek-V3")->folder, at(base + "snapshots/aaa"));
  write(base + "refs/main", "../../../../etc");  // never leaves the snapshots folder
  EXPECT_THAT(locate(paths_, "deepseek-v3")->folder, HasSubstr("snapshots/"));

  write("hf/hub/models--some--one/snapshots/r/config.json", "{}");
  EXPECT_EQ(locate(paths_, "some/one")->folder, at("hf/hub/models--some--one/snapshots/r"));
  write("exo/models/deepseek-r1/config.json", "{}");
  EXPECT_EQ(locate(paths_, "deepseek-r1")->folder, at("exo/models/deepseek-r1"));
}

TEST_F(StoreTest, ShippedModel) {
  EXPECT_THAT(locate(paths_, "tiny").status().message(), HasSubstr(at("share/tiny")));
  write("share/tiny/config.json", "{}");
  EXPECT_EQ(locate(paths_, "tiny")->folder, at("share/tiny"));
}

TEST_F(StoreTest, CachesAreKeyedAndRemembered) {
  CacheKey key{"deepseek_v3", 7, "{}", "int4,attention=int8", 0, 4, 1};
  const std::string folder = cache_folder(paths_, key);
  EXPECT_THAT(folder, ::testing::StartsWith(paths_.cache + "/deepseek_v3-"));
  std::set<std::string> folders{folder};
  CacheKey other = key;
  other.source_hash = 8;
  EXPECT_TRUE(folders.insert(cache_folder(paths_, other)).second);
  other = key;
  other.config_json = "{ }";
  EXPECT_TRUE(folders.insert(cache_folder(paths_, other)).second);
  other = key;
  other.format = "int8";
  EXPECT_TRUE(folders.insert(cache_folder(paths_, other)).second);
  other = key;
  other.version = 2;
  EXPECT_TRUE(folders.insert(cache_folder(paths_, other)).second);
  other = key;
  other.layer_end = 3;
  EXPECT_TRUE(folders.insert(cache_folder(paths_, other)).second);
  other = key;
  other.model_type = "../x";
  EXPECT_EQ(fs::path(cache_folder(paths_, other)).parent_path(), paths_.cache);

  EXPECT_TRUE(list_caches(paths_).empty());
  ASSERT_TRUE(record_source(folder, "m", key.format, "/a/m").ok());
  ASSERT_TRUE(record_source(folder, "m", key.format, "/b/m").ok());
  ASSERT_TRUE(record_source(folder, "m", key.format, "/a/m").ok());
  write("cache/foreign/source.json", "[1]");
  auto caches = list_caches(paths_);
  ASSERT_EQ(caches.size(), 1u);
  EXPECT_THAT(caches[0].sources, ElementsAre("/a/m", "/b/m"));
  EXPECT_FALSE(caches[0].complete);
  write("cache/" + fs::path(folder).filename().string() + "/weights.json", "{}");
  EXPECT_TRUE(list_caches(paths_)[0].complete);
  const auto hour_ago = fs::file_time_type::clock::now() - std::chrono::hours(1);
  fs::last_write_time(folder + "/source.json", hour_ago);
  EXPECT_EQ(list_caches(paths_)[0].last_used, hour_ago);
  ASSERT_TRUE(record_source(folder, "m", key.format, "/b/m").ok());
  EXPECT_GT(list_caches(paths_)[0].last_used, hour_ago);
}

}  // namespace
}  // namespace exo::hub
