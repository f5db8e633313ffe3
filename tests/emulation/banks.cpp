// Bank conflicts of shared memory: 32 banks of 4 bytes. A warp's lanes run one after another here, so that the accesses
// of one instruction (a warp access) are put together by its address in the program and by how often each lane has
// come to it since its warp's last barrier or exchange.
//
// A warp access is served 128 bytes at a time: all lanes for 4 bytes each, half of the lanes for 8, a quarter for 16;
// each part takes as many cycles as the bank with the most different words has of them.
#include <algorithm>
#include <map>
#include <unordered_map>
#include <vector>

#include "internal.h"

namespace emulator {
namespace {

constexpr unsigned kBanks = 32, kBankBytes = 4;

struct WarpAccess {
    uintptr_t at[kLanes];  // 0: the lane takes no part
    size_t size;
};

// All that a warp's lanes have done at one instruction.
struct Instruction {
    unsigned times[kLanes] = {};
    std::vector<WarpAccess> accesses;
};

struct Count {
    uint64_t accesses = 0, conflicts = 0;
};

bool counting = false;
std::unordered_map<uint32_t, Instruction> warps[32];
std::map<std::pair<const Kernel*, uint32_t>, Count> counts;  // by instruction

unsigned cycles(const WarpAccess& access, unsigned first, unsigned last) {
    std::vector<uintptr_t> words;
    for (unsigned lane = first; lane < last; ++lane)
        if (access.at[lane])
            for (size_t byte = 0; byte < access.size; byte += kBankBytes)
                words.push_back((access.at[lane] + byte) / kBankBytes);
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    unsigned in_bank[kBanks] = {}, most = 0;
    for (const uintptr_t word : words) most = std::max(most, ++in_bank[word % kBanks]);
    return most;
}

unsigned conflicts(const WarpAccess& access) {
    const unsigned lanes =
        access.size <= kBankBytes ? kLanes : static_cast<unsigned>(kLanes * kBankBytes / access.size);
    unsigned sum = 0;
    for (unsigned first = 0; first < kLanes; first += lanes)
        sum += std::max(cycles(access, first, first + lanes), 1u) - 1;
    return sum;
}

}  // namespace

void count_conflicts() { counting = true; }

void count_banks(const void* p, size_t size, const void* pc) {
    if (!counting || !running || !is_shared(p)) return;
    Instruction& instruction = warps[running->warp()][relative(pc)];
    const unsigned time = instruction.times[running->lane()]++;
    if (time == instruction.accesses.size()) instruction.accesses.push_back({{}, size});
    instruction.accesses[time].at[running->lane()] = reinterpret_cast<uintptr_t>(p);
}

void end_warp_accesses(unsigned warp) {
    if (!counting) return;
    for (const auto& [pc, instruction] : warps[warp]) {
        Count& count = counts[{kernel, pc}];
        count.accesses += instruction.accesses.size();
        for (const WarpAccess& access : instruction.accesses) count.conflicts += conflicts(access);
    }
    warps[warp].clear();
}

void end_all_accesses() {
    for (unsigned warp = 0; warp < 32; ++warp) end_warp_accesses(warp);
}

std::string conflict_counts() {
    std::vector<uint32_t> pcs;
    for (const auto& [place, count] : counts) pcs.push_back(place.second);
    resolve(pcs);
    std::map<std::pair<std::string, std::string>, Count> lines;
    for (const auto& [place, count] : counts) {
        Count& line = lines[{place.first->name, source_line(place.second)}];
        line.accesses += count.accesses;
        line.conflicts += count.conflicts;
    }
    std::string text;
    for (const auto& [place, count] : lines)
        text += place.first + "\t" + place.second + "\t" + std::to_string(count.accesses) + "\t" +
                std::to_string(count.conflicts) + "\n";
    counts.clear();
    return text;
}

}  // namespace emulator
