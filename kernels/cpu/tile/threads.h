// threads.h: jobs on a few threads that are started for one call. No pool: nothing spins between calls, nothing is
// missing after fork. A call ends when its jobs are done. A thread that gets no processor before that finds no job
// left, touches nothing of the call and ends on its own, so nobody waits for it.
#pragma once
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#include <new>

#include "params.h"

// Python's lock, which the calling thread holds when it comes and when it returns, and does without in between.
class Unlocked {
  const Host* host;
  void* thread_state;

 public:
  explicit Unlocked(const Host* of) : host(of), thread_state(of ? of->release() : nullptr) {}
  ~Unlocked() {
    if (host) host->take(thread_state);
  }
  // Lets Python answer signals. Returns whether one of them raised (KeyboardInterrupt, say): the call is to end.
  bool interrupted() {
    if (!host) return false;
    host->take(thread_state);
    bool raised = host->check_signals() != 0;
    thread_state = host->release();
    return raised;
  }
};

class Jobs;

// Jobs 0 .. total-1 in that order, handed out one by one. A job may ask to wait until every earlier job up to
// some point is done, which is how packing comes before use.
struct Work {
  int64_t total;
  void (*run)(Jobs& jobs, int64_t job, int thread, void* state);
  void* state;
};

class Jobs {
  static constexpr int64_t SIGNALS_EVERY = 50000000;  // nanoseconds between two looks at signals, by the caller

  Work work;
  int64_t next = 0;
  int64_t done = 0;
  int threads_started = 0;
  int holders = 1;
  bool stopped = false;
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t progress = PTHREAD_COND_INITIALIZER;

  explicit Jobs(const Work& of) : work(of) {}

  static int64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
  }

  // Runs jobs until none is left; in a call that is stopped they count as done. `before` is asked before each.
  template <class Before>
  void run_jobs(int thread, const Before& before) {
    for (;;) {
      int64_t job = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (job >= work.total) return;
      before();
      if (!is_stopped()) work.run(*this, job, thread, work.state);
      pthread_mutex_lock(&mutex);
      done++;
      pthread_cond_broadcast(&progress);
      pthread_mutex_unlock(&mutex);
    }
  }
  // The caller is thread 0.
  void run_as_caller(Unlocked& python) {
    int64_t asked = now();
    run_jobs(0, [&] {
      int64_t time = now();
      if (time - asked < SIGNALS_EVERY) return;
      asked = time;
      if (python.interrupted()) __atomic_store_n(&stopped, true, __ATOMIC_RELAXED);
    });
    wait_until_done(work.total);
  }

  // Any other thread.
  static void* start(void* self) {
    Jobs& jobs = *(Jobs*)self;
    jobs.run_jobs(__atomic_add_fetch(&jobs.threads_started, 1, __ATOMIC_RELAXED), [] {});
    jobs.leave();
    return nullptr;
  }
  void leave() {
    if (__atomic_sub_fetch(&holders, 1, __ATOMIC_ACQ_REL) > 0) return;
    pthread_mutex_destroy(&mutex);
    pthread_cond_destroy(&progress);
    free(this);
  }
  // Threads that cannot be had are done without.
  void start_threads(int count) {
    for (pthread_t other; count > 0; count--) {
      __atomic_add_fetch(&holders, 1, __ATOMIC_RELAXED);
      if (pthread_create(&other, nullptr, start, this) != 0) return leave();
      pthread_detach(other);
    }
  }

 public:
  bool is_stopped() const { return __atomic_load_n(&stopped, __ATOMIC_RELAXED); }

  // Returns once the first `count` jobs are done: whether the call goes on. They have all been handed out before the
  // caller's job and never wait for a later one, so this ends.
  bool wait_until_done(int64_t count) {
    pthread_mutex_lock(&mutex);
    while (done < count) pthread_cond_wait(&progress, &mutex);
    pthread_mutex_unlock(&mutex);
    return !is_stopped();
  }

  // Runs all jobs on the caller and at most threads - 1 others. They share an object that the last of them frees.
  static Result run_all(const Work& work, int64_t threads, Unlocked& python) {
    void* memory = malloc(sizeof(Jobs));
    if (!memory) return OUT_OF_MEMORY;
    Jobs& jobs = *new (memory) Jobs(work);
    jobs.start_threads(int(threads - 1));
    jobs.run_as_caller(python);
    Result result = jobs.is_stopped() ? INTERRUPTED : OK;
    jobs.leave();
    return result;
  }
};
