// Decoding on the CPU: the kernels of training at length one. What is fused on a GPU stays in the caches
// here.
#include "kernels/decode.h"

#include "kernels/cpu/activation.h"
#include "kernels/decode_steps.h"

namespace levin::kernels::cpu {

void decode_linear(const DecodeLinear& args) {
    struct Run {
        void embedding(const EmbeddingForward& embedding) const { cpu::embedding_forward(embedding); }
        void norm(SrmsNormForward norm) const {
            // Without a branch there is no sum to form; h, if wanted, is x as it is.
            if (!norm.branch && norm.h)
                cpu::copy(Copy{norm.rows, norm.width, norm.dtype, norm.x, norm.width, norm.dtype, norm.h,
                               norm.width});
            cpu::srms_norm_forward(norm);
        }
        void gated_norm(const GatedSrmsNormForward& norm) const { cpu::gated_srms_norm_forward(norm); }
        void gemm(const Gemm& product) const { cpu::gemm(product); }
        void glu(const GluForward& product) const { cpu::glu_forward(product); }
    };
    decode_linear_in_steps(args, Run{});
}

void decode_attention(const DecodeAttention& args) {
    LightningForward forward{};
    forward.shape = {.batch = args.batch,
                     .length = 1,
                     .heads = args.heads,
                     .key_dim = args.key_dim,
                     .value_dim = args.value_dim,
                     .dtype = args.dtype,
                     .qk_activation = args.qk_activation,
                     .v_activation = args.v_activation,
                     .slopes = args.slopes,
                     .theta = args.theta,
                     .first_position = *args.position};
    forward.q = args.q, forward.k = args.k, forward.v = args.v;
    forward.q_stride = forward.k_stride = forward.v_stride = args.stride;
    forward.o = args.o;
    forward.initial_state = forward.final_state = args.state;
    cpu::lightning_forward(forward);
}

void decode_advance(const DecodeAdvance& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        for (int64_t b = 0; b < args.batch; ++b) {
            const T* logits = static_cast<const T*>(args.logits) + b * args.vocab;
            int64_t best = 0;
            for (int64_t i = 1; i < args.vocab; ++i)
                if (load(logits[i]) > load(logits[best])) best = i;
            args.ids[b] = static_cast<int32_t>(best);
        }
    });
    ++*args.position;
}

}  // namespace levin::kernels::cpu
