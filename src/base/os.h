/// What differs by operating system: files, mappings, memory and processor counts. os_posix.cc is
/// the body.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "base/status.h"

namespace exo {

/// The file's bytes; an error if it is larger than `max_bytes`, not there, or not a regular file.
Result<std::string> read_file(const std::string& path, uint64_t max_bytes);

/// Writes to `path + ".tmp.<pid>"`, fsyncs, renames over `path`, fsyncs the folder: the old file or
/// the whole new one.
Status write_file_atomic(const std::string& path, std::string_view bytes);

/// A file written piece by piece that gets its name only when it is whole: bytes go to `path +
/// ".tmp.<pid>"`, commit() fsyncs it, renames it over `path` and fsyncs the folder. Destroyed
/// uncommitted it leaves nothing; a killed process leaves the .tmp file.
///
/// What is appended goes to the system in pieces of 4 MiB at multiples of 4 MiB: Linux then keeps
/// the file in huge pages (ext4 since 6.16, XFS), and maps it with them. Pages of 4 KiB cost the
/// int4 product of 48 rows a third of its speed.
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::string& path);
  AtomicFile() = default;
  AtomicFile(AtomicFile&& other) noexcept { *this = std::move(other); }
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  ~AtomicFile();
  Status append(const void* data, uint64_t n_bytes);
  Status commit();
  uint64_t size_bytes() const { return size_bytes_; }

 private:
  std::string temporary() const;
  Status flush();
  int fd_ = -1;
  uint64_t size_bytes_ = 0;
  std::string path_;
  std::string pending_;  // not yet written, the end of size_bytes_
};

/// An exclusive lock on the file `path` (made if missing, left behind), given up on destruction and
/// by the death of the process. acquire() doesn't wait: failed_precondition if another holds it.
class FileLock {
 public:
  static Result<FileLock> acquire(const std::string& path);
  FileLock() = default;
  FileLock(FileLock&& other) noexcept { *this = std::move(other); }
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

 private:
  int fd_ = -1;
};

/// Flushes a file's or a folder's data to the disk.
Status fsync_path(const std::string& path);

Result<uint64_t> file_size(const std::string& path);

/// Free bytes for this user on the file system that holds `path` (or its nearest existing parent).
Result<uint64_t> disk_free_bytes(const std::string& path);

/// A read-only memory mapping of a whole file, unmapped on destruction. A file that is truncated by
/// somebody else while mapped raises SIGBUS, as for every mmap user: caches are only ever replaced
/// by rename, never cut.
class MappedFile {
 public:
  static Result<MappedFile> open(const std::string& path);
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::byte* data() const { return data_; }
  uint64_t size_bytes() const { return size_bytes_; }
  const std::string& path() const { return path_; }

  enum class Advice { random, will_need, dont_need, populate };
  /// A hint for [offset, offset + n_bytes), widened (dont_need: narrowed) to whole pages; failure
  /// is not an error.
  /// populate: reads everything and maps every page now, in one call instead of a fault for each.
  /// dont_need: lets the pages go from this process; they stay in the page cache.
  void advise(uint64_t offset, uint64_t n_bytes, Advice advice) const;

  /// The share of the file's pages that are in memory already, 0 to 1 (0 where the system doesn't
  /// say).
  double resident_share() const;

  /// Asks the system to take the file out of memory (pages in use by others stay).
  void evict() const;

 private:
  std::byte* data_ = nullptr;
  uint64_t size_bytes_ = 0;
  std::string path_;
};

/// MappedFile::advise for whatever mapping [data, data + n_bytes) lies in.
void advise_memory(const std::byte* data, uint64_t n_bytes, MappedFile::Advice advice);
/// MappedFile::resident_share of a part of a mapping.
double resident_share(const std::byte* data, uint64_t n_bytes);

/// Bytes of a file, mapped read-only for as long as this lives.
class MappedPart {
 public:
  MappedPart() = default;
  MappedPart(MappedPart&& other) noexcept { *this = std::move(other); }
  MappedPart& operator=(MappedPart&& other) noexcept;
  ~MappedPart();
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  friend class RandomAccessFile;
  std::byte* pages_ = nullptr;
  uint64_t page_bytes_ = 0;
  std::span<const std::byte> bytes_;  ///< inside the pages
};

/// A file of which parts are mapped while they are looked at. A mapping of the whole file would be
/// counted as this process's memory in ever larger pieces: kernels map whole folios of the page
/// cache around a fault (Linux 6.18: 0.9 GB after 2 GB were read and let go again row by row).
class RandomAccessFile {
 public:
  static Result<RandomAccessFile> open(const std::string& path);
  RandomAccessFile() = default;
  RandomAccessFile(RandomAccessFile&& other) noexcept { *this = std::move(other); }
  RandomAccessFile& operator=(RandomAccessFile&& other) noexcept;
  ~RandomAccessFile();
  /// data_loss if the file ends before, also when it has become shorter since it was opened.
  Result<MappedPart> map(uint64_t offset, uint64_t n_bytes) const;
  uint64_t size_bytes() const { return size_bytes_; }
  const std::string& path() const { return path_; }

 private:
  int fd_ = -1;
  uint64_t size_bytes_ = 0;
  std::string path_;
};

/// Anonymous zeroed pages, huge ones asked for from 2 MiB on; nullptr when the system has none.
std::byte* map_pages(uint64_t n_bytes);
void unmap_pages(std::byte* data, uint64_t n_bytes);

/// Signals sent to the process are for other threads than the calling one: a worker that took
/// Ctrl-C would leave the thread that waits for it asleep.
void leave_signals_to_other_threads();

/// The processor that the calling thread runs on now; -1 where the system doesn't say.
int current_cpu();
/// Moves the calling thread to another processor of its affinity mask, if there is one.
void move_off_cpu(int cpu);

/// Processors this process may use: the affinity mask, cut by the cgroup's CPU quota (rounded up);
/// at least 1.
int usable_cpus();

/// Bytes of the last-level cache (shared ones whole), 0 where the system doesn't say.
uint64_t last_level_cache_bytes();

/// What the cgroups of a process (version 1 and 2, every one up to the root) allow it: infinity and
/// UINT64_MAX where there is no limit. Tests give files of their own.
struct CgroupLimits {
  double cpus = std::numeric_limits<double>::infinity();
  uint64_t memory_bytes = UINT64_MAX;
  uint64_t free_memory_bytes = UINT64_MAX;  ///< under the tightest limit
};
CgroupLimits cgroup_limits(const std::string& proc_cgroup = "/proc/self/cgroup",
                           const std::string& root = "/sys/fs/cgroup");

/// The smaller of the machine's memory and the cgroup's limit.
uint64_t total_memory_bytes();
/// What could be allocated now without swapping (MemAvailable, cut by what the cgroup has left).
uint64_t available_memory_bytes();
/// This process's peak resident set (VmHWM), 0 where the system doesn't say.
uint64_t peak_resident_bytes();

/// The folder of the running executable, "" if unknown.
std::string executable_dir();

/// Does the file descriptor (0, 1, 2) belong to a terminal? Its width in columns (80 if unknown).
bool is_terminal(int fd);
int terminal_columns();

}  // namespace exo
