// Threads for CPU kernels: OpenMP, so that our loops and oneDNN's share one pool of threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>

namespace levin {

// Calls body(begin, end) on disjoint ranges that cover [0, count). A range holds at least `grain` items, so
// that small loops stay on the calling thread. The split depends on the number of threads alone.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
    if (count <= 0) return;
    const int64_t wanted = std::max<int64_t>(1, count / std::max<int64_t>(1, grain));
    const int threads = static_cast<int>(std::min<int64_t>(wanted, omp_get_max_threads()));
    if (threads <= 1 || omp_in_parallel()) {
        body(int64_t{0}, count);
        return;
    }
    std::exception_ptr error;  // an exception may not leave an OpenMP region
#pragma omp parallel num_threads(threads)
    {
        const int64_t n = omp_get_num_threads(), i = omp_get_thread_num();
        const int64_t begin = count * i / n, end = count * (i + 1) / n;
        try {
            if (begin < end) body(begin, end);
        } catch (...) {
#pragma omp critical
            error = std::current_exception();
        }
    }
    if (error) std::rethrow_exception(error);
}

}  // namespace levin
