// Causal softmax attention through cuDNN's graph API, where its headers were there at build time and its
// library is there at run time. Nothing depends on it: the kernels of softmax_attention.cu do the same,
// slower.
#pragma once

#include "kernels/softmax_attention.h"

namespace levin::kernels::cuda {

// True when cuDNN did it; false (and nothing done) when it is not there or does not take this shape. It takes
// bf16, as many queries as keys, no packed documents, head widths that are multiples of 8 up to 128;
// deterministic algorithms only.
bool cudnn_attention_forward(const Stream& stream, const SoftmaxAttentionForward& args);
bool cudnn_attention_backward(const Stream& stream, const SoftmaxAttentionBackward& args);

}  // namespace levin::kernels::cuda
