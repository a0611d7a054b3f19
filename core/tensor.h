// Tensor: a typed, strided view of device memory. Copying a Tensor copies the view, not the memory.
//
// Activations are matrices [tokens, width]; a column slice of one (q of a qkvu projection) is a view whose
// rows are contiguous and row_stride() apart, and every kernel takes it as it is.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/memory.h"
#include "kernels/base/dtype.h"
#include "kernels/base/error.h"
#include "kernels/base/stream.h"

namespace levin {

using Shape = std::vector<int64_t>;
std::string to_string(const Shape& shape);
// Product of the extents; checked against overflow.
int64_t element_count(const Shape& shape);

class Tensor {
public:
    Tensor() = default;  // undefined: "no tensor here"

    static Tensor empty(const Shape& shape, DType dtype, const Device& device = {});
    static Tensor zeros(const Shape& shape, DType dtype, const Device& device = {});
    static Tensor full(const Shape& shape, double value, DType dtype, const Device& device = {});
    // From host values of exactly this element type.
    template <class T>
    static Tensor from(const Shape& shape, const std::vector<T>& values, const Device& device = {}) {
        return from_host(shape, DTypeOf<T>::value, values.data(), values.size(), device);
    }
    // From `count` elements of `dtype` in host memory.
    static Tensor from_host(const Shape& shape, DType dtype, const void* data, size_t count,
                            const Device& device = {});

    bool defined() const { return storage_ != nullptr; }
    const Shape& shape() const { return shape_; }
    int64_t rank() const { return static_cast<int64_t>(shape_.size()); }
    // Extent of an axis; negative axes count from the end.
    int64_t dim(int64_t axis) const { return shape_[static_cast<size_t>(axis < 0 ? axis + rank() : axis)]; }
    int64_t stride(int64_t axis) const {
        return strides_[static_cast<size_t>(axis < 0 ? axis + rank() : axis)];
    }
    int64_t count() const { return count_; }
    size_t bytes() const { return static_cast<size_t>(count_) * size_of(dtype_); }
    DType dtype() const { return dtype_; }
    const Device& device() const { return storage_->device(); }
    Stream stream() const;

    void* data() const;
    template <class T>
    T* data() const {
        LEVIN_CHECK(DTypeOf<T>::value == dtype_, "tensor", "asked for {}, holds {}",
                    to_string(DTypeOf<T>::value), to_string(dtype_));
        return static_cast<T*>(data());
    }

    bool is_contiguous() const;
    // The tensor as a matrix [rows(), dim(-1)] whose rows lie row_stride() elements apart; checked.
    int64_t rows() const { return shape_.empty() ? 1 : (dim(-1) == 0 ? 0 : count_ / dim(-1)); }
    int64_t row_stride() const;

    // Views: the same memory.
    Tensor view(const Shape& shape) const;  // of a contiguous tensor; one extent may be -1
    Tensor narrow(int64_t axis, int64_t start, int64_t length) const;
    // The same memory only through this view; true when nothing else keeps it alive.
    bool owns_alone() const { return storage_.use_count() == 1; }
    bool shares_storage(const Tensor& other) const { return storage_ == other.storage_; }
    Storage& storage() const { return *storage_; }

    // Copies.
    Tensor contiguous() const;  // this one, if it is
    Tensor clone() const;
    Tensor to(DType dtype) const;           // this one, if it has the type
    Tensor to(const Device& device) const;  // this one, if it is there
    void copy_from(
        const Tensor& source);  // converts type and device; shapes must agree in count, rows in layout
    void fill(double value);

    // Host values; synchronises.
    double item() const;
    std::vector<double> to_vector() const;
    template <class T>
    std::vector<T> to_host() const {
        const Tensor host = to(Device{}).contiguous();
        const T* begin = host.data<T>();
        return std::vector<T>(begin, begin + count_);
    }

private:
    std::shared_ptr<Storage> storage_;
    Shape shape_, strides_;
    int64_t offset_ = 0, count_ = 0;
    DType dtype_ = DType::f32;
};

}  // namespace levin
