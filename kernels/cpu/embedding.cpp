#include "kernels/embedding.h"

#include "kernels/backends.h"
#include "kernels/cpu/activation.h"
#include "kernels/cpu/loops.h"

namespace levin::kernels::cpu {

void embedding_forward(const EmbeddingForward& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        const auto scale = static_cast<arithmetic_t<T>>(args.scale);
        for_each_row(args.tokens, args.width, [&](int64_t t) {
            const int64_t place = args.ids[t] - args.first;
            T* y = static_cast<T*>(args.y) + t * args.width;
            if (place < 0 || place >= args.vocab) {
                std::fill(y, y + args.width, T{});
                return;
            }
            const T* row = static_cast<const T*>(args.table) + place * args.width;
#pragma omp simd
            for (int64_t c = 0; c < args.width; ++c) y[c] = narrow<T>(scale * load(row[c]));
        });
    });
}

void embedding_backward(const EmbeddingBackward& args) {
    with_floating(args.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        using A = arithmetic_t<T>;
        const A scale = static_cast<A>(args.scale);
        for_each_column_range(args.tokens, args.width, [&](int64_t begin, int64_t end) {
            for (int64_t t = 0; t < args.tokens; ++t) {
                const int64_t id = args.ids[t], place = id - args.first;
                if (id == args.padding_id || place < 0 || place >= args.vocab) continue;
                const T* dy = static_cast<const T*>(args.dy) + t * args.width;
                A* row = static_cast<A*>(args.dtable) + place * args.width;
#pragma omp simd
                for (int64_t c = begin; c < end; ++c) row[c] += scale * load(dy[c]);
            }
        });
    });
}

}  // namespace levin::kernels::cpu
