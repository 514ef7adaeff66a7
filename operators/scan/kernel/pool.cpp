#include "pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include <atomic>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mno {
namespace {

// A call in progress. It lives on its caller's stack, and is unlinked before the caller returns.
struct Job {
  Work work;
  const void* context;
  int64_t items;
  uint64_t scratch;
  int64_t wanted;  // helpers that may still join
  int64_t inside;  // helpers at work
  std::atomic<int64_t> next;
  std::atomic<bool> failed;
  Job* link;
};

pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t arrived = PTHREAD_COND_INITIALIZER, left = PTHREAD_COND_INITIALIZER;
pthread_once_t once = PTHREAD_ONCE_INIT;
Job* jobs = nullptr;
int64_t helpers = 0;
constexpr int64_t MOST_HELPERS = 255;

// Decaying states end as denormal numbers, which x86 treats a hundred times slower.
struct FlushDenormals {
#if defined(__x86_64__)
  unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

void take_part(Job& job) {
  void* scratch = nullptr;
  if (posix_memalign(&scratch, 64, job.scratch * sizeof(float)) != 0) {
    job.failed = true;
    return;
  }
  {
    [[maybe_unused]] FlushDenormals guard;
    for (int64_t item; (item = job.next.fetch_add(1)) < job.items;) job.work(job.context, static_cast<float*>(scratch), item);
  }
  free(scratch);
}

Job* joinable() {
  for (Job* job = jobs; job; job = job->link)
    if (job->wanted > 0 && job->next.load() < job->items) return job;
  return nullptr;
}

void* help(void*) {
  pthread_mutex_lock(&mutex);
  for (;;) {
    Job* job = joinable();
    if (!job) {
      pthread_cond_wait(&arrived, &mutex);
      continue;
    }
    --job->wanted;
    ++job->inside;
    pthread_mutex_unlock(&mutex);
    take_part(*job);
    pthread_mutex_lock(&mutex);
    if (--job->inside == 0) pthread_cond_broadcast(&left);
  }
  return nullptr;
}

// a child process has none of its parent's threads
void forget_threads() {
  mutex = PTHREAD_MUTEX_INITIALIZER;
  arrived = PTHREAD_COND_INITIALIZER;
  left = PTHREAD_COND_INITIALIZER;
  jobs = nullptr;
  helpers = 0;
}

void watch_forks() { pthread_atfork(nullptr, nullptr, forget_threads); }

// with the mutex held; signals stay with the threads of the program
void grow(int64_t wanted) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (helpers < wanted && helpers < MOST_HELPERS) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, help, nullptr) != 0) break;
    pthread_detach(thread);
    ++helpers;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void publish(Job& job) {
  pthread_once(&once, watch_forks);
  pthread_mutex_lock(&mutex);
  grow(job.wanted);
  job.link = jobs;
  jobs = &job;
  pthread_cond_broadcast(&arrived);
  pthread_mutex_unlock(&mutex);
}

void withdraw(Job& job) {
  pthread_mutex_lock(&mutex);
  for (Job** at = &jobs; *at; at = &(*at)->link)
    if (*at == &job) {
      *at = job.link;
      break;
    }
  while (job.inside > 0) pthread_cond_wait(&left, &mutex);
  pthread_mutex_unlock(&mutex);
}

}  // namespace

bool run(Work work, const void* context, int64_t items, uint64_t scratch, int64_t threads) {
  const int64_t most = (threads < items ? threads : items) - 1;
  Job job{work, context, items, scratch, most, 0, {0}, {false}, nullptr};
  if (most > 0) publish(job);
  take_part(job);
  if (most > 0) withdraw(job);
  // a helper without memory leaves its share to the others
  return job.next.load() >= items;
}

}  // namespace mno
