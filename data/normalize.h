// Unicode normalisation form C (UAX #15), which some BPE tokenizers apply before anything else.
#pragma once

#include <string>
#include <string_view>

namespace levin {

// True when the text is surely in form C already (the quick check of UAX #15 section 9); false means it may
// not be.
bool is_nfc_quick(std::string_view text);
// `text` must be valid UTF-8. Canonical decomposition, reordering of marks, composition.
std::string to_nfc(std::string_view text);

}  // namespace levin
