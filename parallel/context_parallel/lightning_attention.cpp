#include "kernels/lightning_attention.h"

#include "kernels/rank_parts.h"
#include "parallel/context_parallel/ops.h"

namespace levin::context_parallel {

namespace {

using Segment = SequenceChunks::Segment;

// What forward and backward need, kept by the graph.
struct Attention {
    Tensor q, k, v, theta, slopes;
    ops::TokenLayout layout;
    kernels::LightningShape shape;  // of all tokens of this rank
    Shape state_shape;              // of one rank: [rows, heads, key_width, value_dim]
    Ranks ranks;
    std::vector<Tensor> kept = {};  // by segment: what backward would like forward to leave

    const SequenceChunks& chunks() const { return *layout.chunks; }
    DType acc() const { return accumulator_of(q.dtype()); }
    Tensor new_state() const { return Tensor::empty(state_shape, acc(), q.device()); }

    kernels::LightningShape shape_of(const Segment& segment) const {
        kernels::LightningShape s = shape;
        if (theta.defined()) s.theta = theta.data();  // ZeRO may have moved it since the forward pass
        s.length = segment.length;
        s.first_position += segment.begin;
        s.cu_seqlens = segment.cu_seqlens.defined() ? segment.cu_seqlens.data<int32_t>() : nullptr;
        s.documents = segment.cu_seqlens.defined() ? segment.cu_seqlens.count() - 1 : 0;
        return s;
    }
    // Rows of a segment: all of them, unless documents are packed into one row.
    Tensor rows_of(const Tensor& x, const Segment& segment) const {
        return segment.length == layout.length ? x : x.narrow(0, segment.begin, segment.length);
    }

    void forward(const Segment& segment, const Tensor& o, const Tensor& initial, const Tensor& final) {
        const Tensor qs = rows_of(q, segment), ks = rows_of(k, segment), vs = rows_of(v, segment);
        kernels::LightningForward args{.shape = shape_of(segment),
                                       .q = qs.data(),
                                       .q_stride = qs.row_stride(),
                                       .k = ks.data(),
                                       .k_stride = ks.row_stride(),
                                       .v = vs.data(),
                                       .v_stride = vs.row_stride(),
                                       .o = rows_of(o, segment).data(),
                                       .initial_state = initial.defined() ? initial.data() : nullptr,
                                       .final_state = final.defined() ? final.data() : nullptr};
        if (gradients_enabled()) {
            Tensor& states = kept[number_of(segment)];
            const int64_t count = kernels::lightning_states_to_keep(q.stream(), args);
            states = count > 0 ? Tensor::empty({count}, DType::f32, q.device()) : Tensor{};
            if (count > 0) args.kept_states = states.data<float>();
        }
        kernels::lightning_forward(q.stream(), args);
    }
    size_t number_of(const Segment& segment) const {
        return static_cast<size_t>(&segment - chunks().segments.data());
    }

    struct Outputs {
        Tensor dq, dk, dv, dtheta;
    };
    void backward(const Segment& segment, const Tensor& d_o, const Tensor& initial, const Tensor& d_final,
                  const Outputs& out, double beta, const Tensor& d_initial) const {
        const Tensor qs = rows_of(q, segment), ks = rows_of(k, segment), vs = rows_of(v, segment);
        const Tensor dq = rows_of(out.dq, segment), dk = rows_of(out.dk, segment),
                     dv = rows_of(out.dv, segment);
        const Tensor& states = kept[number_of(segment)];
        kernels::lightning_backward(q.stream(),
                                    {.shape = shape_of(segment),
                                     .q = qs.data(),
                                     .q_stride = qs.row_stride(),
                                     .k = ks.data(),
                                     .k_stride = ks.row_stride(),
                                     .v = vs.data(),
                                     .v_stride = vs.row_stride(),
                                     .d_o = rows_of(d_o, segment).data(),
                                     .initial_state = initial.defined() ? initial.data() : nullptr,
                                     .d_final_state = d_final.defined() ? d_final.data() : nullptr,
                                     .dq = dq.data(),
                                     .dq_stride = dq.row_stride(),
                                     .dk = dk.data(),
                                     .dk_stride = dk.row_stride(),
                                     .dv = dv.data(),
                                     .dv_stride = dv.row_stride(),
                                     .dtheta = out.dtheta.defined() ? out.dtheta.data() : nullptr,
                                     .beta = beta,
                                     .d_initial_state = d_initial.defined() ? d_initial.data() : nullptr,
                                     .kept_states = states.defined() ? states.data<float>() : nullptr});
    }

    // Starts to send `part` to everybody and to get everybody's. Sums those `from` .. `to` with the decay of
    // the tokens between.
    Pending start_gather(const Tensor& part, Tensor& all) const {
        Shape shape = state_shape;
        shape[0] *= ranks->size();
        all = Tensor::empty(shape, acc(), q.device());
        return ranks->start_all_gather(part, all);
    }
    Tensor sum(const Tensor& all, const std::vector<int64_t>& distance) const {
        Tensor state = new_state();
        kernels::state_sum(q.stream(), {.parts = ranks->size(),
                                        .sequences = state_shape[0],
                                        .heads = shape.heads,
                                        .elements = state_shape[2] * state_shape[3],
                                        .acc = acc(),
                                        .slopes = slopes.data<float>(),
                                        .distance = distance.data(),
                                        .states = all.data(),
                                        .out = state.data()});
        return state;
    }
};

// Exchanges that this rank does not wait for; what they hold stays alive.
thread_local std::vector<Pending> left;

void leave(Pending exchange) {
    std::erase_if(left, [](const Pending& earlier) { return earlier->test(); });
    left.push_back(std::move(exchange));
}

}  // namespace

void finish_exchanges() {
    for (const Pending& exchange : left) exchange->wait();
    left.clear();
}

Variable lightning_attention(const Variable& q, const Variable& k, const Variable& v,
                             const ops::LightningOptions& options, const ops::TokenLayout& layout,
                             const Ranks& ranks) {
    LEVIN_CHECK(layout.chunks && layout.chunks->ranks() == ranks->size() &&
                    layout.chunks->rank == ranks->rank() && !options.initial_state.defined() &&
                    !options.want_final_state && q.value().rows() == layout.tokens(),
                "context parallel", "the layout of {} tokens is no chunk for rank {} of {}", layout.tokens(),
                ranks->rank(), ranks->size());
    Attention a{.q = q.value(),
                .k = k.value(),
                .v = v.value(),
                .theta = options.theta.defined() ? options.theta.value() : Tensor{},
                .slopes = options.slopes,
                .layout = layout,
                .shape = {},
                .state_shape = {},
                .ranks = ranks};
    a.shape = {.batch = layout.batch,
               .length = layout.length,
               .heads = options.heads,
               .key_dim = a.q.dim(-1) / options.heads,
               .value_dim = a.v.dim(-1) / options.heads,
               .dtype = a.q.dtype(),
               .qk_activation = options.qk_activation,
               .v_activation = options.v_activation,
               .slopes = a.slopes.data<float>(),
               .theta = a.theta.defined() ? a.theta.data() : nullptr,
               .first_position = layout.first_position,
               .steepest = options.steepest};
    a.state_shape = {layout.batch, a.shape.heads, a.shape.key_width(), a.shape.value_dim};

    // First what the others wait for: the state that leaves this chunk, and the segments that need nothing.
    const SequenceChunks& chunks = a.chunks();
    a.kept.resize(chunks.segments.size());
    Tensor o = Tensor::empty({layout.tokens(), a.v.dim(-1)}, a.v.dtype(), a.v.device());
    Tensor own = a.new_state(), all;
    if (!chunks.segments.back().leaves) own.fill(0);  // nobody looks at it
    if (chunks.segments.back().leaves) a.forward(chunks.segments.back(), o, {}, own);
    const Pending gather = a.start_gather(own, all);
    for (const Segment& segment : chunks.segments)
        if (!segment.enters && !segment.leaves) a.forward(segment, o, {}, {});
    Tensor initial;
    if (!chunks.segments.front().enters) {
        leave(gather);
    } else {
        gather->wait();
        std::vector<int64_t> distance(static_cast<size_t>(chunks.ranks()), -1);
        for (int64_t r = 0; r < chunks.rank; ++r)
            distance[static_cast<size_t>(r)] = chunks.distance(r, chunks.rank);
        initial = a.sum(all, distance);
        a.forward(chunks.segments.front(), o, initial, {});
    }

    std::vector<Variable> inputs{q, k, v};
    if (a.theta.defined()) inputs.push_back(options.theta);
    return record(
        "context_parallel_lightning", inputs, o, [a, initial](const Tensor& gradient, Gradients& inputs) {
            const SequenceChunks& chunks = a.chunks();
            const Tensor d_o = gradient.contiguous();
            Attention::Outputs out{inputs.buffer(0), inputs.buffer(1), inputs.buffer(2), {}};
            if (a.theta.defined())
                out.dtheta = Tensor::empty(a.theta.shape(), a.theta.dtype(), a.theta.device());
            // The mirror image: first the gradient of the state that entered, as far as this chunk's outputs
            // go.
            const Segment &front = chunks.segments.front(), &back = chunks.segments.back();
            double beta = 0;
            Tensor own = a.new_state(), all;
            if (front.enters) {
                a.backward(front, d_o, initial, {}, out, beta, own);
                if (!front.leaves)
                    beta = 1;  // else it comes again, with the gradient of the state that leaves
            } else {
                own.fill(0);
            }
            const Pending gather = a.start_gather(own, all);
            for (const Segment& segment : chunks.segments) {
                if (segment.enters || segment.leaves) continue;
                a.backward(segment, d_o, {}, {}, out, beta, {});
                beta = 1;
            }
            if (!back.leaves) {
                leave(gather);
            } else {
                gather->wait();
                std::vector<int64_t> distance(static_cast<size_t>(chunks.ranks()), -1);
                for (int64_t r = chunks.rank + 1; r < chunks.ranks(); ++r)
                    distance[static_cast<size_t>(r)] = chunks.distance(chunks.rank, r);
                a.backward(back, d_o, back.enters ? initial : Tensor{}, a.sum(all, distance), out, beta, {});
            }
            inputs.add(0, out.dq);
            inputs.add(1, out.dk);
            inputs.add(2, out.dv);
            if (a.theta.defined()) inputs.add(3, out.dtheta);
        });
}

}  // namespace levin::context_parallel
