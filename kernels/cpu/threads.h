// threads.h: jobs that run on a few threads which live as long as one call. No pool: nothing spins between calls,
// nothing is missing after fork.
#pragma once
#include <pthread.h>
#include <stdint.h>

// Jobs 0 .. total-1 in that order, handed out one by one. A job may ask to wait until every earlier job up to
// some point is done, which is how packing comes before use.
struct Jobs {
  int64_t total;
  void (*run)(Jobs& jobs, int64_t job, int thread);
  void* state;

  int64_t next = 0;
  int64_t done = 0;
  int threads_started = 0;
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t progress = PTHREAD_COND_INITIALIZER;

  // Returns once the first `count` jobs are done. They have all been handed out before the caller's job and never
  // wait for a later one, so this ends.
  void wait_until_done(int64_t count) {
    pthread_mutex_lock(&mutex);
    while (done < count) pthread_cond_wait(&progress, &mutex);
    pthread_mutex_unlock(&mutex);
  }

  void work(int thread) {
    for (;;) {
      int64_t job = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
      if (job >= total) return;
      run(*this, job, thread);
      pthread_mutex_lock(&mutex);
      done++;
      pthread_cond_broadcast(&progress);
      pthread_mutex_unlock(&mutex);
    }
  }

  // One other thread than the caller.
  static void* start(void* self) {
    Jobs& jobs = *(Jobs*)self;
    jobs.work(__atomic_add_fetch(&jobs.threads_started, 1, __ATOMIC_RELAXED));
    return nullptr;
  }

  // The caller is thread 0. Threads that cannot be had are done without.
  void run_all(int threads) {
    constexpr int MOST = 256;
    pthread_t others[MOST];
    int started = 0;
    while (started < threads - 1 && started < MOST && pthread_create(&others[started], nullptr, start, this) == 0)
      started++;
    work(0);
    for (int i = 0; i < started; i++) pthread_join(others[i], nullptr);
    pthread_mutex_destroy(&mutex);
    pthread_cond_destroy(&progress);
  }
};
