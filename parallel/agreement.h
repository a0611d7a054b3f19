// Small decisions that all ranks take alike. Every call is collective; on a process alone it costs nothing.
#pragma once

#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace levin {

// The same answer everywhere. any(): "somebody was told to stop, so all stop at this step".
bool any_agree(Communicator& ranks, bool mine);
bool all_agree(Communicator& ranks, bool mine);
int64_t max_over(Communicator& ranks, int64_t mine);
double max_over(Communicator& ranks, double mine);
double sum_over(Communicator& ranks, double mine);  // in rank order

// `text` of `root`, on every rank.
std::string broadcast_text(Communicator& ranks, const std::string& text, int root = 0);
// Everybody's text, by rank, on every rank.
std::vector<std::string> gather_texts(Communicator& ranks, const std::string& text);
// The text of the lowest rank that has one, on every rank; "" where nobody has: "what went wrong, if
// anything".
std::string first_text(Communicator& ranks, const std::string& text);

// Throws Error(communication) on every rank unless all gave the same value: "the resolved config differs
// between rank 0 and rank 3". `value` may be long (a config) or a hash of it.
void require_same(Communicator& ranks, const std::string& what, const std::string& value);

}  // namespace levin
