#include <gtest/gtest.h>

#include <unistd.h>
#include <filesystem>
#include <fstream>

#include "base/json.h"
#include "base/os.h"
#include "base/utf8.h"

namespace exo {
namespace {

TEST(Json, RejectsWhatIsAmbiguousOrHostile) {
  EXPECT_TRUE(parse_json(R"({"a":1,"b":{"a":2}})", "t").ok());
  EXPECT_FALSE(parse_json(R"({"a":1,"a":2})", "t").ok());
  EXPECT_FALSE(parse_json(R"({"a":1} x)", "t").ok());
  EXPECT_FALSE(parse_json("{\"a\":\"\xff\"}", "t").ok());
  EXPECT_FALSE(parse_json(std::string(100000, '['), "t").ok());
  const auto deep = parse_json(std::string(300, '[') + std::string(300, ']'), "t");
  ASSERT_FALSE(deep.ok());
  EXPECT_NE(deep.status().message().find("deeper"), std::string::npos);
}

TEST(Json, TypedReadsNameTheField) {
  const Json j = *parse_json(R"({"n":7,"big":18446744073709551615,"s":"x","f":1.5,"z":null})", "t");
  const JsonObject o(j, "config.json");
  EXPECT_EQ(*o.integer("n", 0, 10), 7);
  EXPECT_FALSE(o.integer("n", 8, 10).ok());
  EXPECT_FALSE(o.integer("big", 0, INT64_MAX).ok());
  EXPECT_FALSE(o.integer("f", 0, 10).ok());
  EXPECT_EQ(*o.integer_or("z", 3, 0, 10), 3);
  EXPECT_FALSE(o.integer_or("s", 3, 0, 10).ok());
  EXPECT_NE(o.integer("gone", 0, 1).status().message().find("config.json: field 'gone'"),
            std::string::npos);
}

TEST(Utf8, DecodesAndReplaces) {
  EXPECT_EQ(decode_utf8("\xe2\x82\xac").code_point, 0x20AC);
  EXPECT_TRUE(decode_utf8("\xe2\x82").truncated);
  EXPECT_FALSE(is_valid_utf8("\xed\xa0\x80"));  // a surrogate
  EXPECT_FALSE(is_valid_utf8("\xc0\x80"));
  EXPECT_EQ(replace_invalid_utf8("a\xf0\x9f\x98z\xff"), "a\xef\xbf\xbdz\xef\xbf\xbd");
  std::string s;
  for (uint32_t cp : {0x41u, 0xe9u, 0x20acu, 0x1f600u}) append_utf8(s, cp);
  EXPECT_TRUE(is_valid_utf8(s));
  EXPECT_EQ(s.size(), 10u);
}

TEST(Os, PartsOfAFileAreMappedWhileTheyLive) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("exo_base_test_parts." + std::to_string(::getpid()));
  constexpr uint64_t kPart = 32 << 10;
  constexpr uint64_t kParts = 1024;
  {
    auto file = AtomicFile::create(path);
    ASSERT_TRUE(file.ok());
    for (uint64_t i = 0; i < kParts; ++i) {
      const std::string part(kPart, static_cast<char>(i));
      ASSERT_TRUE(file->append(part.data(), part.size()).ok());
    }
    ASSERT_TRUE(file->commit().ok());
  }
  auto file = RandomAccessFile::open(path);
  ASSERT_TRUE(file.ok());
  const auto resident_kb = [] {  // of files
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
      if (line.starts_with("RssFile:")) return std::strtoll(line.c_str() + 8, nullptr, 10);
    return -1LL;
  };
  const auto before = resident_kb();
  ASSERT_GE(before, 0);
  for (uint64_t at = 12345; at + kPart <= file->size_bytes(); at += kPart) {  // no page's beginning
    const auto part = file->map(at, kPart);
    ASSERT_TRUE(part.ok()) << part.status().message();
    ASSERT_EQ(part->bytes().size(), kPart);
    ASSERT_EQ(part->bytes().front(), std::byte(at / kPart));
    ASSERT_EQ(part->bytes().back(), std::byte(at / kPart + 1));
  }
  EXPECT_LT(resident_kb() - before, 1024);  // of 32 MiB
  EXPECT_TRUE(file->map(file->size_bytes(), 0)->bytes().empty());
  EXPECT_EQ(file->map(file->size_bytes(), 1).status().code(), StatusCode::data_loss);
  EXPECT_EQ(file->map(UINT64_MAX, 2).status().code(), StatusCode::data_loss);
  // Cut by somebody else meanwhile: an error, not a SIGBUS.
  std::filesystem::resize_file(path, kPart);
  EXPECT_TRUE(file->map(0, kPart).ok());
  EXPECT_EQ(file->map(kPart, kPart).status().code(), StatusCode::data_loss);
  std::filesystem::remove(path);
}

TEST(Os, FilesAreWrittenWholeAndReadBack) {
  const auto dir =
      std::filesystem::temp_directory_path() / ("exo_base_test." + std::to_string(::getpid()));
  std::filesystem::create_directories(dir);
  const std::string path = (dir / "f").string();
  ASSERT_TRUE(write_file_atomic(path, "hello").ok());
  ASSERT_TRUE(write_file_atomic(path, "world!").ok());
  EXPECT_EQ(*read_file(path, 100), "world!");
  EXPECT_FALSE(read_file(path, 3).ok());
  auto mapped = MappedFile::open(path);
  ASSERT_TRUE(mapped.ok());
  EXPECT_EQ(mapped->size_bytes(), 6u);
  EXPECT_EQ(static_cast<char>(mapped->data()[0]), 'w');
  mapped->advise(0, mapped->size_bytes(), MappedFile::Advice::populate);
  EXPECT_EQ(mapped->resident_share(), 1.0);
  EXPECT_EQ(read_file((dir / "none").string(), 1).status().code(), StatusCode::not_found);
  EXPECT_FALSE(read_file(dir.string(), 1).ok());
  {
    auto unfinished = AtomicFile::create(path);
    ASSERT_TRUE(unfinished.ok());
    ASSERT_TRUE(unfinished->append("x", 1).ok());
  }
  EXPECT_EQ(*read_file(path, 100), "world!");
  auto finished = AtomicFile::create(path);
  ASSERT_TRUE(finished.ok());
  ASSERT_TRUE(finished->append("ab", 2).ok());
  ASSERT_TRUE(finished->append("c", 1).ok());
  EXPECT_EQ(finished->size_bytes(), 3u);
  EXPECT_EQ(*read_file(path, 100), "world!");
  ASSERT_TRUE(finished->commit().ok());
  EXPECT_EQ(*read_file(path, 100), "abc");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir), {}), 1);  // no temporary left
  {
    auto lock = FileLock::acquire(path + ".lock");
    ASSERT_TRUE(lock.ok());
    EXPECT_EQ(FileLock::acquire(path + ".lock").status().code(), StatusCode::failed_precondition);
  }
  EXPECT_TRUE(FileLock::acquire(path + ".lock").ok());
  std::filesystem::remove_all(dir);
  EXPECT_GE(usable_cpus(), 1);
  EXPECT_GT(total_memory_bytes(), uint64_t{1} << 20);
  EXPECT_GT(peak_resident_bytes(), 0u);
}

}  // namespace
}  // namespace exo
