// Collectives built of point-to-point messages, so that the order of every sum is ours.
#pragma once

#include "parallel/mpi/operation.h"

namespace levin::mpi {

// Small tensors: everybody sends everything to everybody (one latency). Others: rank p sums the p-th part of
// the tensor and sends the result to all, 2 (R-1)/R of the bytes each way. The same bits either way. All
// three go by host (hosts.h) where the call knows the hosts; the order of their sums is then that one,
// whatever the size.
std::shared_ptr<Operation> all_reduce(const Call& call, const Tensor& tensor, ReduceOp op);
std::shared_ptr<Operation> reduce_scatter(const Call& call, const Tensor& whole, const Tensor& part,
                                          ReduceOp op);
std::shared_ptr<Operation> all_gather(const Call& call, const Tensor& part, const Tensor& whole);
std::shared_ptr<Operation> broadcast(const Call& call, const Tensor& tensor, int root);
std::shared_ptr<Operation> send(const Call& call, const Tensor& tensor, int to);
std::shared_ptr<Operation> recv(const Call& call, const Tensor& tensor, int from);
std::shared_ptr<Operation> barrier(const Call& call);

}  // namespace levin::mpi
