# The CUDA kernels of the Python module _ext: whether they are built, for which GPUs, with which flags. One line says so.
set(GPT2C_CUDA AUTO CACHE STRING "CUDA kernels: AUTO builds them if there is an nvcc, ON insists on it, OFF does not")
set_property(CACHE GPT2C_CUDA PROPERTY STRINGS AUTO ON OFF)
set(GPT2C_CUDA_ARCHITECTURES "" CACHE STRING
    "As CMake's CUDA_ARCHITECTURES, e.g. 80;90; empty: those of this machine's GPUs, without one all that are common")
set(oldest_cuda 12.0)

# Sets `result` to the architectures of this machine's GPUs if gpt2c has code for all of them, else to all it has code
# for. Real code, and PTX of the newest, which the driver compiles for GPUs to come.
function(gpt2c_default_architectures result)
  set(known 75 80 86 89 90)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND known 100 120)
  endif()
  # A process that cannot be started leaves the output empty: no driver, no GPU.
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader OUTPUT_VARIABLE here ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" here "${here}")
  list(TRANSFORM here REPLACE "\\." "")
  list(REMOVE_DUPLICATES here)
  set(foreign ${here})
  list(REMOVE_ITEM foreign ${known})
  if(here AND NOT foreign)
    list(SORT here COMPARE NATURAL)
    set(known ${here})
  endif()
  list(POP_BACK known newest)
  list(TRANSFORM known APPEND -real)
  set(${result} ${known} ${newest} PARENT_SCOPE)
endfunction()

# Sets `result` to what is built for. Never PTX of sm_75: newer GPUs are given kernels that such code does not have (bf16
# on tensor cores, see needs_sm80 in ptx.cuh); without it they report that there is no code for them.
function(gpt2c_architectures result)
  set(architectures ${GPT2C_CUDA_ARCHITECTURES})
  if(NOT architectures)
    gpt2c_default_architectures(architectures)
  endif()
  list(TRANSFORM architectures REPLACE "^75(-virtual)?$" "75-real")
  set(${result} ${architectures} PARENT_SCOPE)
endfunction()

function(gpt2c_build_cuda)
  gpt2c_architectures(architectures)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  file(GLOB sources CONFIGURE_DEPENDS ${here}/*.cu)
  set_source_files_properties(${here}/context.cpp PROPERTIES LANGUAGE CUDA)  # nvcc knows where its headers are
  add_library(gpt2c_cuda OBJECT ${sources} ${here}/context.cpp ${here}/table.cpp)
  set_target_properties(gpt2c_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden
                        CUDA_ARCHITECTURES "${architectures}")
  target_include_directories(gpt2c_cuda PRIVATE ${here}/..)
  target_compile_options(gpt2c_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>
                         $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
  list(JOIN architectures " " architectures)
  target_compile_definitions(gpt2c_cuda PRIVATE GPT2C_CUDA_BUILD="${CMAKE_CUDA_COMPILER_VERSION} for ${architectures}")
  target_link_libraries(_ext PRIVATE gpt2c_cuda)
  # cudart is linked in, so that the module loads where there is no CUDA; and its names are kept in, or the loader would
  # take those of the libcudart that torch has brought along, of whatever version that is.
  set_target_properties(_ext PROPERTIES CUDA_RUNTIME_LIBRARY Static)
  target_link_options(_ext PRIVATE LINKER:--exclude-libs,ALL)
  target_compile_definitions(_ext PRIVATE GPT2C_CUDA)
  message(STATUS "gpt2c: nvcc ${CMAKE_CUDA_COMPILER_VERSION} found, CUDA kernels are built for ${architectures}")
endfunction()

if(GPT2C_CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)  # there may be one since the last time
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(problem "no working nvcc was found (PATH, CUDACXX)")
  else()
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS oldest_cuda)
      set(problem "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old, expected ${oldest_cuda} or newer")
    endif()
  endif()
  if(NOT problem)
    gpt2c_build_cuda()
  elseif(GPT2C_CUDA STREQUAL "AUTO")
    message(STATUS "gpt2c: ${problem}, only CPU kernels are built")
  else()
    message(FATAL_ERROR "gpt2c: GPT2C_CUDA=${GPT2C_CUDA}, but ${problem}")
  endif()
else()
  message(STATUS "gpt2c: GPT2C_CUDA=OFF, only CPU kernels are built")
endif()
