// Reverse-mode automatic differentiation, from scratch.
//
// A Variable is a tensor with a place in the graph. An op computes its output tensor with kernels and calls
// record() with its inputs and a backward function: a lambda whose captures are all that is saved for
// backward. The graph is owned from the outputs: when the last Variable that can reach a node goes, the node
// and what it saved go. backward() also releases each node's saved tensors as soon as its backward function
// has run, so a graph runs backward once.
//
// Gradients of leaves (parameters) are kept in the accumulator type of the value (f32 for bf16) and are
// formed in place by the kernels (GEMM with beta = 1): no temporary per parameter, and accumulation over
// micro-batches is exact. Whoever owns the memory of a gradient may have it in the value's own type instead,
// where there is nothing to accumulate.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace levin {

namespace detail {
struct VariableState;
struct Node;
}  // namespace detail

// What a function that forms the gradient of a leaf can write: the accumulator type alone, or the value's
// type as well, rounded once (matrix products).
enum class Forms { accumulator, either };

class Variable {
public:
    Variable() = default;
    // A leaf. With requires_grad, backward() accumulates into gradient().
    explicit Variable(Tensor value, bool requires_grad = false);

    bool defined() const { return state_ != nullptr; }
    const Tensor& value() const;
    bool requires_grad() const;
    bool is_leaf() const;
    const Shape& shape() const { return value().shape(); }
    int64_t dim(int64_t axis) const { return value().dim(axis); }
    DType dtype() const { return value().dtype(); }

    // Leaves: the same value in other memory (a view into a buffer of several), for every holder of this
    // leaf.
    void set_value(Tensor value);

    // Leaves: the accumulated gradient (accumulator type unless set_gradient_buffer() gave another, shape of
    // the value); undefined before the first backward and after clear_gradient().
    const Tensor& gradient() const;
    DType gradient_type() const;
    // Forgets the gradient but keeps its memory: the next contribution overwrites it (beta = 0), nothing is
    // zeroed.
    void clear_gradient();
    // The gradient's memory holds a contribution that came another way than through backward(): recorded work
    // that was launched again.
    void set_gradient_written();
    // Makes gradient() be this tensor (a view into a bucket); its contents count as cleared. In the
    // accumulator type, or in the value's: then every contribution is rounded, so there should be one.
    void set_gradient_buffer(Tensor buffer);
    // Called at the end of every backward() pass in which this leaf took part, as soon as its gradient of
    // that pass is complete, while the rest of the pass still runs (data parallelism starts reducing here).
    void set_gradient_hook(std::function<void(Variable&)> hook);

    // The backward function of the op that made this can form value() again on its way (see
    // Gradients::value_wanted), so that consumers need not keep it.
    void set_formed_again();

    bool same_as(const Variable& other) const { return state_ == other.state_; }

private:
    friend struct detail::Node;
    friend class Gradients;
    friend class Saved;
    friend class Graph;
    std::shared_ptr<detail::VariableState> state_;
};

// What an op keeps of input number `input` for the gradient of a leaf: its value, or nothing where the value
// will be formed again. Made in the forward pass; `leaf` is the variable whose gradient needs it.
class Saved {
public:
    Saved(size_t input, const Variable& variable, const Variable& leaf);

private:
    friend class Gradients;
    size_t input_;
    Tensor value_;  // undefined: formed again
};

// Handed to a backward function: where the gradients of its op's inputs go. Inputs are numbered as in
// record().
class Gradients {
public:
    // False: nobody needs it, skip the work.
    bool wanted(size_t input) const;
    // A tensor, uninitialised, in the shape and type of the input's value, for a kernel to write the gradient
    // to. It may be strided: a column slice of one wider tensor when the input came from ops::split, which
    // saves a copy.
    Tensor buffer(size_t input) const;
    // The gradient of an input (usually the tensor from buffer()); added to what other consumers gave. Not
    // for leaves whose accumulator type differs; use accumulate() there.
    void add(size_t input, Tensor gradient);
    // For gradients a kernel can sum in place: form(target, beta) must set target = beta * target + gradient,
    // with target contiguous, in the input's shape and in a type that it `forms`. The natural way for
    // parameters.
    void accumulate(size_t input, const std::function<void(Tensor& target, double beta)>& form,
                    Forms forms = Forms::accumulator);
    // The same for a gradient that needs a value the op saved: `form` gets it. Called now, or, where the
    // value was not kept, after the backward function of the op that forms it again (which is always still to
    // come).
    void accumulate(size_t input, const Saved& saved,
                    std::function<void(Tensor& target, double beta, const Tensor& value)> form,
                    Forms forms = Forms::accumulator);

    // For ops with set_formed_again: whether a consumer waits for the value of this output. If so, the
    // backward function must form it and hand it over.
    bool value_wanted(size_t output) const;
    void give_value(size_t output, const Tensor& value);

private:
    friend class Graph;
    friend struct detail::Node;
    explicit Gradients(detail::Node& node) : node_(node) {}
    detail::Node& node_;
};

// `gradients[i]` is the gradient of output i, or undefined when that output was not used. All undefined: the
// op is the root of backward() and its gradient is one.
using BackwardFunction = std::function<void(std::span<const Tensor> gradients, Gradients& inputs)>;

// Puts an op's outputs into the graph. Without gradient mode, or when no input needs a gradient, the outputs
// are plain leaves and `backward` is dropped with everything it captured.
std::vector<Variable> record(const char* op, std::vector<Variable> inputs, std::vector<Tensor> outputs,
                             BackwardFunction backward);
Variable record(const char* op, std::vector<Variable> inputs, Tensor output,
                std::function<void(const Tensor& gradient, Gradients& inputs)> backward);
// A loss that forms its gradients in its forward pass: as the root of backward() without a seed its function
// gets an undefined gradient, which stands for one.
Variable record_loss(const char* op, std::vector<Variable> inputs, Tensor loss,
                     std::function<void(const Tensor& gradient, Gradients& inputs)> backward);
// As above; the outputs are column slices of the input's value, and buffers for their gradients are slices
// too.
std::vector<Variable> record_slices(const char* op, const Variable& input, std::vector<Tensor> outputs);

// Adds to the gradient of a leaf outside of backward(), for ops that form gradients in their forward pass;
// `form` and `forms` as in Gradients::accumulate.
void accumulate_gradient(const Variable& leaf, const std::function<void(Tensor& target, double beta)>& form,
                         Forms forms = Forms::accumulator);

// Runs the graph backward from `root`, with gradient one for a root of one element, or `seed`. Leaves that
// take part accumulate. Nodes run in the reverse of their creation.
void backward(const Variable& root, const Tensor& seed = {});
// Several roots at once.
void backward(std::span<const Variable> roots, std::span<const Tensor> seeds);

// Gradient mode of this thread; on at start.
bool gradients_enabled();
class NoGradient {
public:
    NoGradient();
    ~NoGradient();
    NoGradient(const NoGradient&) = delete;

private:
    bool previous_;
};

// While this lives and no graph is made, notes every leaf that an op meets and that needs a gradient: what a
// region reads beside its inputs, when it is run without a graph to be run again with one. Per thread.
class LeafRecorder {
public:
    LeafRecorder();
    ~LeafRecorder();
    LeafRecorder(const LeafRecorder&) = delete;
    const std::vector<Variable>& leaves() const { return leaves_; }  // each once
    void note(const Variable& leaf);

private:
    std::vector<Variable> leaves_;
    LeafRecorder* previous_;
};

// Rows begin .. begin + rows of a matrix, which recompute() handles at one time.
struct RowSlice {
    int64_t begin = 0, rows = 0;
    bool continues = false;  // takes the state that the slice before left
};
// Computes the rows of slice number `slice`: x are its input rows. `state` is what the slice before left
// (undefined where this one does not continue it); what the region puts there goes to the next one.
using SliceRegion = std::function<Variable(size_t slice, const Variable& x, Variable& state)>;

// Activation recomputation (recompute.cpp): runs `region` over the slices of x in order, keeping nothing but
// x and the states between slices, and in backward again, from the last slice to the first: what one slice
// keeps exists at one time. The slices cover the rows of x in order; the region must be a pure function of
// its inputs and of parameters and makes as many rows as it gets. One slice of everything gives the same
// gradients to the bit as no recomputation, as long as x is used here only; several slices sum the
// parameters' gradients slice by slice. Hooks of parameters fire once, after the first slice. The gradient of
// x takes the memory of the result's gradient where nobody else holds it.
Variable recompute(const SliceRegion& region, const Variable& x, const std::vector<RowSlice>& slices);
// The whole of x at one time.
Variable recompute(const std::function<Variable(const Variable& x)>& region, const Variable& x);

// Selective recomputation: while this lives with `on`, ops do not keep elementwise results (norms, gated
// products) that the op before them forms again in its own backward pass, which reads all it takes anyway:
// the price is one write of the value. The same gradients to the bit.
class SelectiveRecomputation {
public:
    explicit SelectiveRecomputation(bool on);
    ~SelectiveRecomputation();
    SelectiveRecomputation(const SelectiveRecomputation&) = delete;

private:
    bool previous_;
};

}  // namespace levin
