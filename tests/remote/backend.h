// What kernel_server.cpp is linked with: the kernels of one kind of backend, and memory for their arguments.
#pragma once

#include <cstddef>
#include <string>

#include "kernels.h"

// Null if this machine cannot run it, or for an unknown name.
const gpt2c::Kernels* find_backend(const char* name);

// What a backend can do beyond kernels.h, by name: works on the tensors of the request. Null for an unknown name.
struct Buffer {
    char* data;
    size_t size;
};
using Extra = int64_t(const Buffer* tensors);
Extra* find_extra(const std::string& name);

void* allocate_buffer(size_t size);
void free_buffer(void* buffer);
