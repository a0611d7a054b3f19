// Activation recomputation, of all rows at once or slice by slice.
#include "core/autograd.h"

namespace levin {

namespace {

// Runs the slices backward from the last one. `entering` are the states that they start from. The gradient of
// x goes to dx (undefined: not wanted), which may be the memory of dy.
void run_backward(const SliceRegion& region, const std::vector<RowSlice>& slices,
                  const std::vector<Tensor>& entering, const Tensor& x, const Tensor& dy, const Tensor& dx) {
    Tensor d_state;  // of the state that the slice at hand leaves
    for (size_t i = slices.size(); i-- > 0;) {
        const auto [begin, rows, continues] = slices[i];
        Variable input(x.narrow(0, begin, rows), dx.defined());
        Tensor target = dx.defined() ? dx.narrow(0, begin, rows) : Tensor{};
        bool reached = false;
        if (dx.defined())
            // Older than the region's nodes, so it runs after them, when nobody looks at dy any more.
            input = record("recompute", {input}, input.value(),
                           [&target, &reached](const Tensor& gradient, Gradients&) {
                               target.copy_from(gradient);
                               reached = true;
                           });
        const Variable entered = continues ? Variable(entering[i], true) : Variable();
        Variable state = entered;
        std::vector<Variable> roots{region(i, input, state)};
        std::vector<Tensor> seeds{dy.narrow(0, begin, rows)};
        if (d_state.defined() && state.requires_grad()) {
            roots.push_back(state);
            seeds.push_back(d_state);
        }
        if (roots[0].requires_grad()) backward(roots, seeds);
        if (target.defined() && !reached) target.fill(0);
        d_state = continues ? entered.gradient() : Tensor{};
    }
}

}  // namespace

Variable recompute(const SliceRegion& region, const Variable& x, const std::vector<RowSlice>& slices) {
    const Tensor value = x.value();
    int64_t covered = 0;
    for (const RowSlice& slice : slices) {
        LEVIN_CHECK(slice.begin == covered && (covered > 0 || !slice.continues), "recompute",
                    "a slice begins at row {} after {} rows", slice.begin, covered);
        covered += slice.rows;
    }
    LEVIN_CHECK(covered == value.rows(), "recompute", "slices of {} rows for an input {}", covered,
                to_string(value.shape()));

    Tensor result;
    std::vector<Tensor> entering;
    LeafRecorder recorder;  // written to by the ops
    {
        const NoGradient off;
        Variable state;
        for (size_t i = 0; i < slices.size(); ++i) {
            const auto [begin, rows, continues] = slices[i];
            if (!continues) state = {};
            entering.push_back(continues ? state.value() : Tensor{});
            const Tensor part = region(i, Variable(value.narrow(0, begin, rows)), state).value();
            LEVIN_CHECK(part.dim(0) == rows, "recompute", "{} rows became {}", rows, to_string(part.shape()));
            if (slices.size() == 1) {
                result = part;
                break;
            }
            const OpScope scope("recompute");
            if (!result.defined())
                result = Tensor::empty({value.dim(0), part.dim(-1)}, part.dtype(), part.device());
            result.narrow(0, begin, rows).copy_from(part);
        }
    }
    std::vector<Variable> inputs{x};
    for (const Variable& leaf : recorder.leaves())
        if (!leaf.same_as(x)) inputs.push_back(leaf);
    return record("recompute", std::move(inputs), result,
                  [region, slices, entering, value](const Tensor& dy, Gradients& sink) {
                      const bool in_place = dy.owns_alone() && dy.is_contiguous() &&
                                            dy.shape() == value.shape() && dy.dtype() == value.dtype();
                      Tensor dx;
                      if (sink.wanted(0))
                          dx = in_place ? dy : Tensor::empty(value.shape(), value.dtype(), value.device());
                      run_backward(region, slices, entering, value, dy, dx);
                      if (dx.defined()) sink.add(0, dx);
                  });
}

Variable recompute(const std::function<Variable(const Variable&)>& region, const Variable& x) {
    return recompute([region](size_t, const Variable& rows, Variable&) { return region(rows); }, x,
                     {{.begin = 0, .rows = x.value().rows()}});
}

}  // namespace levin
