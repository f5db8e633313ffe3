#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <dlfcn.h>
#endif

namespace gpt2c {
namespace {

struct Job {
    int64_t n;
    void (*task)(void*, int64_t);
    void* context;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr failure;  // the first one, of any thread: none may leave a parallel region

    void work() {
        try {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n && !failed;) task(context, i);
        } catch (...) {
            if (!failed.exchange(true)) failure = std::current_exception();
        }
    }
};

// torch's matrix products run on an OpenMP team whose idle threads spin. A pool of our own would fight them for the
// cores, so the kernels join that team through libgomp's entry point, which every OpenMP runtime of Linux exports.
using gomp_parallel_t = void(void (*fn)(void*), void* data, unsigned threads, unsigned flags);

gomp_parallel_t* find_openmp() {
#ifdef _WIN32
    return nullptr;
#else
    return reinterpret_cast<gomp_parallel_t*>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#endif
}

// Where no OpenMP runtime is loaded: sleeping workers, woken for each job.
class Pool {
 public:
    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stop_ = true;
        }
        wake_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    void run(Job& job, int helpers) {
        std::lock_guard<std::mutex> one_job_at_a_time(run_mutex_);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_.size()) < helpers) {
                const int index = static_cast<int>(workers_.size());
                workers_.emplace_back([this, index, seen = generation_] { loop(index, seen); });
            }
            job_ = &job;
            helpers_ = running_ = helpers;
            ++generation_;
        }
        wake_.notify_all();
        job.work();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
    }

 private:
    void loop(int index, uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
            if (stop_) return;
            seen = generation_;
            if (index >= helpers_) continue;
            lock.unlock();
            job_->work();
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    std::mutex run_mutex_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    Job* job_ = nullptr;
    int helpers_ = 0, running_ = 0;
    uint64_t generation_ = 0;
    bool stop_ = false;
};

// Tasks of all phases are numbered through and taken in that order. Whoever has one of a later phase waits until all of
// the earlier ones are done, which others are at work on. With a region for each phase instead, a busy machine makes
// every one of them wait for a thread that sleeps, and a token takes 4 L + 3 regions.
struct Phases {
    int64_t count;
    int64_t (*size)(void*, int64_t);
    void (*task)(void*, int64_t, int64_t);
    void* context;
    alignas(64) std::atomic<int64_t> next{0};
    alignas(64) std::atomic<int64_t> done{0};
    std::atomic<bool> failed{false};

    void work() {
        int64_t phase = 0, first = 0, size_of_phase = count ? size(context, 0) : 0;
        while (!failed) {
            const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
            for (; i >= first + size_of_phase; size_of_phase = size(context, phase)) {
                first += size_of_phase;
                if (++phase >= count) return;
            }
            wait_for(first);
            if (failed) return;
            try {
                task(context, phase, i - first);
            } catch (...) {
                failed = true;
                throw;
            }
            done.fetch_add(1, std::memory_order_release);
        }
    }

    // Spins, but gives its turn away now and then in case there are more threads than cores.
    void wait_for(int64_t tasks) const {
        for (int spins = 1; done.load(std::memory_order_acquire) < tasks && !failed; ++spins)
            if (spins % 1024 == 0) std::this_thread::yield();
    }
};

struct Buffer {
    static constexpr std::align_val_t kAlign{64};
    float* data = nullptr;
    int64_t size = 0;

    ~Buffer() { ::operator delete(data, kAlign); }
    float* at_least(int64_t floats) {
        if (floats > size) {
            ::operator delete(data, kAlign);
            data = nullptr;
            size = 0;
            data = static_cast<float*>(::operator new(static_cast<size_t>(floats) * sizeof(float), kAlign));
            size = floats;
        }
        return data;
    }
};

}  // namespace

void parallel_run(int64_t n, int threads, void (*task)(void*, int64_t), void* context) {
    Job job{n, task, context, {}, {}, {}};
    if (threads > n) threads = static_cast<int>(n);
    static gomp_parallel_t* const openmp = find_openmp();
    if (threads <= 1) {
        job.work();
    } else if (openmp) {
        openmp([](void* data) { static_cast<Job*>(data)->work(); }, &job, static_cast<unsigned>(threads), 0);
    } else {
        static Pool pool;
        pool.run(job, threads - 1);
    }
    if (job.failed) std::rethrow_exception(job.failure);
}

void parallel_run_phases(int64_t phases, int threads, int64_t (*size)(void*, int64_t),
                         void (*task)(void*, int64_t, int64_t), void* context) {
    Phases all{phases, size, task, context};
    // Work is taken by whoever comes first; a thread that is late or missing finds less or none.
    parallel_run(threads, threads, [](void* p, int64_t) { static_cast<Phases*>(p)->work(); }, &all);
}

float* scratch(Slot slot, int64_t floats) {
    static thread_local Buffer buffers[2];
    return buffers[static_cast<int>(slot)].at_least(floats);
}

}  // namespace gpt2c
