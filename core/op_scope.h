// What runs now: names the memory that is taken meanwhile (levin bench step --memory, out-of-memory messages)
// and appears as a range in Nsight Systems.
#pragma once

namespace levin {

struct OpName {
    const char* op = "other";  // a string literal
    bool backward = false;
};

// Per thread; the innermost one counts. The engine opens one around every backward function.
class OpScope {
public:
    explicit OpScope(const char* op, bool backward = false);
    ~OpScope();
    OpScope(const OpScope&) = delete;
    OpScope& operator=(const OpScope&) = delete;
    static OpName current();

private:
    OpName previous_;
};

}  // namespace levin
