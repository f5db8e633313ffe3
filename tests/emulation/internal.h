// What the emulator's parts know of each other.
#pragma once

#include <deque>
#include <vector>

#include "emulator.h"

namespace emulator {

constexpr unsigned kLanes = 32;

struct Copy {
    unsigned char* to;
    const unsigned char* from;  // null: zeros
};

enum class State { ready, at_barrier, in_warp, done };

// One CUDA thread.
struct Fibre {
    void* stack = nullptr;
    void* stack_pointer = nullptr;
    unsigned thread = 0;
    State state = State::ready;
    Site site;  // where it waits
    Request request{};
    uint64_t result = 0;
    std::vector<Copy> open_copies;
    std::deque<std::vector<Copy>> copy_groups;

    unsigned warp() const { return thread / kLanes; }
    unsigned lane() const { return thread % kLanes; }
    bool owns(const void* p) const;
};

extern Fibre* running;  // null on the host's side

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

// Hands the processor to the scheduler until the fibre is taken again.
void wait(State state, Site site);
bool is_skipped(Site site);
uintptr_t host_stack();  // while a kernel runs

// All lanes of a warp's exchange have come: gives each its result (warp.cpp). lanes[i] is null if i is not in the mask.
void complete_exchange(Fibre* const (&lanes)[kLanes]);

// ---- checker.cpp
enum class Access { read, write };
void check_access(const void* p, size_t size, Access access, const void* pc);
void check_shared16(const void* p, const char* what, Site site);
void set_copy_pending(const void* p, bool pending);
void add_shared(void* p, size_t size, const char* name);
void remove_shared();

}  // namespace emulator
