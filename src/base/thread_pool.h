/// One pool of threads for all operations of an engine.
///
/// parallel_for hands out task numbers dynamically; which thread runs a task never changes what the
/// task computes, so results don't depend on the number of threads. Between calls workers spin
/// briefly (a layer's next operation comes within microseconds) and then park on a futex. The
/// caller always works too, and at the end waits only for workers that have actually begun: a
/// worker that the system never scheduled (a busy machine) costs nothing. A thread takes the tasks
/// in their order, so a task may wait (wait_until) for those before it.
///
/// On a busy machine a worker that is preempted inside a task holds up everybody until it runs
/// again (4 ms at Linux's usual 250 ticks a second, thirty operations of a decode). So workers give
/// up their processor once a millisecond between tasks, where nobody waits for them, and move off
/// the caller's processor, where the system's balancing leaves them for seconds.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace exo {

class ThreadPool {
 public:
  /// n_threads >= 1 counts the caller; n_threads - 1 workers are started. Each calls on_start with
  /// its number, from 1 on, before its first task.
  explicit ThreadPool(int n_threads, std::function<void(int thread)> on_start = nullptr);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls f(task, thread) once for every task in [0, n_tasks), thread in [0, n_threads()); returns
  /// when all are done. f must not call parallel_for of the same pool and must not throw. One
  /// caller at a time.
  template <typename F>
  void parallel_for(int64_t n_tasks, F&& f) {
    using Fn = std::remove_reference_t<F>;
    run(
        n_tasks, [](void* fn, int64_t task, int thread) { (*static_cast<Fn*>(fn))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  using Call = void (*)(void* fn, int64_t task, int thread);
  void run(int64_t n_tasks, Call call, void* fn);
  void work(int thread);
  void run_tasks(int thread);
  bool yield_if_due(std::chrono::steady_clock::time_point* last) const;

  // gate_: generation << 17 | open << 16 | workers inside. A worker enters by a compare-and-swap
  // that succeeds only while its generation is open; the caller closes the gate when tasks have run
  // out and waits for 'inside' == 0.
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<int64_t> next_task_{0};
  alignas(64) std::atomic<int> n_parked_{0};
  std::atomic<int> caller_cpu_{-1};
  int64_t n_tasks_ = 0;
  Call call_ = nullptr;
  void* fn_ = nullptr;
  std::atomic<bool> stop_{false};
  std::function<void(int thread)> on_start_;
  std::vector<std::thread> workers_;
};

/// About 50 us of spinning: longer than the serial gaps inside a forward, shorter than a scheduler
/// tick.
inline constexpr int kSpins = 2000;
/// Tells the processor that this thread spins.
void cpu_relax();

/// Returns when done(value), acquired: spins briefly, then parks until whoever changes the value
/// calls its notify_all.
template <typename T, typename F>
void wait_until(const std::atomic<T>& value, F&& done) {
  for (int spin = 0;; ++spin) {
    const T now = value.load(std::memory_order_acquire);
    if (done(now)) return;
    if (spin < kSpins) {
      cpu_relax();
    } else {
      value.wait(now, std::memory_order_acquire);
    }
  }
}

}  // namespace exo
