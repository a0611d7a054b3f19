// Softmax cross-entropy on a chunk of logits, gradient written in place.
#pragma once

#include "kernels/kernel.h"

namespace levin::kernels {

// For each row r with target t = targets[r] (t < 0: the row does not count, loss 0, gradient 0), in acc:
//   lse = log sum_c exp(z_c);  loss[r] = lse - z_t + z_loss * lse^2
//   logits[r,c] <- gradient_scale * ((1 + 2 z_loss lse) softmax(z)_c - [c == t])    unless gradient_scale ==
//   0
// loss is acc [rows]. Columns >= vocab up to stride (padding) get gradient 0 and never win.
struct CrossEntropy {
    int64_t rows, vocab;
    DType dtype;
    double z_loss, gradient_scale;
    void* logits;
    int64_t stride;
    const int32_t* targets;
    void* loss;
};
void cross_entropy(const Stream& stream, const CrossEntropy& args);

}  // namespace levin::kernels
