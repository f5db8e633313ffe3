// What the program's symbol table and debug information say of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

// An address in the program's code, wherever it was loaded.
uint32_t relative(const void* pc);
// file:line of the call before `pc`, and those where its inlined functions are called, "a:1 in b:2 in c:3", by
// binutils' addr2line; else its offset in the program.
std::string source_line(uint32_t pc);
// Finds many at once.
void resolve(const std::vector<uint32_t>& pcs);
// Whether constants and tables of the program lie there.
bool is_program(uintptr_t address);

struct Variable {
    unsigned char* start;
    size_t size;
    std::string name;
};

struct Kernel {
    std::string name;              // without namespaces and parameters: "norm_kernel<float>"
    std::vector<Variable> shared;  // its __shared__ variables
};

// The kernel at this address. Only kernels themselves declare __shared__ variables.
const Kernel& find_kernel(const void* kernel);
// The names of all kernels that were looked for so far, one a line.
std::string found_kernels();

}  // namespace emulator
