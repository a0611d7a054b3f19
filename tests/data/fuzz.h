// What a fuzz target of the data room consists of: LLVMFuzzerTestOneInput (link with -fsanitize=fuzzer to
// explore) and good inputs to start from, which fuzz_driver.cpp changes at random for a moment in every test
// run. A target may meet Error(input) and nothing else; a crash or any other exception is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace levin::test {

std::vector<std::string> fuzz_seeds();

// Runs body; Error with Fault::input is an answer, everything else passes through.
template <class Body>
void expect_answer(const Body& body);

}  // namespace levin::test

#include "kernels/base/error.h"

template <class Body>
void levin::test::expect_answer(const Body& body) {
    try {
        body();
    } catch (const Error& error) {
        if (error.fault() != Fault::input) throw;
    }
}
