// A launch that takes too much processor time is ended. A timer's signal raises a flag, which the next access or wait
// of a thread sees; a loop without either is ended by the next signal itself.
#include <signal.h>
#include <sys/time.h>
#include <ucontext.h>

#include "internal.h"

namespace emulator {

volatile bool time_is_up = false;

namespace {

constexpr int kInterval = 200000;  // microseconds from the flag to the signal that does not wait
int limit_seconds = 30;

void set_timer(int seconds, int microseconds) {
    const itimerval timer{{0, seconds || microseconds ? kInterval : 0}, {seconds, microseconds}};
    setitimer(ITIMER_PROF, &timer, nullptr);
}

const void* interrupted_at([[maybe_unused]] void* context) {
#if defined(__x86_64__)
    return reinterpret_cast<const void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#elif defined(__aarch64__)
    return reinterpret_cast<const void*>(static_cast<ucontext_t*>(context)->uc_mcontext.pc);
#else
    return nullptr;
#endif
}

void on_timer(int, siginfo_t*, void* context) {
    if (!time_is_up) {
        time_is_up = true;
    } else if (running && running->owns(context)) {  // and is not just being entered or left
        const void* pc = interrupted_at(context);
        fail_for_time(pc ? source_line(relative(pc) + 1) : "a loop without accesses");
    }
}

}  // namespace

void start_time_limit() {
    struct sigaction action{};
    action.sa_sigaction = on_timer;
    // The handler may leave the fibre for good: the signal must not stay blocked.
    action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
    sigaction(SIGPROF, &action, nullptr);
    time_is_up = false;
    set_timer(limit_seconds, 0);
}

void end_time_limit() { set_timer(0, 0); }

void fail_for_time(const std::string& where) {
    end_time_limit();
    fail("time limit: the launch has not ended after %d s of processor time, one thread is at %s", limit_seconds,
         where.c_str());
}

void set_time_limit(int seconds) { limit_seconds = seconds; }

}  // namespace emulator
