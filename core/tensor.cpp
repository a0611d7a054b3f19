#include "core/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>

#include "kernels/device_memory.h"
#include "kernels/elementwise.h"

namespace levin {

namespace {

Shape contiguous_strides(const Shape& shape) {
    Shape strides(shape.size(), 1);
    for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
    return strides;
}

}  // namespace

std::string to_string(const Shape& shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

int64_t element_count(const Shape& shape) {
    int64_t count = 1;
    for (const int64_t extent : shape) {
        LEVIN_CHECK(extent >= 0, "tensor", "negative extent in shape {}", to_string(shape));
        LEVIN_CHECK(!__builtin_mul_overflow(count, extent, &count), "tensor", "shape {} is too large",
                    to_string(shape));
    }
    return count;
}

Tensor Tensor::empty(const Shape& shape, DType dtype, const Device& device) {
    Tensor tensor;
    tensor.count_ = element_count(shape);
    tensor.shape_ = shape;
    tensor.strides_ = contiguous_strides(shape);
    tensor.dtype_ = dtype;
    tensor.storage_ = std::make_shared<Storage>(device, tensor.bytes(), MemoryScope::current());
    return tensor;
}

Tensor Tensor::zeros(const Shape& shape, DType dtype, const Device& device) {
    return full(shape, 0, dtype, device);
}

Tensor Tensor::full(const Shape& shape, double value, DType dtype, const Device& device) {
    Tensor tensor = empty(shape, dtype, device);
    tensor.fill(value);
    return tensor;
}

Tensor Tensor::from_host(const Shape& shape, DType dtype, const void* data, size_t count,
                         const Device& device) {
    Tensor tensor = empty(shape, dtype, device);
    LEVIN_CHECK(static_cast<size_t>(tensor.count_) == count, "tensor", "{} values for shape {}", count,
                to_string(shape));
    kernels::copy_bytes(tensor.stream(), device, tensor.data(), Device{}, data, tensor.bytes());
    return tensor;
}

Stream Tensor::stream() const { return kernels::default_stream(device()); }

void* Tensor::data() const {
    return static_cast<char*>(storage_->data()) + static_cast<size_t>(offset_) * size_of(dtype_);
}

bool Tensor::is_contiguous() const {
    int64_t expected = 1;
    for (size_t i = shape_.size(); i-- > 0;) {
        if (shape_[i] != 1 && strides_[i] != expected) return false;
        expected *= shape_[i];
    }
    return true;
}

int64_t Tensor::row_stride() const {
    if (shape_.size() < 2) return dim(-1);
    LEVIN_CHECK(strides_.back() == 1 || shape_.back() == 1, "tensor", "the last axis of {} is strided",
                to_string(shape_));
    int64_t stride = 0, extent = 1;  // of the collapsed leading axes
    for (size_t i = shape_.size() - 1; i-- > 0;) {
        if (shape_[i] == 1) continue;
        if (stride == 0) stride = strides_[i];
        LEVIN_CHECK(strides_[i] == stride * extent, "tensor",
                    "{} with strides {} is no matrix of equally spaced rows", to_string(shape_),
                    to_string(strides_));
        extent *= shape_[i];
    }
    return stride == 0 ? dim(-1) : stride;
}

Tensor Tensor::view(const Shape& shape) const {
    LEVIN_CHECK(is_contiguous(), "tensor", "view of a tensor that is not contiguous");
    Tensor result = *this;
    result.shape_ = shape;
    int64_t known = 1;
    int64_t* open = nullptr;
    for (int64_t& extent : result.shape_) {
        if (extent == -1)
            open = &extent;
        else
            known *= extent;
    }
    if (open) *open = known == 0 ? 0 : count_ / known;
    LEVIN_CHECK(element_count(result.shape_) == count_, "tensor", "{} viewed as {}", to_string(shape_),
                to_string(shape));
    result.strides_ = contiguous_strides(result.shape_);
    return result;
}

Tensor Tensor::narrow(int64_t axis, int64_t start, int64_t length) const {
    const size_t a = static_cast<size_t>(axis < 0 ? axis + rank() : axis);
    LEVIN_CHECK(a < shape_.size() && start >= 0 && length >= 0 && start + length <= shape_[a], "tensor",
                "narrow({}, {}, {}) of {}", axis, start, length, to_string(shape_));
    Tensor result = *this;
    result.shape_[a] = length;
    result.offset_ += start * strides_[a];
    result.count_ = element_count(result.shape_);
    return result;
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
    Tensor result = empty(shape_, dtype_, device());
    result.copy_from(*this);
    return result;
}

Tensor Tensor::to(DType dtype) const {
    if (dtype == dtype_) return *this;
    Tensor result = empty(shape_, dtype, device());
    result.copy_from(*this);
    return result;
}

Tensor Tensor::to(const Device& device) const {
    if (device == this->device()) return *this;
    Tensor result = empty(shape_, dtype_, device);
    result.copy_from(*this);
    return result;
}

void Tensor::copy_from(const Tensor& source) {
    LEVIN_CHECK(count_ == source.count_, "tensor", "copy of {} into {}", to_string(source.shape_),
                to_string(shape_));
    if (count_ == 0) return;
    if (!(device() == source.device())) {
        // Types and layouts are settled on the side of the source; what crosses is one run of bytes.
        const Tensor packed = source.to(dtype_).contiguous();
        if (!is_contiguous()) {
            Tensor here = empty(shape_, dtype_, device());
            here.copy_from(packed);
            return copy_from(here);
        }
        const Stream stream = device().is_cuda() ? this->stream() : source.stream();
        kernels::copy_bytes(stream, device(), data(), source.device(), packed.data(), bytes());
        return;
    }
    const bool flat = is_contiguous() && source.is_contiguous();
    kernels::copy(stream(), {.rows = flat ? 1 : rows(),
                             .columns = flat ? count_ : dim(-1),
                             .x_dtype = source.dtype_,
                             .x = source.data(),
                             .x_stride = flat ? count_ : source.row_stride(),
                             .y_dtype = dtype_,
                             .y = data(),
                             .y_stride = flat ? count_ : row_stride()});
}

void Tensor::fill(double value) {
    if (is_contiguous())
        return kernels::fill(stream(), {.count = count_, .dtype = dtype_, .x = data(), .value = value});
    Tensor block = full({dim(-1)}, value, dtype_, device());
    for (int64_t row = 0; row < rows(); ++row) {
        char* to = static_cast<char*>(data()) + static_cast<size_t>(row * row_stride()) * size_of(dtype_);
        kernels::copy_bytes(stream(), device(), to, device(), block.data(), block.bytes());
    }
}

double Tensor::item() const {
    LEVIN_CHECK(count_ == 1, "tensor", "item() of a tensor of shape {}", to_string(shape_));
    return to_vector()[0];
}

std::vector<double> Tensor::to_vector() const {
    return to(Device{}).contiguous().to(DType::f64).to_host<double>();
}

}  // namespace levin
