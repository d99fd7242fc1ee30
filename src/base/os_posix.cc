#include <fcntl.h>
#include <fmt/core.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "base/os.h"

namespace exo {
namespace {

Status errno_status(std::string_view what, const std::string& path) {
  const int error = errno;
  std::string message = fmt::format("{}: cannot {}: {}", path, what, std::strerror(error));
  if (error == ENOENT) return not_found(std::move(message));
  if (error == ENOSPC || error == ENOMEM) return resource_exhausted(std::move(message));
  return failed_precondition(std::move(message));
}

constexpr size_t kWriteBytes = size_t{4} << 20;  // see AtomicFile

// A descriptor closed at the end of its scope.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

Result<uint64_t> regular_file_size(int fd, const std::string& path) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return errno_status("stat", path);
  if (!S_ISREG(st.st_mode)) return invalid_argument(path + ": expected a regular file");
  return static_cast<uint64_t>(st.st_size);
}

Status write_all(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status("write", path);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return ok_status();
}

// The number after `key` in a "Key:   123 kB" file, in bytes; 0 if there is none.
uint64_t proc_kb(const char* file, std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with(key)) return std::strtoull(line.c_str() + key.size(), nullptr, 10) * 1024;
  }
  return 0;
}

}  // namespace

Result<std::string> read_file(const std::string& path, uint64_t max_bytes) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return errno_status("open", path);
  EXO_ASSIGN_OR_RETURN(const uint64_t size, regular_file_size(fd.get(), path));
  if (size > max_bytes) {
    return invalid_argument(
        fmt::format("{}: has {} bytes, expected at most {}", path, size, max_bytes));
  }
  std::string bytes(size, '\0');
  for (uint64_t at = 0; at < size;) {
    const ssize_t n = ::read(fd.get(), bytes.data() + at, size - at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_status("read", path);
    if (n == 0) return data_loss(fmt::format("{}: ends at byte {}, expected {}", path, at, size));
    at += static_cast<uint64_t>(n);
  }
  return bytes;
}

Status fsync_path(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return errno_status("open", path);
  if (::fsync(fd.get()) != 0) return errno_status("fsync", path);
  return ok_status();
}

Status write_file_atomic(const std::string& path, std::string_view bytes) {
  EXO_ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::create(path));
  EXO_RETURN_IF_ERROR(file.append(bytes.data(), bytes.size()));
  return file.commit();
}

std::string AtomicFile::temporary() const { return fmt::format("{}.tmp.{}", path_, ::getpid()); }

Result<AtomicFile> AtomicFile::create(const std::string& path) {
  AtomicFile file;
  file.path_ = path;
  file.fd_ = ::open(file.temporary().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file.fd_ < 0) return errno_status("create", file.temporary());
  return file;
}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(path_, other.path_);
  std::swap(pending_, other.pending_);
  return *this;
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary().c_str());
}

Status AtomicFile::append(const void* data, uint64_t n_bytes) {
  std::string_view bytes(static_cast<const char*>(data), n_bytes);
  while (!bytes.empty()) {
    const std::string_view piece = bytes.substr(0, kWriteBytes - pending_.size());
    pending_ += piece;
    size_bytes_ += piece.size();
    bytes.remove_prefix(piece.size());
    if (pending_.size() == kWriteBytes) EXO_RETURN_IF_ERROR(flush());
  }
  return ok_status();
}

Status AtomicFile::flush() {
  EXO_RETURN_IF_ERROR(write_all(fd_, pending_, temporary()));
  pending_.clear();
  return ok_status();
}

Status AtomicFile::commit() {
  EXO_RETURN_IF_ERROR(flush());
  if (::fsync(fd_) != 0) return errno_status("fsync", temporary());
  if (::rename(temporary().c_str(), path_.c_str()) != 0)
    return errno_status("rename to " + path_, temporary());
  ::close(std::exchange(fd_, -1));
  const std::string parent = std::filesystem::path(path_).parent_path().string();
  return fsync_path(parent.empty() ? "." : parent);
}

Result<FileLock> FileLock::acquire(const std::string& path) {
  FileLock lock;
  lock.fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock.fd_ < 0) return errno_status("create", path);
  if (::flock(lock.fd_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return errno_status("lock", path);
    return failed_precondition(path + ": another process holds this lock; wait until it has ended");
  }
  return lock;
}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);
}

Result<uint64_t> file_size(const std::string& path) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return errno_status("stat", path);
  return static_cast<uint64_t>(st.st_size);
}

Result<uint64_t> disk_free_bytes(const std::string& path) {
  std::error_code ignored;
  std::filesystem::path p = std::filesystem::absolute(path, ignored);
  while (!std::filesystem::exists(p, ignored) && p.has_parent_path() && p != p.parent_path())
    p = p.parent_path();
  struct statvfs fs {};
  if (::statvfs(p.c_str(), &fs) != 0) return errno_status("statvfs", p.string());
  return static_cast<uint64_t>(fs.f_bavail) * fs.f_frsize;
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return errno_status("open", path);
  MappedFile file;
  file.path_ = path;
  EXO_ASSIGN_OR_RETURN(file.size_bytes_, regular_file_size(fd.get(), path));
  if (file.size_bytes_ == 0) return file;
  void* data = ::mmap(nullptr, file.size_bytes_, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return errno_status("map", path);
  file.data_ = static_cast<std::byte*>(data);
#ifdef MADV_HUGEPAGE
  // What must be read from the disk is read into huge pages, where the file system has them.
  ::madvise(data, file.size_bytes_, MADV_HUGEPAGE);
#endif
  return file;
}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_bytes_);
}

void MappedFile::advise(uint64_t offset, uint64_t n_bytes, Advice advice) const {
  if (data_ == nullptr || offset >= size_bytes_) return;
  const uint64_t end = std::min(offset + n_bytes, size_bytes_);
  // The last page is whole, whatever the file's size.
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t whole = end == size_bytes_ ? (end + page - 1) / page * page : end;
  advise_memory(data_ + offset, whole - offset, advice);
}

void advise_memory(const std::byte* data, uint64_t n_bytes, MappedFile::Advice advice) {
#ifdef MADV_POPULATE_READ
  constexpr int kPopulate = MADV_POPULATE_READ;
#else
  constexpr int kPopulate = MADV_WILLNEED;
#endif
  // In the order of Advice.
  constexpr int kFlags[] = {MADV_RANDOM, MADV_WILLNEED, MADV_DONTNEED, kPopulate};
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  auto begin = reinterpret_cast<uintptr_t>(data), end = begin + n_bytes;
  if (advice == MappedFile::Advice::dont_need) {
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
  } else {
    begin = begin / page * page;
  }
  if (begin < end)
    ::madvise(reinterpret_cast<void*>(begin), end - begin, kFlags[static_cast<size_t>(advice)]);
}

void MappedFile::evict() const {
  // Pages that this mapping holds can't go.
  advise(0, size_bytes_, Advice::dont_need);
  const Fd fd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() >= 0) ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
}

double MappedFile::resident_share() const { return exo::resident_share(data_, size_bytes_); }

double resident_share(const std::byte* data, uint64_t n_bytes) {
  if (n_bytes == 0) return 0;
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data) + n_bytes;
  std::vector<unsigned char> in_memory((end - begin + page - 1) / page);
  if (::mincore(reinterpret_cast<void*>(begin), end - begin, in_memory.data()) != 0) return 0;
  const auto n = std::count_if(in_memory.begin(), in_memory.end(), [](auto b) { return b & 1; });
  return static_cast<double>(n) / static_cast<double>(in_memory.size());
}

MappedPart& MappedPart::operator=(MappedPart&& other) noexcept {
  std::swap(pages_, other.pages_);
  std::swap(page_bytes_, other.page_bytes_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedPart::~MappedPart() {
  if (pages_ != nullptr) ::munmap(pages_, page_bytes_);
}

Result<RandomAccessFile> RandomAccessFile::open(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (fd.get() < 0) return errno_status("open", path);
  RandomAccessFile file;
  file.path_ = path;
  EXO_ASSIGN_OR_RETURN(file.size_bytes_, regular_file_size(fd.get(), path));
  file.fd_ = fd.release();
  return file;
}

RandomAccessFile& RandomAccessFile::operator=(RandomAccessFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(size_bytes_, other.size_bytes_);
  std::swap(path_, other.path_);
  return *this;
}

RandomAccessFile::~RandomAccessFile() {
  if (fd_ >= 0) ::close(fd_);
}

Result<MappedPart> RandomAccessFile::map(uint64_t offset, uint64_t n_bytes) const {
  // Touching a page behind the end would be a SIGBUS.
  EXO_ASSIGN_OR_RETURN(const uint64_t size, regular_file_size(fd_, path_));
  if (offset > size || n_bytes > size - offset)
    return data_loss(fmt::format("{}: ends at byte {}, bytes [{}, {} + {}) were expected", path_,
                                 size, offset, offset, n_bytes));
  MappedPart part;
  if (n_bytes == 0) return part;
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t begin = offset / page * page;
  part.page_bytes_ = offset + n_bytes - begin;
  void* pages = ::mmap(nullptr, part.page_bytes_, PROT_READ, MAP_SHARED | MAP_POPULATE, fd_,
                       static_cast<off_t>(begin));
  if (pages == MAP_FAILED) return errno_status("map", path_);
  part.pages_ = static_cast<std::byte*>(pages);
  part.bytes_ = {part.pages_ + (offset - begin), n_bytes};
  return part;
}

std::byte* map_pages(uint64_t n_bytes) {
  void* p = ::mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
#ifdef MADV_HUGEPAGE
  if (n_bytes >= uint64_t{2} << 20) ::madvise(p, n_bytes, MADV_HUGEPAGE);
#endif
  return static_cast<std::byte*>(p);
}

void unmap_pages(std::byte* data, uint64_t n_bytes) { ::munmap(data, n_bytes); }

void leave_signals_to_other_threads() {
  sigset_t asynchronous;
  ::sigfillset(&asynchronous);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGPROF})
    ::sigdelset(&asynchronous, fault);
  ::pthread_sigmask(SIG_BLOCK, &asynchronous, nullptr);
}

int current_cpu() { return ::sched_getcpu(); }

void move_off_cpu(int cpu) {
  cpu_set_t all;
  CPU_ZERO(&all);
  if (cpu < 0 || cpu >= CPU_SETSIZE || ::sched_getaffinity(0, sizeof all, &all) != 0) return;
  cpu_set_t others = all;
  CPU_CLR(static_cast<size_t>(cpu), &others);
  if (CPU_COUNT(&others) == 0) return;
  // A mask that excludes this processor moves the thread at once; the old one leaves it there.
  ::sched_setaffinity(0, sizeof others, &others);
  ::sched_setaffinity(0, sizeof all, &all);
}

int usable_cpus() {
  int n = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
  const double cpus = std::ceil(cgroup_limits().cpus);
  if (cpus < n) n = static_cast<int>(cpus);
  return std::max(n, 1);
}

uint64_t last_level_cache_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
  for (const int level : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
    const auto n = ::sysconf(level);
    if (n > 0) return static_cast<uint64_t>(n);
  }
#endif
  return 0;
}

uint64_t total_memory_bytes() {
  return std::min(proc_kb("/proc/meminfo", "MemTotal:"), cgroup_limits().memory_bytes);
}

uint64_t available_memory_bytes() {
  return std::min(proc_kb("/proc/meminfo", "MemAvailable:"), cgroup_limits().free_memory_bytes);
}

uint64_t peak_resident_bytes() { return proc_kb("/proc/self/status", "VmHWM:"); }

std::string executable_dir() {
  std::error_code error;
  const auto path = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "" : path.parent_path().string();
}

bool is_terminal(int fd) { return ::isatty(fd) == 1; }

int terminal_columns() {
  struct winsize size {};
  if (::ioctl(2, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

}  // namespace exo
