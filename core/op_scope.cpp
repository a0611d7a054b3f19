#include "core/op_scope.h"

#include "kernels/device_memory.h"

namespace levin {

namespace {
thread_local OpName current_op;
}

OpScope::OpScope(const char* op, bool backward) : previous_(current_op) {
    current_op = {op, backward};
    kernels::push_range(op);
}
OpScope::~OpScope() {
    kernels::pop_range();
    current_op = previous_;
}
OpName OpScope::current() { return current_op; }

}  // namespace levin
