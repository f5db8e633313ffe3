// One fibre per CUDA thread: a stack of its own, and what the thread waits for.
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

// The fibres of threads 0 .. count - 1, which are kept from launch to launch.
std::vector<Fibre*> fibres(size_t count);
// Lets the fibre begin with `start` when it is next entered.
void prepare(Fibre* fibre, void (*start)());
// Runs the fibre until it leaves.
void enter(Fibre* fibre);
void leave(Fibre* fibre);
uintptr_t host_stack();  // while a fibre runs

void* map_memory(size_t size);

}  // namespace emulator
