// decode_linear in several kernels of a back end: what the CPU does, and a GPU where the fused kernel does
// not fit. Included by back ends only.
#pragma once

#include <limits>

#include "kernels/backends.h"

namespace levin::kernels {

// `run` has embedding(EmbeddingForward), norm(SrmsNormForward), gated_norm(GatedSrmsNormForward), gemm(Gemm)
// and glu(GluForward).

// The first product of a step with its embedding made apart, in `to` [batch, width]: what is left to do.
template <class Run>
DecodeLinear embedded(DecodeLinear args, void* to, const Run& run) {
    run.embedding(EmbeddingForward{.tokens = args.batch,
                                   .vocab = std::numeric_limits<int64_t>::max(),  // ids are of the table
                                   .width = args.width,
                                   .dtype = args.dtype,
                                   .scale = args.scale,
                                   .ids = args.ids,
                                   .table = args.x,
                                   .y = to});
    args.x = to;
    args.h = nullptr;
    args.ids = nullptr;
    return args;
}

template <class Run>
void decode_linear_in_steps(DecodeLinear args, const Run& run) {
    char* memory = static_cast<char*>(args.workspace);
    const auto take = [&](int64_t bytes) {
        char* taken = memory;
        memory += (bytes + 255) / 256 * 256;
        return taken;
    };
    const auto element = static_cast<int64_t>(size_of(args.dtype));
    void* rstd = take(args.batch * 8);
    if (args.ids) args = embedded(args, args.h ? args.h : take(args.batch * args.width * element), run);
    const void* input = args.x;
    if (args.input != DecodeLinear::Input::plain) {
        void* normed = take(args.batch * args.width * element);
        if (args.input == DecodeLinear::Input::norm)
            run.norm(SrmsNormForward{args.batch, args.width, args.eps, args.dtype, input, args.width,
                                     args.branch, args.h, normed, rstd});
        else
            run.gated_norm(GatedSrmsNormForward{args.batch, args.width, args.eps, args.dtype, args.gate,
                                                args.x, args.u, args.u_stride, normed, rstd});
        input = normed;
    }
    const int64_t rows = args.glu ? 2 * args.outputs : args.outputs;
    void* product = args.glu ? take(args.batch * rows * element) : args.y;
    Gemm gemm;
    gemm.transpose_b = true;
    gemm.m = args.batch, gemm.n = rows, gemm.k = args.width;
    gemm.dtype = gemm.c_dtype = args.dtype;
    gemm.a = input, gemm.lda = args.width;
    gemm.b = args.weight, gemm.ldb = args.width;
    gemm.c = product, gemm.ldc = rows;
    gemm.beta = args.add ? 1 : 0;
    run.gemm(gemm);
    if (args.glu)
        run.glu(GluForward{args.batch, args.outputs, args.dtype, args.activation, product, rows,
                           static_cast<char*>(product) + args.outputs * element, rows, args.y});
}

}  // namespace levin::kernels
