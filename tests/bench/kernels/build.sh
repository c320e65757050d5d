#!/bin/bash
# Builds kernel_bench with nvcc alone, for a GPU machine without Bazel: Abseil
# and libstdc++ are linked statically, cuBLASLt stays dynamic.
# usage: tests/bench/kernels/build.sh OUTPUT   (from the repository's root)
set -euo pipefail
output=$1
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
flags=(-std=c++17 -O3 -I. -ccbin gcc -Xcompiler -fPIC -lineinfo
       --expt-relaxed-constexpr --expt-extended-lambda
       -gencode arch=compute_90a,code=sm_90a -DSWITCHYARD_CUDA=1)
cache=${KERNEL_BENCH_CACHE:-$objects}
mkdir -p "$cache"
link=()
for source in kernels/*_cuda.cu kernels/dtype.cc tests/bench/kernels/*.cu \
              tests/bench/kernels/*.cc; do
  object=$cache/$(echo "$source" | tr '/.' '__').o
  link+=("$object")
  if [[ ! -e $object || $source -nt $object || -n $(find kernels \
        tests/bench/kernels -name '*.h' -newer "$object" -print -quit) ]]; then
    echo "$source"
    nvcc "${flags[@]}" -c "$source" -o "$object"
  fi
done
absl=$(pkg-config --static --libs-only-l absl_status absl_statusor absl_strings |
  tr ' ' '\n' | sed -n 's/^-l\(absl_.*\)/-l:lib\1.a/p' | sort -u)
cuda=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")
g++ -o "$output" "${link[@]}" -L"$cuda/lib64" -static-libstdc++ -static-libgcc \
  -Wl,--start-group $absl -Wl,--end-group \
  -lcudart_static -lcublasLt -lpthread -lrt -ldl
