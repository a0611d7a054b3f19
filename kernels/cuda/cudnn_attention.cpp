#include "kernels/cuda/cudnn_attention.h"

#include <cudnn_frontend.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "kernels/base/error.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/cudnn_library.h"

namespace levin::kernels::cuda {

namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;

enum Uid : int64_t { kQ = 1, kK, kV, kO, kStats, kGradO, kGradQ, kGradK, kGradV };

struct Plan {
    std::unique_ptr<fe::graph::Graph> graph;  // null: cuDNN does not take this shape
    size_t workspace = 0;
};

// Shape, strides and direction: what a plan is made for.
using Key = std::array<int64_t, 13>;

cudnnHandle_t handle_of(int device) {
    static std::map<int, cudnnHandle_t> handles;  // under plans_mutex; never destroyed, as in gemm.cpp
    cudnnHandle_t& handle = handles[device];
    if (!handle && cudnnCreate(&handle) != CUDNN_STATUS_SUCCESS) handle = nullptr;
    return handle;
}

bool fits(const SoftmaxAttentionShape& shape) {
    return shape.dtype == DType::bf16 && !shape.cu_seqlens && shape.query_length == shape.key_length &&
           shape.head_dim % 8 == 0 && shape.head_dim <= 128 && shape.batch > 0 && shape.query_length > 0;
}

std::shared_ptr<Tensor_attributes> heads_of(fe::graph::Graph& graph, const SoftmaxAttentionShape& shape,
                                            Uid uid, int64_t heads, int64_t stride) {
    return graph.tensor(Tensor_attributes()
                            .set_uid(uid)
                            .set_dim({shape.batch, heads, shape.query_length, shape.head_dim})
                            .set_stride({shape.query_length * stride, shape.head_dim, stride, 1})
                            .set_data_type(fe::DataType_t::BFLOAT16));
}

// Log of the sum of exponentials, [batch, heads, length].
void set_statistics(Tensor_attributes& tensor, const SoftmaxAttentionShape& shape) {
    tensor.set_uid(kStats)
        .set_dim({shape.batch, shape.heads, shape.query_length, 1})
        .set_stride({shape.heads * shape.query_length, shape.query_length, 1, 1})
        .set_data_type(fe::DataType_t::FLOAT);
}

void set_output(Tensor_attributes& tensor, const SoftmaxAttentionShape& shape, Uid uid, int64_t heads,
                int64_t stride) {
    tensor.set_output(true)
        .set_uid(uid)
        .set_dim({shape.batch, heads, shape.query_length, shape.head_dim})
        .set_stride({shape.query_length * stride, shape.head_dim, stride, 1})
        .set_data_type(fe::DataType_t::BFLOAT16);
}

std::unique_ptr<fe::graph::Graph> empty_graph() {
    auto graph = std::make_unique<fe::graph::Graph>();
    graph->set_io_data_type(fe::DataType_t::BFLOAT16)
        .set_intermediate_data_type(fe::DataType_t::FLOAT)
        .set_compute_data_type(fe::DataType_t::FLOAT);
    return graph;
}

// Chooses an algorithm; an empty plan when there is none.
Plan finish(std::unique_ptr<fe::graph::Graph> graph, cudnnHandle_t handle) {
    if (graph->validate().is_bad() || graph->build_operation_graph(handle).is_bad() ||
        graph->create_execution_plans({fe::HeurMode_t::A}).is_bad() || graph->check_support().is_bad() ||
        graph->build_plans().is_bad())
        return {};
    int64_t workspace = 0;
    if (graph->get_workspace_size(workspace).is_bad()) return {};
    return {std::move(graph), static_cast<size_t>(workspace)};
}

Plan forward_plan(const SoftmaxAttentionForward& args, cudnnHandle_t handle) {
    const SoftmaxAttentionShape& shape = args.shape;
    auto graph = empty_graph();
    const auto q = heads_of(*graph, shape, kQ, shape.heads, args.q_stride),
               k = heads_of(*graph, shape, kK, shape.kv_heads, args.k_stride),
               v = heads_of(*graph, shape, kV, shape.kv_heads, args.v_stride);
    auto [o, statistics] = graph->sdpa(q, k, v,
                                       fe::graph::SDPA_attributes()
                                           .set_name("attention")
                                           .set_generate_stats(args.log_sum_exp != nullptr)
                                           .set_causal_mask(true)
                                           .set_attn_scale(static_cast<float>(shape.scale)));
    set_output(*o, shape, kO, shape.heads, shape.heads * shape.head_dim);
    if (statistics) {
        set_statistics(*statistics, shape);
        statistics->set_output(true);
    }
    return finish(std::move(graph), handle);
}

Plan backward_plan(const SoftmaxAttentionBackward& args, cudnnHandle_t handle) {
    const SoftmaxAttentionShape& shape = args.shape;
    const int64_t whole = shape.heads * shape.head_dim;
    auto graph = empty_graph();
    const auto q = heads_of(*graph, shape, kQ, shape.heads, args.q_stride),
               k = heads_of(*graph, shape, kK, shape.kv_heads, args.k_stride),
               v = heads_of(*graph, shape, kV, shape.kv_heads, args.v_stride),
               o = heads_of(*graph, shape, kO, shape.heads, whole),
               d_o = heads_of(*graph, shape, kGradO, shape.heads, whole);
    Tensor_attributes statistics;
    set_statistics(statistics, shape);
    auto [dq, dk, dv] = graph->sdpa_backward(q, k, v, o, d_o, graph->tensor(statistics),
                                             fe::graph::SDPA_backward_attributes()
                                                 .set_name("attention_backward")
                                                 .set_causal_mask(true)
                                                 .set_attn_scale(static_cast<float>(shape.scale))
                                                 .set_deterministic_algorithm(true));
    set_output(*dq, shape, kGradQ, shape.heads, args.dq_stride);
    set_output(*dk, shape, kGradK, shape.kv_heads, args.dk_stride);
    set_output(*dv, shape, kGradV, shape.kv_heads, args.dv_stride);
    return finish(std::move(graph), handle);
}

// Runs the plan of `key`, made by `make` at its first use. False when there is none.
template <class Make>
bool run(const Stream& stream, const Key& key, std::unordered_map<int64_t, void*> pointers,
         const Make& make) {
    static std::mutex plans_mutex;
    static std::map<Key, Plan> plans;
    const std::lock_guard lock(plans_mutex);
    if (!cudnn_library_present()) return false;
    const cudaStream_t s = use(stream);
    const cudnnHandle_t handle = handle_of(stream.device.index);
    if (!handle) return false;
    auto found = plans.find(key);
    if (found == plans.end()) found = plans.emplace(key, make(handle)).first;
    const Plan& plan = found->second;
    if (!plan.graph || cudnnSetStream(handle, s) != CUDNN_STATUS_SUCCESS) return false;
    const Scratch workspace(s, plan.workspace);
    auto status = plan.graph->execute(handle, pointers, workspace.as<>());
    LEVIN_CHECK(status.is_good(), "cudnn", "attention failed: {}", status.get_message());
    return true;
}

Key key_of(const Stream& stream, const SoftmaxAttentionShape& shape, int64_t kind,
           const std::array<int64_t, 6>& strides) {
    return {stream.device.index, kind,           shape.batch, shape.query_length, shape.heads,
            shape.kv_heads,      shape.head_dim, strides[0],  strides[1],         strides[2],
            strides[3],          strides[4],     strides[5]};
}

void* writable(const void* pointer) { return const_cast<void*>(pointer); }

}  // namespace

bool cudnn_attention_forward(const Stream& stream, const SoftmaxAttentionForward& args) {
    if (!fits(args.shape)) return false;
    std::unordered_map<int64_t, void*> pointers{
        {kQ, writable(args.q)}, {kK, writable(args.k)}, {kV, writable(args.v)}, {kO, args.o}};
    if (args.log_sum_exp) pointers[kStats] = args.log_sum_exp;
    return run(stream,
               key_of(stream, args.shape, args.log_sum_exp ? 1 : 0,
                      {args.q_stride, args.k_stride, args.v_stride, 0, 0, 0}),
               std::move(pointers), [&](cudnnHandle_t handle) { return forward_plan(args, handle); });
}

bool cudnn_attention_backward(const Stream& stream, const SoftmaxAttentionBackward& args) {
    if (!fits(args.shape)) return false;
    return run(
        stream,
        key_of(stream, args.shape, 2,
               {args.q_stride, args.k_stride, args.v_stride, args.dq_stride, args.dk_stride, args.dv_stride}),
        {{kQ, writable(args.q)},
         {kK, writable(args.k)},
         {kV, writable(args.v)},
         {kO, writable(args.o)},
         {kStats, writable(args.log_sum_exp)},
         {kGradO, writable(args.d_o)},
         {kGradQ, args.dq},
         {kGradK, args.dk},
         {kGradV, args.dv}},
        [&](cudnnHandle_t handle) { return backward_plan(args, handle); });
}

}  // namespace levin::kernels::cuda
