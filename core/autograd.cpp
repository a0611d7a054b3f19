#include "core/autograd.h"

#include <algorithm>
#include <atomic>
#include <queue>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "kernels/elementwise.h"

namespace levin {

namespace detail {

struct VariableState {
    Tensor value;
    bool requires_grad = false;
    std::shared_ptr<Node> node;  // the op that made it; null for a leaf
    size_t output = 0;           // which output of that op
    bool formed_again = false;   // by that op's backward function, if wanted
    // Leaves only.
    Tensor gradient;
    bool fresh = true;  // gradient holds nothing yet: the next contribution overwrites
    std::function<void(Variable&)> hook;
};

// An input of an op, as backward needs it: the op that made it, or the leaf. It does not hold the input's
// value: what backward needs of that, the op saves.
struct Edge {
    std::shared_ptr<Node> node;  // null for a leaf, and for what needs no gradient
    size_t output = 0;
    Variable leaf;  // undefined unless a leaf that needs a gradient
    Shape shape;
    DType dtype;
    Device device;

    bool wanted() const { return node || leaf.defined(); }
};

struct Node {
    const char* op;
    bool takes_unit_seed = false;  // as a root without a seed it gets no gradient tensor and takes it for one
    uint64_t order;                // creation order; an op's inputs always come before it
    std::vector<Edge> inputs;
    BackwardFunction backward;
    std::vector<Shape> output_shapes;
    std::vector<DType> output_dtypes;
    Device device;
    std::vector<Tensor> gradients;  // of the outputs, while backward runs
    Tensor slices;                  // record_slices: gradient of the whole input, made when first asked for
    std::vector<int64_t> slice_starts;
    std::vector<bool>
        slice_taken;  // a buffer is handed out once: two consumers must not write the same memory

    // Leaf gradients of consumers that wait for an output of this op to be formed again.
    struct Waiting {
        size_t output;
        Variable leaf;
        std::function<void(Tensor&, double, const Tensor&)> form;
        Forms forms;
    };
    std::vector<Waiting> waiting;
    std::vector<Tensor> values;                 // of the outputs, formed again
    std::vector<VariableState*> handed_onward;  // leaves whose gradient from this op waits at another one

    Tensor gradient_buffer(size_t output);
    void receive(size_t output, Tensor gradient);
};

}  // namespace detail

using detail::Edge;
using detail::Node;
using detail::VariableState;

namespace {

std::atomic<uint64_t> next_order{0};
thread_local bool gradient_mode = true;
thread_local bool selective = false;
thread_local int backward_depth = 0;  // > 1 inside the second run of a recomputed region
thread_local LeafRecorder* leaf_recorder = nullptr;

Tensor ones_like(const Tensor& x) { return Tensor::full(x.shape(), 1, x.dtype(), x.device()); }

Tensor sum_of(Tensor a, const Tensor& b) {
    // In place where nobody else sees `a`.
    const bool in_place = a.owns_alone() && a.is_contiguous();
    Tensor result = in_place ? a : Tensor::empty(a.shape(), a.dtype(), a.device());
    const Tensor left = a.contiguous(), right = b.contiguous();
    kernels::add(result.stream(), {.count = result.count(),
                                   .dtype = result.dtype(),
                                   .alpha = 1,
                                   .a = left.data(),
                                   .beta = 1,
                                   .b = right.data(),
                                   .y = result.data()});
    return result;
}

}  // namespace

// Access to Variable's state for the engine.
class Graph {
public:
    static VariableState& state(const Variable& variable) { return *variable.state_; }

    // Counts the uses of every leaf that can be reached from the nodes on `stack`.
    static void visit(std::vector<Node*> stack, std::unordered_set<Node*>& seen,
                      std::unordered_map<VariableState*, int64_t>& uses) {
        while (!stack.empty()) {
            Node* node = stack.back();
            stack.pop_back();
            LEVIN_CHECK(node->backward, "autograd", "backward() a second time through the same graph ({})",
                        node->op);
            for (const Edge& input : node->inputs) {
                if (input.leaf.defined())
                    ++uses[&state(input.leaf)];
                else if (input.node && seen.insert(input.node.get()).second)
                    stack.push_back(input.node.get());
            }
        }
    }

    static void run(std::span<const Variable> roots, std::span<const Tensor> seeds) {
        std::unordered_map<VariableState*, int64_t> uses;  // of each leaf, still to come
        std::unordered_set<Node*> seen;
        std::vector<Node*> stack;
        auto later = [](const std::shared_ptr<Node>& a, const std::shared_ptr<Node>& b) {
            return a->order < b->order;
        };
        std::priority_queue<std::shared_ptr<Node>, std::vector<std::shared_ptr<Node>>, decltype(later)> ready(
            later);
        std::unordered_set<Node*> queued;

        for (const Variable& root : roots) {
            const auto& node = state(root).node;
            LEVIN_CHECK(node, "autograd", "backward() from a variable that no op with gradients made");
            if (seen.insert(node.get()).second) stack.push_back(node.get());
            if (queued.insert(node.get()).second) ready.push(node);
        }
        visit(stack, seen, uses);  // nothing is touched before the whole graph is known to be whole
        for (size_t i = 0; i < roots.size(); ++i) {
            VariableState& root = state(roots[i]);
            LEVIN_CHECK(seeds[i].defined() || root.value.count() == 1, "autograd",
                        "the root has {} elements: give the seed", root.value.count());
            if (!root.node->takes_unit_seed || seeds[i].defined())
                root.node->receive(root.output, seeds[i].defined() ? seeds[i] : ones_like(root.value));
        }

        struct Depth {
            Depth() { ++backward_depth; }
            ~Depth() { --backward_depth; }
        } depth;
        while (!ready.empty()) {
            const std::shared_ptr<Node> node = ready.top();
            ready.pop();
            // What nobody gave a gradient stays out: an output that was used, but not for these roots.
            const bool reached = std::any_of(node->gradients.begin(), node->gradients.end(),
                                             [](const Tensor& gradient) { return gradient.defined(); });
            if (reached || node->takes_unit_seed) {
                const OpScope scope(node->op, true);
                Gradients sink(*node);
                node->backward(node->gradients, sink);
            }
            // Release what was saved now: memory falls as backward goes.
            const std::vector<Edge> inputs = std::move(node->inputs);
            node->inputs.clear();
            node->backward = nullptr;
            node->gradients.clear();
            node->slices = {};
            const auto used = [&](const Variable& leaf) {
                VariableState& s = state(leaf);
                if (--uses[&s] > 0 || backward_depth > 1 || !s.hook || s.fresh) return;
                Variable complete = leaf;
                s.hook(complete);
            };
            for (Node::Waiting& waiting : std::exchange(node->waiting, {})) {
                const Tensor& value = node->values.at(waiting.output);
                LEVIN_CHECK(value.defined(), "autograd", "{} did not form its output {} again", node->op,
                            waiting.output);
                const OpScope scope(node->op, true);
                accumulate_gradient(
                    waiting.leaf, [&](Tensor& target, double beta) { waiting.form(target, beta, value); },
                    waiting.forms);
                waiting.form = nullptr;
                used(waiting.leaf);
            }
            node->values.clear();
            for (const Edge& input : inputs) {
                if (input.node) {
                    if (queued.insert(input.node.get()).second) ready.push(input.node);
                } else if (input.leaf.defined()) {
                    const auto onward =
                        std::find(node->handed_onward.begin(), node->handed_onward.end(), &state(input.leaf));
                    if (onward == node->handed_onward.end())
                        used(input.leaf);
                    else
                        node->handed_onward.erase(onward);
                }
            }
        }
    }

    static Edge edge(const Variable& input) {
        const VariableState& s = state(input);
        const bool needed = s.requires_grad;
        return {needed ? s.node : nullptr, s.output,        needed && !s.node ? input : Variable{},
                s.value.shape(),           s.value.dtype(), s.value.device()};
    }
    static Variable make(Tensor value, std::shared_ptr<Node> node, size_t output) {
        Variable variable(std::move(value), true);
        variable.state_->node = std::move(node);
        variable.state_->output = output;
        return variable;
    }
    static bool needs(const Variable& variable) {
        return variable.defined() && state(variable).requires_grad;
    }
};

Variable::Variable(Tensor value, bool requires_grad) : state_(std::make_shared<VariableState>()) {
    state_->value = std::move(value);
    state_->requires_grad = requires_grad;
}

const Tensor& Variable::value() const {
    LEVIN_CHECK(state_, "autograd", "value of an undefined variable");
    return state_->value;
}
bool Variable::requires_grad() const { return state_ && state_->requires_grad; }
bool Variable::is_leaf() const { return !state_->node; }

void Variable::set_value(Tensor value) {
    LEVIN_CHECK(is_leaf() && value.shape() == shape() && value.dtype() == dtype() && value.is_contiguous(),
                "autograd", "set_value: a leaf {} {} cannot become {} {}", to_string(dtype()),
                to_string(shape()), to_string(value.dtype()), to_string(value.shape()));
    state_->value = std::move(value);
}

const Tensor& Variable::gradient() const {
    static const Tensor none;
    return state_->fresh ? none : state_->gradient;
}
DType Variable::gradient_type() const {
    return state_->gradient.defined() ? state_->gradient.dtype() : accumulator_of(dtype());
}
void Variable::clear_gradient() { state_->fresh = true; }
void Variable::set_gradient_written() {
    LEVIN_CHECK(state_->gradient.defined(), "autograd", "no gradient of {} was ever formed",
                to_string(shape()));
    state_->fresh = false;
}
void Variable::set_gradient_buffer(Tensor buffer) {
    const bool right_type = buffer.dtype() == accumulator_of(dtype()) || buffer.dtype() == dtype();
    LEVIN_CHECK(
        buffer.shape() == shape() && right_type && buffer.is_contiguous(), "autograd",
        "a gradient buffer of a {} {} must be contiguous, of its shape, in its accumulator type or its "
        "own; this is {} {}",
        to_string(dtype()), to_string(shape()), to_string(buffer.dtype()), to_string(buffer.shape()));
    state_->gradient = std::move(buffer);
    state_->fresh = true;
}
void Variable::set_gradient_hook(std::function<void(Variable&)> hook) { state_->hook = std::move(hook); }
void Variable::set_formed_again() { state_->formed_again = state_->node != nullptr; }

Tensor Node::gradient_buffer(size_t output) {
    const Shape& shape = output_shapes[output];
    if (slice_starts.empty() || slice_taken[output])
        return Tensor::empty(shape, output_dtypes[output], device);
    slice_taken[output] = true;
    if (!slices.defined()) slices = Tensor::empty(inputs[0].shape, output_dtypes[0], device);
    return slices.narrow(-1, slice_starts[output], shape.back());
}

void Node::receive(size_t output, Tensor gradient) {
    LEVIN_CHECK(gradient.shape() == output_shapes[output] && gradient.dtype() == output_dtypes[output],
                "autograd", "{}: output {} has shape {}, its gradient {}", op, output,
                to_string(output_shapes[output]), to_string(gradient.shape()));
    Tensor& slot = gradients[output];
    if (!slot.defined()) {
        slot = std::move(gradient);
    } else {
        Tensor old = std::move(slot);
        slot = sum_of(std::move(old), gradient);
    }
}

bool Gradients::wanted(size_t input) const { return node_.inputs[input].wanted(); }

Tensor Gradients::buffer(size_t input) const {
    const Edge& edge = node_.inputs[input];
    if (edge.node) return edge.node->gradient_buffer(edge.output);
    return Tensor::empty(edge.shape, edge.dtype, edge.device);
}

void Gradients::add(size_t input, Tensor gradient) {
    const Edge& edge = node_.inputs[input];
    if (!edge.wanted()) return;
    if (edge.node) return edge.node->receive(edge.output, gradient.to(edge.dtype));
    accumulate(
        input,
        [&](Tensor& target, double beta) {
            const Tensor term = gradient.contiguous().to(target.dtype());
            kernels::add(target.stream(), {.count = target.count(),
                                           .dtype = target.dtype(),
                                           .alpha = 1,
                                           .a = term.data(),
                                           .beta = beta,
                                           .b = beta == 0 ? nullptr : target.data(),
                                           .y = target.data()});
        },
        Forms::either);
}

void Gradients::accumulate(size_t input, const std::function<void(Tensor&, double)>& form, Forms forms) {
    const Edge& edge = node_.inputs[input];
    if (!edge.wanted()) return;
    if (!edge.node) return accumulate_gradient(edge.leaf, form, forms);
    Tensor sum = Tensor::empty(edge.shape, accumulator_of(edge.dtype), edge.device);
    form(sum, 0);
    edge.node->receive(edge.output, sum.to(edge.dtype));
}

void Gradients::accumulate(size_t input, const Saved& saved,
                           std::function<void(Tensor&, double, const Tensor&)> form, Forms forms) {
    if (!wanted(input)) return;
    if (saved.value_.defined())
        return accumulate(
            input, [&](Tensor& target, double beta) { form(target, beta, saved.value_); }, forms);
    const Edge& source = node_.inputs[saved.input_];
    const Variable& leaf = node_.inputs[input].leaf;
    source.node->waiting.push_back({source.output, leaf, std::move(form), forms});
    node_.handed_onward.push_back(&Graph::state(leaf));
}

bool Gradients::value_wanted(size_t output) const {
    return std::any_of(node_.waiting.begin(), node_.waiting.end(),
                       [&](const auto& waiting) { return waiting.output == output; });
}

void Gradients::give_value(size_t output, const Tensor& value) {
    node_.values.resize(node_.output_shapes.size());
    node_.values[output] = value;
}

std::vector<Variable> record(const char* op, std::vector<Variable> inputs, std::vector<Tensor> outputs,
                             BackwardFunction backward) {
    const bool needed =
        std::any_of(inputs.begin(), inputs.end(), [](const Variable& v) { return Graph::needs(v); });
    std::vector<Variable> results;
    if (!gradient_mode || !needed) {
        if (leaf_recorder)
            for (const Variable& input : inputs)
                if (Graph::needs(input) && input.is_leaf()) leaf_recorder->note(input);
        for (Tensor& output : outputs) results.emplace_back(std::move(output));
        return results;
    }
    auto node = std::make_shared<Node>();
    node->op = op;
    node->order = next_order++;
    for (const Variable& input : inputs) node->inputs.push_back(Graph::edge(input));
    node->backward = std::move(backward);
    node->gradients.resize(outputs.size());
    node->device = outputs[0].device();
    for (size_t i = 0; i < outputs.size(); ++i) {
        node->output_shapes.push_back(outputs[i].shape());
        node->output_dtypes.push_back(outputs[i].dtype());
        results.push_back(Graph::make(std::move(outputs[i]), node, i));
    }
    return results;
}

Variable record(const char* op, std::vector<Variable> inputs, Tensor output,
                std::function<void(const Tensor&, Gradients&)> backward) {
    return record(op, std::move(inputs), std::vector<Tensor>{std::move(output)},
                  [run = std::move(backward)](std::span<const Tensor> gradients, Gradients& sink) {
                      run(gradients[0], sink);
                  })[0];
}

Variable record_loss(const char* op, std::vector<Variable> inputs, Tensor loss,
                     std::function<void(const Tensor&, Gradients&)> backward) {
    Variable result = record(op, std::move(inputs), std::move(loss), std::move(backward));
    if (const auto node = Graph::state(result).node) node->takes_unit_seed = true;
    return result;
}

std::vector<Variable> record_slices(const char* op, const Variable& input, std::vector<Tensor> outputs) {
    std::vector<int64_t> starts;
    int64_t start = 0;
    for (const Tensor& output : outputs) {
        starts.push_back(start);
        start += output.dim(-1);
    }
    // The node is needed inside its own backward function, which it owns: a weak pointer avoids a cycle.
    auto self = std::make_shared<std::weak_ptr<Node>>();
    auto results = record(op, {input}, std::move(outputs),
                          [self, starts](std::span<const Tensor> gradients, Gradients& sink) {
                              const auto node = self->lock();
                              Tensor whole = node->slices.defined() ? node->slices : sink.buffer(0);
                              for (size_t i = 0; i < gradients.size(); ++i) {
                                  Tensor slice = whole.narrow(-1, starts[i], node->output_shapes[i].back());
                                  if (!gradients[i].defined())
                                      slice.fill(0);
                                  else if (!gradients[i].shares_storage(whole))
                                      slice.copy_from(gradients[i]);
                              }
                              sink.add(0, whole);
                          });
    if (const auto node = Graph::state(results[0]).node) {
        node->slice_starts = starts;
        node->slice_taken.resize(starts.size());
        *self = node;
    }
    return results;
}

void accumulate_gradient(const Variable& leaf, const std::function<void(Tensor&, double)>& form,
                         Forms forms) {
    VariableState& s = Graph::state(leaf);
    const DType wide = accumulator_of(s.value.dtype());
    const auto make = [&] {
        const MemoryScope scope(MemoryCategory::gradients);
        return Tensor::empty(s.value.shape(), wide, s.value.device());
    };
    if (!s.gradient.defined()) s.gradient = make();
    const double beta = s.fresh ? 0 : 1;
    if (forms == Forms::either || s.gradient.dtype() == wide) {
        form(s.gradient, beta);
    } else {
        Tensor sum = make();
        if (!s.fresh) sum.copy_from(s.gradient);
        form(sum, beta);
        s.gradient.copy_from(sum);
    }
    s.fresh = false;
}

void backward(const Variable& root, const Tensor& seed) { Graph::run({&root, 1}, {&seed, 1}); }
void backward(std::span<const Variable> roots, std::span<const Tensor> seeds) { Graph::run(roots, seeds); }

bool gradients_enabled() { return gradient_mode; }
NoGradient::NoGradient() : previous_(gradient_mode) { gradient_mode = false; }
NoGradient::~NoGradient() { gradient_mode = previous_; }

LeafRecorder::LeafRecorder() : previous_(leaf_recorder) { leaf_recorder = this; }
LeafRecorder::~LeafRecorder() { leaf_recorder = previous_; }
void LeafRecorder::note(const Variable& leaf) {
    if (std::none_of(leaves_.begin(), leaves_.end(), [&](const Variable& v) { return v.same_as(leaf); }))
        leaves_.push_back(leaf);
}

SelectiveRecomputation::SelectiveRecomputation(bool on) : previous_(selective) { selective = on; }
SelectiveRecomputation::~SelectiveRecomputation() { selective = previous_; }

Saved::Saved(size_t input, const Variable& variable, const Variable& leaf) : input_(input) {
    if (!gradient_mode) return;  // nothing will run backward
    // The gradient of an inner node cannot wait: that node may run first.
    const bool may_wait = leaf.requires_grad() && leaf.is_leaf();
    if (!(selective && variable.state_->formed_again && may_wait)) value_ = variable.state_->value;
}

}  // namespace levin
