// How a kernel is declared. Each family header has, per kernel, an argument struct (raw pointers and sizes,
// its comment is the specification) and one function on a stream. kernels/kernels.def lists them all. From
// that list come
//   dispatch.cpp            name(stream, args): picks the back end by the stream's device
//   cpu/, cuda/             cpu::name(args), cuda::name(stream, args): the arithmetic
//   cuda_absent/            cuda::name that throws "built without CUDA", for a build without a toolkit
// To add a kernel: struct + declaration in a header, one line in kernels.def, a function in cpu/ and one in
// cuda/.
#pragma once

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/base/stream.h"

namespace levin::kernels {

// "acc" in the comments below is accumulator_of(dtype): f64 for f64, f32 for f32 and bf16.
// All matrices are row-major; a "stride" is the distance between rows in elements.

enum class Activation : int {
    none,
    silu,
    relu,
    leaky_relu,
    elu,
    one_plus_elu,
    two_plus_elu,
    gelu,
    sigmoid,
    exp,
    sine
};

}  // namespace levin::kernels
