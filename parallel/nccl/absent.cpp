// A build without NCCL: one rank may use a GPU, several may not.
#include "kernels/device_memory.h"
#include "parallel/nccl/nccl_communicator.h"

namespace levin::nccl {

namespace {

[[noreturn]] void refuse() {
    LEVIN_REQUIRE(kernels::built_with_cuda(), "device",
                  "GPUs were asked for, but this levin was built without CUDA; use trainer.device=cpu, or "
                  "install the CUDA toolkit and run launch/build again");
    fail(Fault::input, "nccl",
         "several ranks on GPUs need NCCL, and this levin was built without it (no nccl.h was found); "
         "install libnccl-dev and run launch/build again, or start one rank");
}

}  // namespace

bool built() { return false; }
std::string version() { refuse(); }
std::string gpu_identity(int index) { return std::to_string(index); }
std::shared_ptr<GpuCommunicator> make_communicator(Communicator&, const Device&) { refuse(); }

}  // namespace levin::nccl
