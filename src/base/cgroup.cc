/// Linux's limits on groups of processes (Documentation/admin-guide/cgroup-v1, cgroup-v2.rst).
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

#include "base/os.h"

namespace exo {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// The number that a file begins with; none for "max", no file, or nothing of the kind.
std::optional<double> number_in(const fs::path& path) {
  const std::string text = first_line(path);
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (end == text.c_str()) return std::nullopt;
  return value;
}

void limit_cpus(double quota, double period, CgroupLimits& limits) {
  if (quota > 0 && period > 0) limits.cpus = std::min(limits.cpus, quota / period);
}

// `inactive_key`: file pages that are given up before anything fails count as free.
void limit_memory(const fs::path& dir, const char* limit_file, const char* usage_file,
                  std::string_view inactive_key, CgroupLimits& limits) {
  // Version 1 says "no limit" as a number near 2^63.
  const std::optional<double> limit = number_in(dir / limit_file);
  if (!limit || *limit < 0 || *limit >= 0x1p62) return;
  const double used = number_in(dir / usage_file).value_or(0);
  double inactive = 0;
  std::ifstream stat(dir / "memory.stat");
  for (std::string line; std::getline(stat, line);) {
    if (line.starts_with(inactive_key))
      inactive = std::strtod(line.c_str() + inactive_key.size(), nullptr);
  }
  const double free = *limit - std::max(0.0, used - inactive);
  limits.memory_bytes = std::min(limits.memory_bytes, static_cast<uint64_t>(*limit));
  limits.free_memory_bytes =
      std::min(limits.free_memory_bytes, static_cast<uint64_t>(std::max(0.0, free)));
}

void read_folder_v2(const fs::path& dir, CgroupLimits& limits) {
  const std::string text = first_line(dir / "cpu.max");  // "max 100000" or "150000 100000"
  char* end = nullptr;
  const double quota = std::strtod(text.c_str(), &end);
  if (end != text.c_str()) limit_cpus(quota, std::strtod(end, nullptr), limits);
  limit_memory(dir, "memory.max", "memory.current", "inactive_file ", limits);
}

void read_cpu_v1(const fs::path& dir, CgroupLimits& limits) {
  const std::optional<double> quota = number_in(dir / "cpu.cfs_quota_us");  // -1: none
  limit_cpus(quota.value_or(-1), number_in(dir / "cpu.cfs_period_us").value_or(0), limits);
}

// `read` on root/path and on every folder above it up to root. In a container the path may be the
// host's, which isn't there: its own group then is the root.
template <typename Read>
void up_to_root(const fs::path& root, const std::string& path, Read read) {
  fs::path relative = fs::path(path).relative_path();
  std::error_code ignored;
  if (!fs::is_directory(root / relative, ignored)) relative.clear();
  for (;; relative = relative.parent_path()) {
    read(root / relative);
    if (relative.empty()) return;
  }
}

bool lists(const std::string& controllers, std::string_view name) {
  for (size_t begin = 0; begin <= controllers.size();) {
    const size_t end = std::min(controllers.find(',', begin), controllers.size());
    if (std::string_view(controllers).substr(begin, end - begin) == name) return true;
    begin = end + 1;
  }
  return false;
}

}  // namespace

CgroupLimits cgroup_limits(const std::string& proc_cgroup, const std::string& root) {
  CgroupLimits limits;
  std::ifstream in(proc_cgroup);
  // Lines are "number:controllers:path"; version 2 has number 0 and no controllers.
  for (std::string line; std::getline(in, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == line.npos || second == line.npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      up_to_root(root, path, [&](const fs::path& dir) { read_folder_v2(dir, limits); });
    } else if (lists(controllers, "cpu")) {
      up_to_root(fs::path(root) / controllers, path,
                 [&](const fs::path& dir) { read_cpu_v1(dir, limits); });
    } else if (lists(controllers, "memory")) {
      up_to_root(fs::path(root) / controllers, path, [&](const fs::path& dir) {
        limit_memory(dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ",
                     limits);
      });
    }
  }
  return limits;
}

}  // namespace exo
