// Fibres and their scheduler: blocks run one after another, a block's threads in turns, each until it waits.
#include <link.h>
#include <sys/mman.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>
#include <set>

#include "internal.h"

// switch_stack(&mine, other) saves this stack and goes on with the other one.
#ifdef __x86_64__
extern "C" void emulator_switch_stack(void** save, void* to);
asm(R"(
.text
.globl emulator_switch_stack
.hidden emulator_switch_stack
.type emulator_switch_stack,@function
emulator_switch_stack:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
#endif

extern const char __ehdr_start __attribute__((visibility("hidden")));

namespace emulator {

Position position;
Fibre* running = nullptr;
Clock clock_;

namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kMostThreads = 1024, kMostSharedBytes = 227 << 10;

std::vector<Fibre*> pool;  // kept from launch to launch
std::vector<Fibre*> block;
Order order = Order::shuffled;
uint64_t random_state = 1;
std::string error;
std::string skipped;
std::set<std::string> reached;
std::map<const void*, size_t> shared_limits;

unsigned char* shared_memory = nullptr;  // dynamic
size_t shared_size = 0;
std::pair<unsigned char*, size_t> static_shared{nullptr, 0};

void (*kernel_call)(const void*);
const void* kernel_closure;

uint64_t random_below(uint64_t n) {  // xorshift64 (Marsaglia, "Xorshift RNGs", 2003)
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % n;
}

void fibre_main() {
    kernel_call(kernel_closure);
    bool copying = !running->open_copies.empty();
    for (const auto& group : running->copy_groups) copying = copying || !group.empty();
    if (copying) fail("a thread ends with a cp.async under way");
    wait(State::done, {});
    __builtin_unreachable();
}

#ifdef __x86_64__
void* host_stack_pointer = nullptr;
void enter(Fibre* fibre) { emulator_switch_stack(&host_stack_pointer, fibre->stack_pointer); }
void leave(Fibre* fibre) { emulator_switch_stack(&fibre->stack_pointer, host_stack_pointer); }
void prepare(Fibre* fibre) {
    // Stacks that begin at different offsets do not compete for the same lines of the first-level cache.
    auto** top = reinterpret_cast<void**>(static_cast<char*>(fibre->stack) + kStackBytes - fibre->thread * 320 % 16384);
    *--top = nullptr;  // a return address's place: the stack is aligned as after a call
    *--top = reinterpret_cast<void*>(&fibre_main);
    fibre->stack_pointer = top - 6;
}
#else
ucontext_t host_context;
std::map<Fibre*, ucontext_t> contexts;
void* host_stack_pointer = nullptr;
void enter(Fibre* fibre) {
    host_stack_pointer = __builtin_frame_address(0);
    swapcontext(&host_context, &contexts[fibre]);
}
void leave(Fibre* fibre) { swapcontext(&contexts[fibre], &host_context); }
void prepare(Fibre* fibre) {
    ucontext_t& context = contexts[fibre];
    getcontext(&context);
    context.uc_stack.ss_sp = fibre->stack;
    context.uc_stack.ss_size = kStackBytes;
    makecontext(&context, &fibre_main, 0);
}
#endif

void* map_memory(size_t size) {
    return mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

// The program's thread-local segment of this thread, which is where kernels keep static shared memory.
int find_thread_locals(dl_phdr_info* info, size_t, void*) {
    if (*info->dlpi_name) return 0;  // not the program itself
    for (int i = 0; i < info->dlpi_phnum; ++i)
        if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data)
            static_shared = {static_cast<unsigned char*>(info->dlpi_tls_data), info->dlpi_phdr[i].p_memsz};
    return 1;
}

void start_block() {
    clock_.block_start = ++clock_.now;
    std::memset(clock_.warp, 0, sizeof clock_.warp);
    // Garbage that shows: not-a-numbers.
    std::memset(shared_memory, 0xff, shared_size);
    if (static_shared.second) std::memset(static_shared.first, 0xff, static_shared.second);
    for (Fibre* fibre : block) {
        fibre->state = State::ready;
        fibre->open_copies.clear();
        fibre->copy_groups.clear();
        prepare(fibre);
    }
}

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

void run_block() {
    start_block();
    std::vector<Fibre*> ready = block;
    size_t alive = block.size(), at_barrier = 0;
    while (alive && !failed()) {
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
    }
}

const char* problem_of_launch(const void* kernel, dim3 grid, size_t threads, size_t shared) {
    if (!threads || threads > kMostThreads || grid.x >> 31 || grid.y > 65535 || grid.z > 65535)
        return "invalid configuration";
    if (threads % kLanes) return "the emulator needs whole warps: a block size that is a multiple of 32";
    const auto limit = shared_limits.find(kernel);
    if (shared > (limit == shared_limits.end() ? 48 << 10 : limit->second))
        return "more dynamic shared memory than the kernel may have (cudaFuncSetAttribute)";
    return nullptr;
}

void prepare_launch(size_t threads, dim3 grid, dim3 threads_of_block, size_t shared) {
    while (pool.size() < threads) {
        auto* fibre = new Fibre;
        fibre->thread = static_cast<unsigned>(pool.size());
        fibre->stack = map_memory(kStackBytes);
        mprotect(fibre->stack, 4096, PROT_NONE);  // an overflow is seen
        pool.push_back(fibre);
    }
    block.assign(pool.begin(), pool.begin() + static_cast<ptrdiff_t>(threads));
    position.block_size = threads_of_block;
    position.grid_size = grid;
    if (!shared_memory) shared_memory = static_cast<unsigned char*>(map_memory(kMostSharedBytes));
    shared_size = shared;
    dl_iterate_phdr(find_thread_locals, nullptr);
    remove_shared();
    if (shared) add_shared(shared_memory, shared, "dynamic shared memory");
    if (static_shared.second) add_shared(static_shared.first, static_shared.second, "static shared memory");
    clock_.launch_start = ++clock_.now;
}

}  // namespace

bool Fibre::owns(const void* p) const {
    return reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(stack) < kStackBytes;
}

uintptr_t host_stack() { return reinterpret_cast<uintptr_t>(host_stack_pointer); }

void fail(const char* format, ...) {
    if (error.empty()) {
        char text[2000];
        va_list values;
        va_start(values, format);
        std::vsnprintf(text, sizeof text, format, values);
        va_end(values);
        error = text;
        const uint3 b = position.block;
        error += " [block " + std::to_string(b.x) + "," + std::to_string(b.y) + "," + std::to_string(b.z);
        error += running ? ", thread " + std::to_string(running->thread) + "]" : "]";
    }
    if (running) leave(running);  // for good
}

bool failed() { return !error.empty(); }

void wait(State state, Site site) {
    running->state = state;
    running->site = site;
    leave(running);
}

bool is_skipped(Site site) {
    const std::string name = site.name();
    reached.insert(name);
    return name == skipped;
}

bool Site::operator==(const Site& other) const {
    return line == other.line && (file == other.file || !std::strcmp(file, other.file));
}

std::string Site::name() const {
    const char* slash = std::strrchr(file, '/');
    return std::string(slash ? slash + 1 : file) + ":" + std::to_string(line);
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

unsigned char* dynamic_shared() { return shared_memory; }

void configure(Order new_order, uint64_t seed) {
    order = new_order;
    random_state = seed * 0x9E3779B97F4A7C15ull + 1;
}

void skip_site(const std::string& name) { skipped = name; }

std::string reached_sites() {
    std::string all;
    for (const std::string& name : reached) all += name + "\n";
    return all;
}

cudaError_t launch(const void* kernel, dim3 grid, dim3 size, size_t shared, void (*call)(const void*),
                   const void* closure) {
    error.clear();
    const size_t threads = size_t{size.x} * size.y * size.z;
    if (const char* problem = problem_of_launch(kernel, grid, threads, shared)) {
        error = problem;
        return cudaErrorInvalidConfiguration;
    }
    prepare_launch(threads, grid, size, shared);
    kernel_call = call;
    kernel_closure = closure;
    std::vector<size_t> blocks(size_t{grid.x} * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), size_t{0});
    if (order == Order::reversed) std::reverse(blocks.begin(), blocks.end());
    if (order == Order::shuffled)
        for (size_t i = blocks.size(); i > 1; --i) std::swap(blocks[i - 1], blocks[random_below(i)]);
    for (const size_t i : blocks) {
        position.block = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                          static_cast<unsigned>(i / grid.x / grid.y)};
        run_block();
        if (failed()) return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}

}  // namespace emulator

// The part of the CUDA runtime that csrc/cuda calls on the host.
extern "C" {
const char* cudaGetErrorString(cudaError_t) { return emulator::error.c_str(); }
cudaError_t cudaMemsetAsync(void* p, int value, size_t size, cudaStream_t) {
    std::memset(p, value, size);
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
// A GPU with everything that kernels ask for (compute capability 9.0).
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    if (attribute != cudaDevAttrComputeCapabilityMajor) return cudaErrorInvalidValue;
    *value = 9;
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value > static_cast<int>(emulator::kMostSharedBytes)) {
        emulator::error = "more shared memory than a block can have on any GPU";
        return cudaErrorInvalidValue;
    }
    emulator::shared_limits[kernel] = static_cast<size_t>(value);
    return cudaSuccess;
}
}
