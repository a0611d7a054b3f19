#include "kernels/softmax_attention.h"

#include <cmath>

#include "parallel/context_parallel/ops.h"

namespace levin::context_parallel {

namespace {

// Between chunks laid out for a collective, [ranks, batch, longest, 2 width] with keys left and values right,
// and the keys (or values) that this rank's queries see, [batch, seen, width]. `copy` gets matching pieces.
template <class Copy>
void for_each_piece(const SequenceChunks& chunks, const Tensor& exchange, int64_t batch, int64_t width,
                    const Tensor& keys, const Tensor& values, const Copy& copy) {
    const int64_t longest = chunks.longest(),
                  first = chunks.document_starts[static_cast<size_t>(chunks.rank)];
    const int64_t seen = keys.rows() / batch;
    for (int64_t r = 0; r <= chunks.rank; ++r) {
        const int64_t start = chunks.starts[static_cast<size_t>(r)],
                      skip = std::max<int64_t>(0, first - start);
        const int64_t length = chunks.length_of(r) - skip;
        if (length <= 0) continue;
        for (int64_t b = 0; b < batch; ++b) {
            const Tensor piece = exchange.narrow(0, (r * batch + b) * longest + skip, length);
            const int64_t place = b * seen + start + skip - first;
            copy(piece.narrow(-1, 0, width), keys.narrow(0, place, length));
            copy(piece.narrow(-1, width, width), values.narrow(0, place, length));
        }
    }
}

}  // namespace

Variable softmax_attention(const Variable& q, const Variable& k, const Variable& v, int64_t heads,
                           int64_t kv_heads, const ops::TokenLayout& layout, const Ranks& ranks) {
    const auto chunks = layout.chunks;
    LEVIN_CHECK(chunks && chunks->ranks() == ranks->size() && chunks->rank == ranks->rank(),
                "context parallel", "the layout is no chunk for rank {} of {}", ranks->rank(), ranks->size());
    const Tensor qv = q.value(), kv = k.value(), vv = v.value();
    const int64_t batch = layout.batch, length = layout.length, width = kv.dim(-1),
                  longest = chunks->longest();
    const int64_t head_dim = qv.dim(-1) / heads;
    LEVIN_CHECK(qv.dim(-1) == heads * head_dim && width == kv_heads * head_dim && kv.shape() == vv.shape() &&
                    qv.rows() == layout.tokens() && kv.rows() == layout.tokens(),
                "context parallel", "q {}, k {}, v {} do not fit {} heads, {} key heads",
                to_string(qv.shape()), to_string(kv.shape()), to_string(vv.shape()), heads, kv_heads);
    const auto empty = [dtype = qv.dtype(), device = qv.device()](int64_t rows, int64_t columns) {
        return Tensor::empty({rows, columns}, dtype, device);
    };
    const int64_t first = chunks->document_starts[static_cast<size_t>(chunks->rank)];
    const int64_t before = layout.first_position - first, seen = before + length;
    Tensor keys = empty(batch * seen, width), values = empty(batch * seen, width);
    {
        Tensor own = empty(batch * longest, 2 * width),
               all = empty(ranks->size() * batch * longest, 2 * width);
        for (int64_t b = 0; b < batch; ++b) {
            const Tensor row = own.narrow(0, b * longest, length);
            row.narrow(-1, 0, width).copy_from(kv.narrow(0, b * length, length));
            row.narrow(-1, width, width).copy_from(vv.narrow(0, b * length, length));
            if (length < longest) own.narrow(0, b * longest + length, longest - length).fill(0);
        }
        ranks->all_gather(own, all);
        for_each_piece(*chunks, all, batch, width, keys, values,
                       [](const Tensor& piece, Tensor place) { place.copy_from(piece); });
    }
    // Packed documents need as many queries as keys: those of earlier chunks (of one document) are zero,
    // their results unused.
    const bool packed = layout.cu_seqlens.defined();
    const int64_t queries = packed ? seen : length;
    const auto pad = [before, packed](const Tensor& x) {
        if (!packed || before == 0) return x.contiguous();
        Tensor padded = Tensor::empty({before + x.rows(), x.dim(-1)}, x.dtype(), x.device());
        padded.narrow(0, 0, before).fill(0);
        padded.narrow(0, before, x.rows()).copy_from(x);
        return padded;
    };
    const Tensor query = packed ? pad(qv) : qv, borders = packed ? chunks->key_cu_seqlens : Tensor{};
    const kernels::SoftmaxAttentionShape shape{.batch = batch,
                                               .query_length = queries,
                                               .key_length = seen,
                                               .heads = heads,
                                               .kv_heads = kv_heads,
                                               .head_dim = head_dim,
                                               .dtype = qv.dtype(),
                                               .scale = 1 / std::sqrt(static_cast<double>(head_dim)),
                                               .cu_seqlens = packed ? borders.data<int32_t>() : nullptr,
                                               .documents = packed ? borders.count() - 1 : 0};
    Tensor o = empty(batch * queries, qv.dim(-1));
    Tensor lse = Tensor::empty({batch, heads, queries}, accumulator_of(qv.dtype()), qv.device());
    kernels::softmax_attention_forward(qv.stream(), {.shape = shape,
                                                     .q = query.data(),
                                                     .q_stride = query.row_stride(),
                                                     .k = keys.data(),
                                                     .k_stride = width,
                                                     .v = values.data(),
                                                     .v_stride = width,
                                                     .o = o.data(),
                                                     .log_sum_exp = lse.data()});
    const int64_t padding = packed ? before : 0;
    const Tensor result = padding > 0 ? o.narrow(0, padding, length) : o;
    return record("context_parallel_softmax", {q, k, v}, result,
                  [=](const Tensor& gradient, Gradients& inputs) {
                      const Tensor d_o = pad(gradient);
                      Tensor dq = empty(batch * queries, query.dim(-1)), d_keys = empty(batch * seen, width),
                             d_values = empty(batch * seen, width);
                      kernels::softmax_attention_backward(query.stream(), {.shape = shape,
                                                                           .q = query.data(),
                                                                           .q_stride = query.row_stride(),
                                                                           .k = keys.data(),
                                                                           .k_stride = width,
                                                                           .v = values.data(),
                                                                           .v_stride = width,
                                                                           .o = o.data(),
                                                                           .log_sum_exp = lse.data(),
                                                                           .d_o = d_o.data(),
                                                                           .dq = dq.data(),
                                                                           .dq_stride = dq.row_stride(),
                                                                           .dk = d_keys.data(),
                                                                           .dk_stride = width,
                                                                           .dv = d_values.data(),
                                                                           .dv_stride = width});
                      Tensor own = empty(batch * longest, 2 * width),
                             all = empty(ranks->size() * batch * longest, 2 * width);
                      all.fill(0);
                      for_each_piece(*chunks, all, batch, width, d_keys, d_values,
                                     [](Tensor piece, const Tensor& place) { piece.copy_from(place); });
                      ranks->reduce_scatter(all, own);
                      Tensor dk = inputs.buffer(1), dv = inputs.buffer(2);
                      for (int64_t b = 0; b < batch; ++b) {
                          const Tensor row = own.narrow(0, b * longest, length);
                          dk.narrow(0, b * length, length).copy_from(row.narrow(-1, 0, width));
                          dv.narrow(0, b * length, length).copy_from(row.narrow(-1, width, width));
                      }
                      inputs.add(0, padding > 0 ? dq.narrow(0, padding, length) : dq);
                      inputs.add(1, dk);
                      inputs.add(2, dv);
                  });
}

}  // namespace levin::context_parallel
