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
    std::vector<Tensor> kept = {};  // by segment: states inside, for backward

    const SequenceChunks& chunks() const { return *layout.chunks; }
    DType acc() const { return accumulator_of(q.dtype()); }

    kernels::LightningShape shape_of(const Segment& segment) const {
        kernels::LightningShape s = shape;
        if (theta.defined()) s.theta = theta.data();  // ZeRO may have moved it since the forward pass
        s.length = segment.length;
        s.first_position += segment.begin;
        s.cu_seqlens = segment.cu_seqlens.defined() ? segment.cu_seqlens.data<int32_t>() : nullptr;
        s.documents = segment.cu_seqlens.defined() ? segment.cu_seqlens.count() - 1 : 0;
        s.states_first = crosses(segment);
        return s;
    }
    static bool crosses(const Segment& segment) { return segment.enters || segment.leaves; }
    // Rows of a segment: all of them, unless documents are packed into one row.
    Tensor rows_of(const Tensor& x, const Segment& segment) const {
        return segment.length == layout.length ? x : x.narrow(0, segment.begin, segment.length);
    }
    const Tensor& kept_of(const Segment& segment) const {
        return kept[static_cast<size_t>(&segment - chunks().segments.data())];
    }
    static float* or_null(const Tensor& floats) { return floats.defined() ? floats.data<float>() : nullptr; }

    kernels::LightningForward forward_of(const Segment& segment, const Tensor& o,
                                         const Tensor& initial) const {
        const Tensor qs = rows_of(q, segment), ks = rows_of(k, segment), vs = rows_of(v, segment);
        return {.shape = shape_of(segment),
                .q = qs.data(),
                .q_stride = qs.row_stride(),
                .k = ks.data(),
                .k_stride = ks.row_stride(),
                .v = vs.data(),
                .v_stride = vs.row_stride(),
                .o = rows_of(o, segment).data(),
                .initial_state = initial.defined() ? initial.data() : nullptr,
                .final_state = nullptr,
                .kept_states = or_null(kept_of(segment))};
    }
    // Memory for what kernels leave each other of every segment.
    void keep_states(const Tensor& o) {
        kept.resize(chunks().segments.size());
        for (size_t i = 0; i < kept.size(); ++i) {
            const Segment& segment = chunks().segments[i];
            if (!crosses(segment) && !gradients_enabled()) continue;
            const int64_t count = kernels::lightning_states_to_keep(q.stream(), forward_of(segment, o, {}));
            if (count > 0) kept[i] = Tensor::empty({count}, DType::f32, q.device());
        }
    }
    void forward(const Segment& segment, const Tensor& o, const Tensor& initial) const {
        kernels::lightning_forward(q.stream(), forward_of(segment, o, initial));
    }

    // What a segment adds to the state, into `total` (undefined: nobody wants it), and the states inside it.
    void make_state(const Segment& segment, bool mirrored, const Tensor& key_rows, const Tensor& value_rows,
                    const Tensor& total, const Tensor& inside) const {
        const Tensor keys = rows_of(key_rows, segment), values = rows_of(value_rows, segment);
        kernels::lightning_state(q.stream(), {.shape = shape_of(segment),
                                              .mirrored = mirrored,
                                              .keys = keys.data(),
                                              .key_stride = keys.row_stride(),
                                              .values = values.data(),
                                              .value_stride = values.row_stride(),
                                              .state = total.defined() ? total.data() : nullptr,
                                              .kept_states = or_null(inside)});
    }

    struct Outputs {
        Tensor dq, dk, dv, dtheta;
    };
    // await(): the gradient of the state that leaves; none where nothing leaves.
    void backward(const Segment& segment, const Tensor& d_o, const Tensor& initial, const Outputs& out,
                  double beta, const Tensor& inside, const Tensor& d_final,
                  const std::function<void()>& await) const {
        const Tensor qs = rows_of(q, segment), ks = rows_of(k, segment), vs = rows_of(v, segment);
        const Tensor dq = rows_of(out.dq, segment), dk = rows_of(out.dk, segment),
                     dv = rows_of(out.dv, segment);
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
                                     .d_initial_state = nullptr,
                                     .kept_states = or_null(kept_of(segment)),
                                     .kept_gradients = or_null(inside),
                                     .await_d_final = await});
    }
};

// The states of all ranks on their way to all.
class Exchange {
public:
    explicit Exchange(const Attention& a) : a_(a) {
        Shape shape = a.state_shape;
        shape[0] *= a.ranks->size();
        all_ = Tensor::empty(shape, a.acc(), a.q.device());
    }
    // Where this rank's is to be. What nobody looks at may stay as it is.
    Tensor own() const { return of(a_.ranks->rank()); }
    void start() { arrival_ = a_.ranks->start_all_gather(own(), all_); }
    const Pending& arrival() const { return arrival_; }
    // Waits; distance(r): tokens between this rank's chunk and that of rank r, or -1.
    template <class Distance>
    void sum_into(const Tensor& state, const Distance& distance) const {
        arrival_->wait();
        std::vector<int64_t> distances(static_cast<size_t>(a_.ranks->size()));
        for (int r = 0; r < a_.ranks->size(); ++r) distances[static_cast<size_t>(r)] = distance(r);
        kernels::state_sum(a_.q.stream(), {.parts = a_.ranks->size(),
                                           .sequences = a_.state_shape[0],
                                           .heads = a_.shape.heads,
                                           .elements = a_.state_shape[2] * a_.state_shape[3],
                                           .acc = a_.acc(),
                                           .slopes = a_.slopes.data<float>(),
                                           .distance = distances.data(),
                                           .states = all_.data(),
                                           .out = state.data()});
    }

private:
    Tensor of(int64_t rank) const { return all_.narrow(0, rank * a_.state_shape[0], a_.state_shape[0]); }
    const Attention& a_;
    Tensor all_;
    Pending arrival_;
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
                             const Ranks& ranks, const std::function<void()>& meanwhile) {
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

    // First what the others wait for: the state that leaves this chunk.
    const SequenceChunks& chunks = a.chunks();
    const Segment &front = chunks.segments.front(), &back = chunks.segments.back();
    Tensor o = Tensor::empty({layout.tokens(), a.v.dim(-1)}, a.v.dtype(), a.v.device());
    a.keep_states(o);
    Exchange states(a);
    if (back.leaves) a.make_state(back, false, a.k, a.v, states.own(), a.kept_of(back));
    states.start();
    if (front.enters && !front.leaves) a.make_state(front, false, a.k, a.v, {}, a.kept_of(front));
    if (meanwhile) meanwhile();
    for (const Segment& segment : chunks.segments)
        if (!segment.enters) a.forward(segment, o, {});
    Tensor initial;
    if (front.enters) {
        initial = Tensor::empty(a.state_shape, a.acc(), a.q.device());
        states.sum_into(initial,
                        [&](int64_t r) { return r < chunks.rank ? chunks.distance(r, chunks.rank) : -1; });
        a.forward(front, o, initial);
    } else {
        leave(states.arrival());
    }

    std::vector<Variable> inputs{q, k, v};
    if (a.theta.defined()) inputs.push_back(options.theta);
    return record(
        "context_parallel_lightning", inputs, o, [a, initial](const Tensor& gradient, Gradients& inputs) {
            const SequenceChunks& chunks = a.chunks();
            const Segment &front = chunks.segments.front(), &back = chunks.segments.back();
            const Tensor d_o = gradient.contiguous();
            Attention::Outputs out{inputs.buffer(0), inputs.buffer(1), inputs.buffer(2), {}};
            if (a.theta.defined())
                out.dtheta = Tensor::empty(a.theta.shape(), a.theta.dtype(), a.theta.device());
            // The mirror image: first the gradient of the state that entered, as far as this chunk's outputs
            // go.
            Exchange states(a);
            const auto room_inside = [&](const Segment& segment) {
                const Tensor& kept = a.kept_of(segment);
                return kept.defined() ? Tensor::empty(kept.shape(), kept.dtype(), kept.device()) : Tensor{};
            };
            Tensor front_inside, back_inside;
            if (front.enters) {
                front_inside = room_inside(front);
                a.make_state(front, true, a.q, d_o, states.own(), front_inside);
            }
            states.start();
            if (back.leaves && back.enters) {
                back_inside = front_inside;  // the same segment
            } else if (back.leaves) {
                back_inside = room_inside(back);
                a.make_state(back, true, a.q, d_o, {}, back_inside);
            }
            double beta = 0;
            for (const Segment& segment : chunks.segments) {
                if (segment.leaves) continue;
                a.backward(segment, d_o, segment.enters ? initial : Tensor{}, out, beta,
                           segment.enters ? front_inside : Tensor{}, {}, {});
                beta = 1;
            }
            if (back.leaves) {
                const Tensor d_final = Tensor::empty(a.state_shape, a.acc(), a.q.device());
                a.backward(back, d_o, back.enters ? initial : Tensor{}, out, beta, back_inside, d_final, [&] {
                    states.sum_into(d_final, [&](int64_t r) {
                        return r > chunks.rank ? chunks.distance(chunks.rank, r) : -1;
                    });
                });
            } else {
                leave(states.arrival());
            }
            inputs.add(0, out.dq);
            inputs.add(1, out.dk);
            inputs.add(2, out.dv);
            if (a.theta.defined()) inputs.add(3, out.dtheta);
        });
}

}  // namespace levin::context_parallel
