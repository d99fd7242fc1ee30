// What the machine allows: processors, memory, nodes, huge pages.
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

#include "base/numa.h"
#include "base/os.h"

namespace exo {
namespace {

namespace fs = std::filesystem;

class CgroupTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(::testing::TempDir()) / ("exo_cgroup." + std::to_string(::getpid()));
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << "\n";
  }
  CgroupLimits limits(const std::string& of_process) {
    write("proc", of_process);
    return cgroup_limits((root_ / "proc").string(), (root_ / "fs").string());
  }
  fs::path root_;
};

TEST_F(CgroupTest, Version2TakesTheTightestUpToTheRoot) {
  write("fs/a/b/cpu.max", "max 100000");
  write("fs/a/cpu.max", "150000 100000");
  write("fs/a/b/memory.max", "1000000");
  write("fs/a/b/memory.current", "700000");
  write("fs/a/b/memory.stat", "anon 1\ninactive_file 200000\nactive_file 5");
  write("fs/a/memory.max", "max");
  const CgroupLimits l = limits("0::/a/b");
  EXPECT_EQ(l.cpus, 1.5);
  EXPECT_EQ(l.memory_bytes, 1000000u);
  EXPECT_EQ(l.free_memory_bytes, 500000u) << "file pages that can go are free";
}

TEST_F(CgroupTest, Version1HasAFolderForEachController) {
  write("fs/cpu,cpuacct/pod/cpu.cfs_quota_us", "300000");
  write("fs/cpu,cpuacct/pod/cpu.cfs_period_us", "100000");
  write("fs/memory/pod/memory.limit_in_bytes", "4096000");
  write("fs/memory/pod/memory.usage_in_bytes", "96000");
  write("fs/memory/memory.limit_in_bytes", "9223372036854771712");
  const CgroupLimits l = limits("4:memory:/pod\n3:cpuset:/pod\n2:cpu,cpuacct:/pod\n0::/");
  EXPECT_EQ(l.cpus, 3);
  EXPECT_EQ(l.memory_bytes, 4096000u);
  EXPECT_EQ(l.free_memory_bytes, 4000000u);
}

TEST_F(CgroupTest, APathOfTheHostIsTheRootInAContainer) {
  write("fs/cpu.max", "50000 100000");
  EXPECT_EQ(limits("0::/docker/0123456789").cpus, 0.5);
}

TEST_F(CgroupTest, NothingAndNonsenseAreNoLimit) {
  write("fs/a/cpu.max", "banana");
  write("fs/a/memory.max", "");
  write("fs/cpu/cpu.cfs_quota_us", "-1");
  write("fs/cpu/cpu.cfs_period_us", "100000");
  for (const char* process : {"", "garbage", "0::/a", "2:cpu:/", "1:"}) {
    const CgroupLimits l = limits(process);
    EXPECT_TRUE(std::isinf(l.cpus)) << process;
    EXPECT_EQ(l.memory_bytes, UINT64_MAX) << process;
  }
  EXPECT_TRUE(std::isinf(cgroup_limits("/nowhere", "/nowhere").cpus));
}

TEST(Cpus, AreThoseOfTheAffinityMask) {
  const int before = usable_cpus();
  // In a thread of its own: a mask is a thread's.
  std::thread([&] {
    const int cpu = current_cpu();
    ASSERT_GE(cpu, 0);
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(static_cast<size_t>(cpu), &one);
    ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
    EXPECT_EQ(usable_cpus(), 1);
    move_off_cpu(cpu);  // there is no other
    EXPECT_EQ(current_cpu(), cpu);
  }).join();
  EXPECT_EQ(usable_cpus(), before);
}

TEST(Cpus, AThreadMovesOffAndKeepsItsMask) {
  if (std::thread::hardware_concurrency() < 2) GTEST_SKIP() << "one processor";
  std::thread([] {
    cpu_set_t before, after;
    ASSERT_EQ(::sched_getaffinity(0, sizeof before, &before), 0);
    if (CPU_COUNT(&before) < 2) return;
    move_off_cpu(current_cpu());
    ASSERT_EQ(::sched_getaffinity(0, sizeof after, &after), 0);
    EXPECT_NE(CPU_EQUAL(&before, &after), 0);
    for (int i = 0; i < 5; ++i) {
      const int cpu = current_cpu();
      cpu_set_t others = before;
      CPU_CLR(static_cast<size_t>(cpu), &others);
      move_off_cpu(cpu);
      EXPECT_GE(current_cpu(), 0);
    }
  }).join();
}

TEST(Numa, ThreadsGoToNodesByTheirProcessors) {
  auto numa = NumaTopology::synthetic("numa:2 core:4 pu:1");
  ASSERT_TRUE(numa.ok()) << numa.status().message();
  EXPECT_EQ(numa->n_nodes(), 2);
  EXPECT_EQ(numa->cpus(1), (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(numa->nodes_of_threads(8), (std::vector<int>{0, 0, 0, 0, 1, 1, 1, 1}));
  EXPECT_EQ(numa->nodes_of_threads(2), (std::vector<int>{0, 1}));
  EXPECT_EQ(numa->nodes_of_threads(3), (std::vector<int>{0, 0, 1}));
  EXPECT_EQ(numa->nodes_of_threads(16).back(), 1);
  // Of a topology that isn't this system's nothing is bound; that is no error.
  EXPECT_TRUE(numa->bind_thread(1).ok());
  std::vector<std::byte> pages(1 << 16);
  EXPECT_TRUE(numa->interleave(pages.data(), pages.size()).ok());
}

TEST(Numa, OneNodeAndManyAndNonsense) {
  auto one = NumaTopology::synthetic("core:2 pu:2");
  ASSERT_TRUE(one.ok()) << one.status().message();
  EXPECT_EQ(one->n_nodes(), 1);
  EXPECT_EQ(one->cpus(0).size(), 4u);
  auto eight = NumaTopology::synthetic("package:2 numa:4 core:3 pu:1");
  ASSERT_TRUE(eight.ok()) << eight.status().message();
  EXPECT_EQ(eight->n_nodes(), 8);
  const std::vector<int> nodes = eight->nodes_of_threads(12);
  EXPECT_TRUE(std::is_sorted(nodes.begin(), nodes.end()));
  for (int node = 0; node < 8; ++node)
    EXPECT_GE(std::count(nodes.begin(), nodes.end(), node), 1) << node;
  EXPECT_EQ(NumaTopology::synthetic("numa:banana").status().code(), StatusCode::invalid_argument);
}

TEST(Numa, ThisMachineHasTheProcessorsWeMayUse) {
  const auto machine = NumaTopology::of_machine();
  ASSERT_TRUE(machine.ok()) << machine.status().message();
  size_t n = 0;
  for (int node = 0; node < machine->n_nodes(); ++node) n += machine->cpus(node).size();
  EXPECT_GE(n, static_cast<size_t>(usable_cpus()));
  std::thread([&] { EXPECT_TRUE(machine->bind_thread(machine->n_nodes() - 1).ok()); }).join();
}

TEST(Files, AppendedPiecesOfEverySizeAreTheFile) {
  const std::string path = ::testing::TempDir() + "exo_pieces." + std::to_string(::getpid());
  auto file = AtomicFile::create(path);
  ASSERT_TRUE(file.ok());
  std::string expected;
  uint32_t seed = 1;
  for (const size_t n : {size_t{1}, size_t{4} << 20, size_t{300000}, size_t{9} << 20, size_t{0},
                         size_t{63}, (size_t{4} << 20) - 64}) {
    std::string piece(n, '\0');
    for (size_t i = 0; i < n; i += 509)
      piece[i] = static_cast<char>((seed = seed * 69069 + 1) >> 24);
    ASSERT_TRUE(file->append(piece.data(), piece.size()).ok());
    expected += piece;
    EXPECT_EQ(file->size_bytes(), expected.size());
  }
  ASSERT_TRUE(file->commit().ok());
  EXPECT_TRUE(*read_file(path, expected.size()) == expected);
  auto mapped = MappedFile::open(path);
  ASSERT_TRUE(mapped.ok());
  mapped->advise(0, mapped->size_bytes(), MappedFile::Advice::populate);
  EXPECT_EQ(mapped->resident_share(), 1.0);
  EXPECT_EQ(resident_share(mapped->data() + 4095, 2), 1.0);
  // Evicted, it is read again.
  mapped->evict();
  EXPECT_EQ(static_cast<char>(mapped->data()[expected.size() - 1]), expected.back());
  fs::remove(path);
}

}  // namespace
}  // namespace exo
