// Every interleaving of send, reply, error, cancel and loss, for a few requests at once.
//
// A state is reached by playing its actions from the beginning, breadth first, so that what breaks a rule is told with
// the shortest way to it. States whose keys are equal are one: the key holds everything that can still matter.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <string>
#include <unordered_set>
#include <vector>

#include "world.hpp"

namespace {

using namespace pgpoll::test;

struct counts {
  std::uint64_t programs = 0, states = 0, transitions = 0;
};

std::string name_of(const program& made) {
  std::string out;
  for (const auto each : made.kinds) out.append(out.empty() ? "" : ", ").append(name_of(each));
  out.append(", max_pipeline ").append(std::to_string(made.max_pipeline));
  return out.append(made.grace ? ", grace" : "");
}

class explorer {
 public:
  explicit explorer(const program& made) : program_(made) {}

  // Whether every state keeps the rules; the first that does not is reported.
  bool explore(counts& total) {
    ++total.programs;
    nodes_.push_back({});
    {
      world first(program_);
      nodes_[0].enabled = first.enabled();
      remember(first);
    }
    for (std::uint32_t at = 0; at < nodes_.size(); ++at) {
      path_to(at);
      for (unsigned which = 0; which < actions; ++which) {
        if ((nodes_[at].enabled >> which & 1) == 0) continue;
        ++total.transitions;
        if (!step(at, which)) return false;
      }
    }
    total.states += nodes_.size();
    return true;
  }

 private:
  struct node {
    std::uint32_t parent = 0;
    std::uint32_t enabled = 0;
    std::uint32_t by = 0;
  };
  struct hash_of_hash {
    std::size_t operator()(const std::pair<std::uint64_t, std::uint64_t>& key) const { return key.first; }
  };

  void path_to(std::uint32_t at) {
    path_.clear();
    for (; at != 0; at = nodes_[at].parent) path_.push_back(nodes_[at].by);
  }

  bool step(std::uint32_t from, unsigned which) {
    try {
      world here(program_);
      for (auto each = path_.rbegin(); each != path_.rend(); ++each) here.act(*each);
      here.act(which);
      if (!remember(here)) return true;
      node made;
      made.parent = from;
      made.by = which;
      made.enabled = here.enabled();
      if (made.enabled != 0) nodes_.push_back(made);
      if (here.finished()) here.expect_usable();
      return true;
    } catch (const std::exception& error) {
      std::string told;
      for (auto each = path_.rbegin(); each != path_.rend(); ++each) told.append(name_of(action(*each))).append(", ");
      ADD_FAILURE() << error.what() << "\n  " << name_of(program_) << "\n  " << told << name_of(action(which));
      return false;
    }
  }

  bool remember(const world& here) {
    here.key(key_);
    const std::hash<std::string_view> hash;
    const auto low = hash(key_);
    key_ += "the other half";
    return seen_.emplace(low, hash(key_)).second;
  }

  program program_;
  std::vector<node> nodes_;
  std::vector<unsigned> path_;
  std::string key_;
  std::unordered_set<std::pair<std::uint64_t, std::uint64_t>, hash_of_hash> seen_;
};

TEST(explored, probe) {
  const auto* const list = std::getenv("KINDS");
  program made;
  for (std::string_view rest = list; !rest.empty();) {
    made.kinds.push_back(static_cast<kind>(std::stoi(std::string(rest))));
    const auto at = rest.find(',');
    rest = at == std::string_view::npos ? "" : rest.substr(at + 1);
  }
  made.halves = std::getenv("HALVES") != nullptr;
  made.grace = std::getenv("GRACE") != nullptr;
  counts total;
  explorer(made).explore(total);
  std::cout << name_of(made) << ": " << total.states << " states, " << total.transitions << " transitions\n";
}

}  // namespace
