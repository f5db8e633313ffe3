// The scheduler of a block: its threads in turns, each until it waits.
#include <cstring>

#include "internal.h"

namespace emulator {

Position position;
Fibre* running = nullptr;
Clock clock_;

namespace {

std::vector<Fibre*> block;
Order order = Order::shuffled;
uint64_t random_state = 1;

void tell_deadlock() {
    const Fibre *at_barrier = nullptr, *in_warp = nullptr;
    size_t waiting = 0;
    for (const Fibre* fibre : block) {
        if (fibre->state == State::at_barrier) at_barrier = fibre, ++waiting;
        if (fibre->state == State::in_warp) in_warp = fibre;
    }
    if (in_warp && at_barrier)
        fail("deadlock: thread %u waits at the barrier %s, thread %u in the warp's exchange %s (mask %08x)",
             at_barrier->thread, at_barrier->site.name().c_str(), in_warp->thread, in_warp->site.name().c_str(),
             in_warp->request.mask);
    else if (at_barrier)
        fail("deadlock: %zu of %zu threads wait at the barrier %s, the others have ended", waiting, block.size(),
             at_barrier->site.name().c_str());
    else
        fail("deadlock: thread %u waits in the warp's exchange %s (mask %08x) for a lane that has ended",
             in_warp->thread, in_warp->site.name().c_str(), in_warp->request.mask);
}

// All threads are at a barrier: the same one?
void pass_barrier(std::vector<Fibre*>& ready) {
    for (const Fibre* fibre : block)
        if (!(fibre->site == block[0]->site)) {
            fail("divergent barriers: thread %u is at %s, thread %u at %s", block[0]->thread,
                 block[0]->site.name().c_str(), fibre->thread, fibre->site.name().c_str());
            return;
        }
    end_all_accesses();
    ++clock_.now;
    std::memset(clock_.warp, 0, sizeof clock_.warp);
    ready = block;
}

// A lane has come to an exchange: done if the whole mask is there.
void try_exchange(Fibre* fibre, std::vector<Fibre*>& ready) {
    const unsigned first = fibre->warp() * kLanes;
    Fibre* lanes[kLanes] = {};
    for (unsigned i = 0; i < kLanes; ++i) {
        if (!(fibre->request.mask >> i & 1)) continue;
        lanes[i] = block[first + i];
        if (lanes[i]->state != State::in_warp) return;
    }
    for (const Fibre* lane : lanes)
        if (lane && (!(lane->site == fibre->site) || lane->request.kind != fibre->request.kind ||
                     lane->request.mask != fibre->request.mask || lane->request.width != fibre->request.width)) {
            fail("divergent exchange of a warp: thread %u at %s with mask %08x, thread %u at %s with mask %08x",
                 fibre->thread, fibre->site.name().c_str(), fibre->request.mask, lane->thread,
                 lane->site.name().c_str(), lane->request.mask);
            return;
        }
    if (fibre->request.mask == 0xffffffffu) end_warp_accesses(fibre->warp());
    complete_exchange(lanes);
    for (Fibre* lane : lanes)
        if (lane) {
            lane->state = State::ready;
            ready.push_back(lane);
        }
}

Fibre* take(std::vector<Fibre*>& ready) {
    const size_t i = order == Order::forward    ? 0
                     : order == Order::reversed ? ready.size() - 1
                                                : random_below(ready.size());
    Fibre* fibre = ready[i];
    if (order == Order::shuffled) {
        ready[i] = ready.back();
        ready.pop_back();
    } else {
        ready.erase(ready.begin() + static_cast<ptrdiff_t>(i));
    }
    return fibre;
}

void start_block(void (*start)()) {
    clock_.block_start = ++clock_.now;
    std::memset(clock_.warp, 0, sizeof clock_.warp);
    for (Fibre* fibre : block) {
        fibre->state = State::ready;
        fibre->open_copies.clear();
        fibre->copy_groups.clear();
        prepare(fibre, start);
    }
}

}  // namespace

uint64_t random_below(uint64_t n) {  // xorshift64 (Marsaglia, "Xorshift RNGs", 2003)
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % n;
}

Order current_order() { return order; }

void run_block(const std::vector<Fibre*>& threads, void (*start)()) {
    block = threads;
    start_block(start);
    std::vector<Fibre*> ready = block;
    size_t alive = block.size(), at_barrier = 0;
    while (alive) {
        if (ready.empty()) return tell_deadlock();
        Fibre* fibre = take(ready);
        const dim3& size = position.block_size;
        position.thread = {fibre->thread % size.x, fibre->thread / size.x % size.y, fibre->thread / (size.x * size.y)};
        running = fibre;
        enter(fibre);
        running = nullptr;
        if (failed()) return;
        if (fibre->state == State::done) --alive;
        if (fibre->state == State::in_warp) try_exchange(fibre, ready);
        if (fibre->state == State::at_barrier && ++at_barrier == block.size()) {
            at_barrier = 0;
            pass_barrier(ready);
        }
        if (failed()) return;
    }
    end_all_accesses();
}

void wait(State state, Site site) {
    if (time_is_up && site.file) fail_for_time(site.name());
    running->state = state;
    running->site = site;
    leave(running);
}

void block_barrier(Site site) {
    if (!is_skipped(site)) wait(State::at_barrier, site);
}

uint64_t warp_exchange(const Request& request, Site site) {
    if (request.kind == Exchange::sync && is_skipped(site)) return 0;
    if (!(request.mask >> running->lane() & 1))
        fail("exchange of a warp at %s: the calling lane is not in its mask %08x", site.name().c_str(), request.mask);
    running->request = request;
    wait(State::in_warp, site);
    return running->result;
}

void configure(Order new_order, uint64_t seed) {
    order = new_order;
    random_state = seed * 0x9E3779B97F4A7C15ull + 1;
}

}  // namespace emulator
