// The access checker: every 2 bytes of memory that kernels may touch have a shadow that remembers the last write and
// the last reads, by whom and when.
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>

#include "internal.h"

namespace emulator {
namespace {

enum class Readers : uint8_t { one, several_of_a_warp, several_warps };

struct Shadow {
    uint32_t write_time, read_time;
    uint32_t write_pc, read_pc;
    uint16_t write_thread, read_thread;
    uint16_t write_warp_time, read_warp_time;
    Readers readers;  // since read_time
    bool read_by_earlier_block;
    bool copy_pending;
};

struct Region {
    uintptr_t start, end;
    std::string name;
    bool shared;
    std::vector<Shadow> shadows;
};

std::map<uintptr_t, Region> regions;  // by end
Region* last_found = nullptr;
std::vector<uintptr_t> shared_regions;

Region* find(uintptr_t address) {
    if (last_found && address >= last_found->start && address < last_found->end) return last_found;
    const auto it = regions.upper_bound(address);
    if (it == regions.end() || address < it->second.start) return nullptr;
    return last_found = &it->second;
}

void add_region(void* p, size_t size, const std::string& name, bool shared) {
    const auto start = reinterpret_cast<uintptr_t>(p);
    regions[start + size] = {start, start + size, name, shared, std::vector<Shadow>(size / 2 + 2)};
    last_found = nullptr;
}

std::string place(const Region& region, uintptr_t address) {
    return region.name + "+" + std::to_string(address - region.start);
}

void race(const Region& region, uintptr_t address, const char* what, uint32_t pc, uint32_t other_time, unsigned other,
          uint32_t other_pc) {
    fail("race on %s: %s at %s, the first by thread %u of %s at %s", place(region, address).c_str(), what,
         source_line(pc).c_str(), other,
         other_time < clock_.block_start ? "another block" : "this block with no barrier between",
         source_line(other_pc).c_str());
}

// Whether an access of the running thread is ordered after the last write, and after the last reads.
bool written_before(const Shadow& s, const Region& region) {
    if (s.write_time < clock_.launch_start) return true;
    if (s.write_time < clock_.block_start) return region.shared;  // shared memory is another block's own
    if (s.write_time < clock_.now || s.write_thread == running->thread) return true;
    const unsigned warp = running->warp();
    return s.write_thread / kLanes == warp && s.write_warp_time < clock_.warp[warp];
}

bool read_before(const Shadow& s, const Region& region) {
    if (s.read_time < clock_.launch_start) return true;
    if (!region.shared && (s.read_time < clock_.block_start || s.read_by_earlier_block)) return false;
    if (s.read_time < clock_.now) return true;
    const unsigned warp = running->warp();
    if (s.readers == Readers::several_warps || s.read_thread / kLanes != warp) return false;
    if (s.read_warp_time < clock_.warp[warp]) return true;
    return s.readers == Readers::one && s.read_thread == running->thread;
}

void note_read(Shadow& s, uint32_t pc) {
    const unsigned me = running->thread, warp = running->warp();
    if (s.read_time == clock_.now) {
        if (s.read_thread / kLanes != warp)
            s.readers = Readers::several_warps;
        else if (s.readers != Readers::several_warps)
            s.readers = s.read_warp_time < clock_.warp[warp]               ? Readers::one
                        : s.read_thread == me && s.readers == Readers::one ? Readers::one
                                                                           : Readers::several_of_a_warp;
    } else {
        s.read_by_earlier_block =
            s.read_time >= clock_.launch_start && (s.read_by_earlier_block || s.read_time < clock_.block_start);
        s.readers = Readers::one;
    }
    s.read_time = clock_.now;
    s.read_thread = static_cast<uint16_t>(me);
    s.read_warp_time = clock_.warp[warp];
    s.read_pc = pc;
}

void note_write(Shadow& s, uint32_t pc) {
    s.write_time = clock_.now;
    s.write_thread = static_cast<uint16_t>(running->thread);
    s.write_warp_time = clock_.warp[running->warp()];
    s.write_pc = pc;
}

void check_shadow(Shadow& s, const Region& region, uintptr_t address, Access access, uint32_t pc) {
    const bool write = access == Access::write;
    if (s.copy_pending)
        fail("%s of %s at %s while a cp.async into it is under way", write ? "write" : "read",
             place(region, address).c_str(), source_line(pc).c_str());
    if (!written_before(s, region))
        race(region, address, write ? "a second write" : "a read after a write", pc, s.write_time, s.write_thread,
             s.write_pc);
    if (!write) {
        if (region.shared && s.write_time < clock_.block_start)
            fail("read of uninitialised shared memory %s at %s", place(region, address).c_str(),
                 source_line(pc).c_str());
        note_read(s, pc);
        return;
    }
    if (!read_before(s, region))
        race(region, address, "a write after a read", pc, s.read_time, s.read_thread, s.read_pc);
    note_write(s, pc);
}

// The arguments of the launch, which the kernel reads on the host's stack above its last frame.
bool is_argument(uintptr_t address) { return address >= host_stack() && address < host_stack() + (1 << 16); }

}  // namespace

void check_access(const void* p, size_t size, Access access, const void* pc_) {
    if (!running) return;
    if (time_is_up) fail_for_time(source_line(relative(pc_)));
    if (running->owns(p)) return;
    const auto address = reinterpret_cast<uintptr_t>(p);
    if (address - reinterpret_cast<uintptr_t>(&position) < sizeof position) return;
    const char* what = access == Access::write ? "write" : "read";
    const uint32_t pc = relative(pc_);
    Region* region = find(address);
    if (!region) {
        if (access == Access::read && (is_argument(address) || is_program(address))) return;
        fail("out of bounds: %s of %zu bytes at %p, which is in no tensor, at %s", what, size, p,
             source_line(pc).c_str());
    }
    if (address + size > region->end)
        fail("out of bounds: %s of %zu bytes at %s of %zu, at %s", what, size, place(*region, address).c_str(),
             static_cast<size_t>(region->end - region->start), source_line(pc).c_str());
    if (size <= 16 && address % size)
        fail("misaligned: %s of %zu bytes at %s, at %s", what, size, place(*region, address).c_str(),
             source_line(pc).c_str());
    const size_t offset = address - region->start;
    for (size_t i = offset / 2; i < (offset + size + 1) / 2; ++i)
        check_shadow(region->shadows[i], *region, address, access, pc);
}

void check_shared16(const void* p, const char* what, Site site) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    const Region* region = find(address);
    if (!region || !region->shared) fail("%s at %s: %p is not in shared memory", what, site.name().c_str(), p);
    if (address % 16)
        fail("%s at %s: %s is not 16-byte aligned", what, site.name().c_str(), place(*region, address).c_str());
}

void set_copy_pending(const void* p, bool pending) {
    const auto address = reinterpret_cast<uintptr_t>(p);
    Region* region = find(address);
    for (size_t i = 0; i < 8; ++i) region->shadows[(address - region->start) / 2 + i].copy_pending = pending;
}

bool is_shared(const void* p) {
    const Region* region = find(reinterpret_cast<uintptr_t>(p));
    return region && region->shared;
}

void add_shared(void* p, size_t size, const std::string& name) {
    add_region(p, size, name, true);
    shared_regions.push_back(reinterpret_cast<uintptr_t>(p) + size);
}

void remove_shared() {
    for (const uintptr_t end : shared_regions) regions.erase(end);
    shared_regions.clear();
    last_found = nullptr;
}

constexpr size_t kRoom = 4096;  // before and after each allocation: an overrun meets no other

void* allocate(size_t size, const std::string& name) {
    auto* whole = static_cast<unsigned char*>(std::aligned_alloc(256, (size + 255) / 256 * 256 + 2 * kRoom));
    add_region(whole + kRoom, size, name, false);
    return whole + kRoom;
}

void deallocate(void* p) {
    const auto start = reinterpret_cast<uintptr_t>(p);
    for (auto it = regions.lower_bound(start); it != regions.end(); ++it)
        if (it->second.start == start) {
            regions.erase(it);
            break;
        }
    last_found = nullptr;
    std::free(static_cast<unsigned char*>(p) - kRoom);
}

}  // namespace emulator
