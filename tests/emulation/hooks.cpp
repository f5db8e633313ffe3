// How a kernel's loads and stores come to the checker.
#include "internal.h"

namespace emulator {
namespace {

void access(const void* p, size_t size, Access kind, const void* pc) {
    check_access(p, size, kind, pc);
    count_banks(p, size, pc);
}

}  // namespace

// g++ may split these accesses into smaller ones before it instruments them: here they are checked whole.
__attribute__((noinline)) uint4 load16(const void* p) {
    access(p, 16, Access::read, __builtin_return_address(0));
    return *static_cast<const uint4*>(p);
}

__attribute__((noinline)) void store16(void* p, uint4 value) {
    access(p, 16, Access::write, __builtin_return_address(0));
    *static_cast<uint4*>(p) = value;
}

__attribute__((noinline)) void store8(void* p, uint2 value) {
    access(p, 8, Access::write, __builtin_return_address(0));
    *static_cast<uint2*>(p) = value;
}

}  // namespace emulator

// What -fsanitize=thread calls before each access.
extern "C" {
#define EMULATOR_HOOK(name, size, kind) \
    void name(void* p) { emulator::access(p, size, emulator::Access::kind, __builtin_return_address(0)); }
#define EMULATOR_HOOKS(size)                               \
    EMULATOR_HOOK(__tsan_read##size, size, read)           \
    EMULATOR_HOOK(__tsan_write##size, size, write)         \
    EMULATOR_HOOK(__tsan_unaligned_read##size, size, read) \
    EMULATOR_HOOK(__tsan_unaligned_write##size, size, write)
EMULATOR_HOOKS(1)
EMULATOR_HOOKS(2)
EMULATOR_HOOKS(4)
EMULATOR_HOOKS(8)
EMULATOR_HOOKS(16)
void __tsan_read_range(void* p, size_t size) {
    emulator::check_access(p, size, emulator::Access::read, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t size) {
    emulator::check_access(p, size, emulator::Access::write, __builtin_return_address(0));
}
void __tsan_init() {}
}
