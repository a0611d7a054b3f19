#include "core/ops/lightning_arguments.h"
#include "kernels/rank_parts.h"
#include "parallel/context_parallel/ops.h"

namespace levin::context_parallel {

namespace {

using Segment = SequenceChunks::Segment;

// What forward and backward need, kept by the graph.
struct Attention {
    ops::LightningTensors x;
    ops::TokenLayout layout;
    kernels::LightningShape shape;  // of all tokens of this rank
    Shape state_shape;              // of one rank: [rows, heads, key_width, value_dim]
    Ranks ranks;
    std::vector<Tensor> kept = {};  // by segment: states inside, for backward

    const SequenceChunks& chunks() const { return *layout.chunks; }
    DType acc() const { return accumulator_of(x.q.dtype()); }
    const Device& device() const { return x.q.device(); }
    Stream stream() const { return x.q.stream(); }

    kernels::LightningShape shape_of(const Segment& segment) const {
        kernels::LightningShape s = shape;
        s.theta = ops::data_or_null(x.theta);  // ZeRO may have moved it since the forward pass
        s.length = segment.length;
        s.first_position += segment.begin;
        s.cu_seqlens = segment.cu_seqlens.defined() ? segment.cu_seqlens.data<int32_t>() : nullptr;
        s.documents = segment.cu_seqlens.defined() ? segment.cu_seqlens.count() - 1 : 0;
        s.states_first = crosses(segment);
        return s;
    }
    static bool crosses(const Segment& segment) { return segment.enters || segment.leaves; }
    // Rows of a segment: all of them, unless documents are packed into one row.
    Tensor rows_of(const Tensor& rows, const Segment& segment) const {
        return segment.length == layout.length ? rows : rows.narrow(0, segment.begin, segment.length);
    }
    ops::LightningTensors inputs_of(const Segment& segment) const {
        return {rows_of(x.q, segment), rows_of(x.k, segment), rows_of(x.v, segment), x.theta, x.slopes};
    }
    const Tensor& kept_of(const Segment& segment) const {
        return kept[static_cast<size_t>(&segment - chunks().segments.data())];
    }

    kernels::LightningForward forward_of(const Segment& segment, const Tensor& o,
                                         const Tensor& initial) const {
        return ops::lightning_forward_of(shape_of(segment), inputs_of(segment), rows_of(o, segment), initial,
                                         {}, kept_of(segment));
    }
    // Memory for what kernels leave each other of every segment.
    void keep_states(const Tensor& o) {
        kept.resize(chunks().segments.size());
        for (size_t i = 0; i < kept.size(); ++i) {
            const Segment& segment = chunks().segments[i];
            if (!crosses(segment) && !gradients_enabled()) continue;
            const int64_t count = kernels::lightning_states_to_keep(stream(), forward_of(segment, o, {}));
            if (count > 0) kept[i] = Tensor::empty({count}, DType::f32, device());
        }
    }
    void forward(const Segment& segment, const Tensor& o, const Tensor& initial) const {
        kernels::lightning_forward(stream(), forward_of(segment, o, initial));
    }

    // What a segment adds to the state, into `total` (undefined: nobody wants it), and the states inside it.
    void make_state(const Segment& segment, bool mirrored, const Tensor& key_rows, const Tensor& value_rows,
                    const Tensor& total, const Tensor& inside) const {
        const Tensor keys = rows_of(key_rows, segment), values = rows_of(value_rows, segment);
        kernels::lightning_state(stream(), {.shape = shape_of(segment),
                                            .mirrored = mirrored,
                                            .keys = keys.data(),
                                            .key_stride = keys.row_stride(),
                                            .values = values.data(),
                                            .value_stride = values.row_stride(),
                                            .state = ops::data_or_null(total),
                                            .kept_states = ops::floats_or_null(inside)});
    }

    // await(): the gradient of the state that leaves; none where nothing leaves.
    void backward(const Segment& segment, const Tensor& d_o, const Tensor& initial,
                  const ops::LightningGradients& d, const Tensor& inside, const Tensor& d_final,
                  const std::function<void()>& await) const {
        const ops::LightningGradients rows{rows_of(d.q, segment), rows_of(d.k, segment),
                                           rows_of(d.v, segment), d.theta, d.beta};
        kernels::LightningBackward backward =
            ops::lightning_backward_of(shape_of(segment), inputs_of(segment), rows_of(d_o, segment), initial,
                                       d_final, rows, {}, kept_of(segment));
        backward.kept_gradients = ops::floats_or_null(inside);
        backward.await_d_final = await;
        kernels::lightning_backward(stream(), backward);
    }
};

// The states of all ranks on their way to all, and beside them what all ranks know already: the state that
// the slice before has left (part -1) and the gradient of the one that the next slice starts from (part
// ranks).
class Exchange {
public:
    explicit Exchange(const Attention& a) : a_(a) {
        Shape shape = a.state_shape;
        shape[0] *= ranks() + 2;
        all_ = Tensor::empty(shape, a.acc(), a.device());
    }
    // What nobody looks at may stay as it is.
    Tensor part(int64_t place, int64_t count = 1) const {
        return all_.narrow(0, (place + 1) * a_.state_shape[0], count * a_.state_shape[0]);
    }
    Tensor own() const { return part(a_.ranks->rank()); }
    void start() { arrival_ = a_.ranks->start_all_gather(own(), part(0, ranks())); }
    Tensor empty_state() const { return Tensor::empty(a_.state_shape, a_.acc(), a_.device()); }
    // The state that enters part `place`, from all before it, or mirrored the gradient of the one that leaves
    // it, from all behind. Waits.
    void sum_into(const Tensor& sum, int64_t place, bool mirrored) {
        if (!waited_) arrival_->wait();
        waited_ = true;
        std::vector<int64_t> distances(static_cast<size_t>(ranks()) + 2, -1);
        for (int64_t p = mirrored ? place + 1 : -1; p < (mirrored ? ranks() + 1 : place); ++p)
            distances[static_cast<size_t>(p + 1)] =
                mirrored ? a_.chunks().distance(place, p) : a_.chunks().distance(p, place);
        kernels::state_sum(a_.stream(), {.parts = ranks() + 2,
                                         .sequences = a_.state_shape[0],
                                         .heads = a_.shape.heads,
                                         .elements = a_.state_shape[2] * a_.state_shape[3],
                                         .acc = a_.acc(),
                                         .slopes = a_.x.slopes.data<float>(),
                                         .distance = distances.data(),
                                         .states = all_.data(),
                                         .out = sum.data()});
    }
    Tensor sum_at(int64_t place, bool mirrored) {
        const Tensor sum = empty_state();
        sum_into(sum, place, mirrored);
        return sum;
    }
    // Nobody here needs what arrives.
    void leave_unless_waited();

private:
    int64_t ranks() const { return a_.ranks->size(); }
    const Attention& a_;
    Tensor all_;
    Pending arrival_;
    bool waited_ = false;
};

// Exchanges that this rank does not wait for; what they hold stays alive.
thread_local std::vector<Pending> left;

void Exchange::leave_unless_waited() {
    if (waited_) return;
    std::erase_if(left, [](const Pending& earlier) { return earlier->test(); });
    left.push_back(arrival_);
}

}  // namespace

void finish_exchanges() {
    for (const Pending& exchange : left) exchange->wait();
    left.clear();
}

ops::LightningResult lightning_attention(const Variable& q, const Variable& k, const Variable& v,
                                         const ops::LightningOptions& options, const ops::TokenLayout& layout,
                                         const Ranks& ranks, const std::function<void()>& meanwhile) {
    LEVIN_CHECK(layout.chunks && layout.chunks->ranks() == ranks->size() &&
                    layout.chunks->rank == ranks->rank() && q.value().rows() == layout.tokens(),
                "context parallel", "the layout of {} tokens is no chunk for rank {} of {}", layout.tokens(),
                ranks->rank(), ranks->size());
    LEVIN_CHECK(layout.chunks->continues() == options.initial_state.defined() &&
                    (options.want_final_state || !layout.chunks->goes_on()),
                "context parallel", "tokens {} .. {}: slices of a sequence hand the state on",
                layout.chunks->starts.front(), layout.chunks->starts.back());
    Attention a{.x = {.q = q.value(),
                      .k = k.value(),
                      .v = v.value(),
                      .theta = options.theta.defined() ? options.theta.value() : Tensor{},
                      .slopes = options.slopes},
                .layout = layout,
                .shape = {},
                .state_shape = {},
                .ranks = ranks};
    a.shape = ops::lightning_shape(a.x, options, layout);
    a.state_shape = {layout.batch, a.shape.heads, a.shape.key_width(), a.shape.value_dim};

    // First what the others wait for: the state that leaves this chunk.
    const SequenceChunks& chunks = a.chunks();
    const Segment &front = chunks.segments.front(), &back = chunks.segments.back();
    Tensor o = Tensor::empty({layout.tokens(), a.x.v.dim(-1)}, a.x.v.dtype(), a.device());
    a.keep_states(o);
    Exchange states(a);
    if (back.leaves) a.make_state(back, false, a.x.k, a.x.v, states.own(), a.kept_of(back));
    states.start();
    const bool has_theta = a.x.theta.defined(), has_state = chunks.continues();
    if (has_state) states.part(-1).copy_from(options.initial_state.value());
    if (front.enters && !front.leaves) a.make_state(front, false, a.x.k, a.x.v, {}, a.kept_of(front));
    if (meanwhile) meanwhile();
    for (const Segment& segment : chunks.segments)
        if (!segment.enters) a.forward(segment, o, {});
    Tensor initial;
    if (front.enters) {
        initial = chunks.rank == 0 ? options.initial_state.value() : states.sum_at(chunks.rank, false);
        a.forward(front, o, initial);
    }
    std::vector<Tensor> outputs{o};
    if (chunks.goes_on()) outputs.push_back(states.sum_at(ranks->size(), false));
    states.leave_unless_waited();

    std::vector<Variable> inputs{q, k, v};
    if (has_theta) inputs.push_back(options.theta);
    if (has_state) inputs.push_back(options.initial_state);
    auto results = record(
        "context_parallel_lightning", inputs, std::move(outputs),
        [a, initial, has_theta, has_state](std::span<const Tensor> gradients, Gradients& inputs) {
            const SequenceChunks& chunks = a.chunks();
            const Segment &front = chunks.segments.front(), &back = chunks.segments.back();
            const auto ranks = a.ranks->size();
            const Tensor d_o = gradients[0].contiguous();
            Tensor d_leaving;
            if (chunks.goes_on()) d_leaving = gradients[1].contiguous();
            ops::LightningGradients d{
                .q = inputs.buffer(0), .k = inputs.buffer(1), .v = inputs.buffer(2), .theta = {}};
            if (has_theta) d.theta = Tensor::empty(a.x.theta.shape(), a.x.theta.dtype(), a.device());
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
                a.make_state(front, true, a.x.q, d_o, states.own(), front_inside);
            }
            states.start();
            if (chunks.goes_on()) states.part(ranks).copy_from(d_leaving);
            if (back.leaves && back.enters) {
                back_inside = front_inside;  // the same segment
            } else if (back.leaves) {
                back_inside = room_inside(back);
                a.make_state(back, true, a.x.q, d_o, {}, back_inside);
            }
            for (const Segment& segment : chunks.segments) {
                if (segment.leaves) continue;
                a.backward(segment, d_o, segment.enters ? initial : Tensor{}, d,
                           segment.enters ? front_inside : Tensor{}, {}, {});
                d.beta = 1;
            }
            if (back.leaves) {
                const bool known = chunks.rank + 1 == ranks;  // all of it, from the slice behind
                const Tensor d_final = known ? d_leaving : states.empty_state();
                a.backward(back, d_o, back.enters ? initial : Tensor{}, d, back_inside, d_final, [&] {
                    if (!known) states.sum_into(d_final, chunks.rank, true);
                });
            }
            if (has_state) inputs.add(has_theta ? 4 : 3, states.sum_at(-1, true));
            states.leave_unless_waited();
            inputs.add(0, d.q);
            inputs.add(1, d.k);
            inputs.add(2, d.v);
            if (has_theta) inputs.add(3, d.theta);
        });
    return {results[0], results.size() > 1 ? results[1] : Variable{}};
}

}  // namespace levin::context_parallel
