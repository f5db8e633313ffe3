// cp.async: the copy happens when its thread waits for it; until then its destination is garbage that may not be
// touched, and after that only the thread itself may, until a barrier.
#include <cstring>

#include "internal.h"

namespace emulator {

__attribute__((noinline)) void cp_async(void* shared, const void* global, bool valid, Site site) {
    const void* pc = __builtin_return_address(0);
    check_shared16(shared, "cp.async", site);
    check_access(shared, 16, Access::write, pc);
    count_banks(shared, 16, pc);
    if (valid) check_access(global, 16, Access::read, pc);
    std::memset(shared, 0xff, 16);
    set_copy_pending(shared, true);
    running->open_copies.push_back(
        {static_cast<unsigned char*>(shared), valid ? static_cast<const unsigned char*>(global) : nullptr});
}

void cp_async_commit() {
    running->copy_groups.push_back(std::move(running->open_copies));
    running->open_copies.clear();
}

__attribute__((noinline)) void cp_async_wait(int keep, Site site) {
    // Before sm_80 copies are stores (ptx.cuh): there is nothing to wait for, and nothing to leave out.
    if (gpu().capability < 80 || is_skipped(site)) return;
    while (running->copy_groups.size() > static_cast<size_t>(keep)) {
        for (const Copy& copy : running->copy_groups.front()) {
            set_copy_pending(copy.to, false);
            check_access(copy.to, 16, Access::write, __builtin_return_address(0));
            copy.from ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
        }
        running->copy_groups.pop_front();
    }
}

}  // namespace emulator
