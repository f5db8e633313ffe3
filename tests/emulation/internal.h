// What the emulator's parts know of each other.
#pragma once

#include "emulator.h"
#include "fibres.h"
#include "program.h"

namespace emulator {

extern Fibre* running;        // null on the host's side
extern const Kernel* kernel;  // of the current launch, or of the last

// Time, for the checker: two accesses of a block are ordered if a barrier lies between them, two of a warp also if a
// __syncwarp of all lanes does. All grow from launch to launch.
struct Clock {
    uint32_t now = 1;  // barriers
    uint32_t launch_start = 1, block_start = 1;
    uint16_t warp[32] = {};  // __syncwarps since the last barrier
};
extern Clock clock_;

// Ends the launch with a message; on a fibre it does not return.
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
bool failed();

// ---- scheduler.cpp
// Runs one block of `threads` to its end, or until something fails.
void run_block(const std::vector<Fibre*>& threads, void (*start)());
Order current_order();
uint64_t random_below(uint64_t n);  // also of the order of blocks
// Hands the processor to the scheduler until the fibre is taken again.
void wait(State state, Site site);

// All lanes of a warp's exchange have come: gives each its result (warp.cpp). lanes[i] is null if i is not in the mask.
void complete_exchange(Fibre* const (&lanes)[kLanes]);

// ---- launch_log.cpp
void log_launch(const void* kernel, size_t threads, size_t shared);

// ---- sites.cpp
bool is_skipped(Site site);

// ---- checker.cpp
enum class Access { read, write };
void check_access(const void* p, size_t size, Access access, const void* pc);
void check_shared16(const void* p, const char* what, Site site);
void set_copy_pending(const void* p, bool pending);
void add_shared(void* p, size_t size, const std::string& name);
void remove_shared();
bool is_shared(const void* p);

// ---- banks.cpp
// The running thread's access of shared memory, if conflicts are counted.
void count_banks(const void* p, size_t size, const void* pc);
// A warp has come to where its lanes meet: its accesses so far belong together.
void end_warp_accesses(unsigned warp);
void end_all_accesses();

// ---- time_limit.cpp
extern volatile bool time_is_up;
void start_time_limit();
void end_time_limit();
// Ends the launch at the place `where`.
void fail_for_time(const std::string& where);

}  // namespace emulator
