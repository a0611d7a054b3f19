// The Python modelling files (remote_code/*.py), held by the program itself.
#pragma once

#include <string_view>
#include <utility>
#include <vector>

namespace levin {

// (file name, text)
const std::vector<std::pair<std::string_view, std::string_view>>& remote_code();

}  // namespace levin
