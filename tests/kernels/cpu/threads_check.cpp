// threads_check.cpp: threads.h with a pthread_create that starts nothing, or later than the call takes. Gives 0, or
// the line of the check that fails.
#include <pthread.h>

typedef void* (*Start)(void*);
enum { NOW, LATE, NEVER } when;
struct {
  Start start;
  void* argument;
} late[8];
static int asked = 0;  // how many threads

static int create(pthread_t* thread, const pthread_attr_t* attributes, Start start, void* argument) {
  if (when == NEVER) return 11;
  late[asked++] = {start, argument};
  return when == NOW ? pthread_create(thread, attributes, start, argument) : 0;
}
static int detach(pthread_t thread) { return when == NOW ? pthread_detach(thread) : 0; }
#define pthread_create create
#define pthread_detach detach
#include "../../../kernels/cpu/tile/threads.h"

constexpr int64_t JOBS = 40;
struct State {
  int runs[JOBS];
  int order_broken, stop_at;
};
static int signals_raised = 0, locked = 1;
static void* release() { return locked--, &locked; }
static void take(void* state) { locked += state == &locked; }
static int check_signals() { return signals_raised; }
static const Host host = {release, take, check_signals};

// Every tenth job waits for those before it. Each from `stop_at` on takes so long that the caller then looks at signals.
static void run(Jobs& jobs, int64_t job, int, void* of) {
  State& s = *(State*)of;
  if (job % 10 == 0) {
    if (!jobs.wait_until_done(job)) return;
    for (int64_t i = 0; i < job; i++) s.order_broken += __atomic_load_n(&s.runs[i], __ATOMIC_RELAXED) != 1;
  }
  if (s.stop_at >= 0 && job >= s.stop_at) {
    timespec moment = {0, 60000000};
    nanosleep(&moment, nullptr);
  }
  __atomic_add_fetch(&s.runs[job], 1, __ATOMIC_RELAXED);
}

#define CHECK(what) \
  if (!(what)) return __LINE__

static int call(int64_t threads, int64_t stop_at, Result expected, int64_t jobs_run) {
  State* s = (State*)calloc(1, sizeof(State));
  s->stop_at = stop_at;
  asked = 0;
  {
    Unlocked python(&host);
    CHECK(locked == 0);
    CHECK(Jobs::run_all({JOBS, run, s}, threads, python) == expected);
  }
  CHECK(locked == 1);
  CHECK(asked == (when == NEVER ? 0 : threads - 1));
  int64_t done = 0;
  for (int i = 0; i < JOBS; i++) {
    CHECK(s->runs[i] <= 1);
    done += s->runs[i];
  }
  CHECK(jobs_run < 0 || done == jobs_run);
  CHECK(s->order_broken == 0);
  free(s);  // a thread that still reads it is found by the address sanitizer
  for (int i = 0; when == LATE && i < asked; i++) late[i].start(late[i].argument);
  return 0;
}

int main() {
  for (int way = NOW; way <= NEVER; way++) {
    when = decltype(when)(way);
    for (int64_t threads = 1; threads <= 5; threads += 2)
      if (int line = call(threads, -1, OK, JOBS)) return line;
  }
  signals_raised = 1;
  when = LATE;
  if (int line = call(3, 6, INTERRUPTED, 7)) return line;  // alone: jobs 0 to 6
  when = NOW;
  if (int line = call(3, 6, INTERRUPTED, -1)) return line;
  signals_raised = 0;
  return call(3, JOBS - 2, OK, JOBS);
}
