// What kernel_server.cpp is linked with: the kernels of one kind of backend, and memory for their arguments.
#pragma once

#include <cstddef>

#include "kernels.h"

// Null if this machine cannot run it, or for an unknown name.
const gpt2c::Kernels* find_backend(const char* name);

void* allocate_buffer(size_t size);
void free_buffer(void* buffer);
