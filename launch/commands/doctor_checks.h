// What `levin doctor` looks at on this machine.
#pragma once

#include <string>
#include <vector>

namespace levin {

enum class Health { ok, warn, missing };
std::string to_string(Health health);

struct Finding {
    std::string name;  // "processor", "memory", ..
    Health health = Health::ok;
    std::string value;   // what is there
    std::string advice;  // what to do; empty when ok
};

// Each looks and measures; none throws because of what it finds. Together about three seconds.
Finding check_processor();
Finding check_memory();
Finding check_threads();
Finding check_matrix_products();  // measures f32 and bf16
Finding check_mpi();
std::vector<Finding> check_gpus();
Finding check_disk();  // writes 64 MiB to the current folder, and deletes them
Finding check_shared_memory();
Finding check_open_files();
Finding check_terminal();

}  // namespace levin
