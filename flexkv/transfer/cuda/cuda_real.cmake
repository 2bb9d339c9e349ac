# libflexkv_cuda.so: the real cuda::Api. CUDA's runtime and libstdc++ are inside; it exports one symbol and needs libc
# only, also no driver to be loaded.
add_library(flexkv_cuda SHARED cuda_real.cc copy_kernel.cu)
set_target_properties(flexkv_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON LINK_DEPENDS
  ${CMAKE_CURRENT_SOURCE_DIR}/cuda_library.map)
target_link_libraries(flexkv_cuda PRIVATE flexkv_cuda_flags Threads::Threads)
target_compile_options(flexkv_cuda PRIVATE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Werror;-Wshadow;-Wnon-virtual-dtor;-Wno-missing-field-initializers;-march=x86-64-v2>")
target_link_options(flexkv_cuda PRIVATE -static-libgcc -static-libstdc++ -Wl,--exclude-libs,ALL
  -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/cuda_library.map -Wl,-z,defs)

# Beside the extension module, where cuda_library.cc looks for it.
install(TARGETS flexkv_cuda LIBRARY DESTINATION flexkv COMPONENT python)
