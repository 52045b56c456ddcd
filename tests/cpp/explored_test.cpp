// Every interleaving of send, reply, error, cancel and loss, for a few requests at once.
//
// A state is reached by playing its actions from the beginning, breadth first, so that what breaks a rule is told with
// the shortest way to it. States whose keys are equal are one: the key holds everything that can still matter.
//
//   PGPOLL_EXPLORED=3                       programs of so many requests, instead of two
//   PGPOLL_EXPLORED_KINDS=known,script      of these kinds; or all
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "world.hpp"

namespace {

using namespace pgpoll::test;

struct counts {
  std::uint64_t programs = 0, states = 0, finished = 0;
  std::array<std::uint64_t, actions> taken{};
};

std::string name_of(const program& made) {
  std::string out;
  for (const auto each : made.kinds) out.append(out.empty() ? "" : ", ").append(name_of(each));
  out.append(", max_pipeline ").append(std::to_string(made.max_pipeline));
  out.append(", statement_cache_size ").append(std::to_string(made.statement_cache_size));
  return out.append(made.grace ? ", grace" : "");
}

class explorer {
 public:
  explorer(const program& made, counts& total) : program_(made), total_(total) {}

  // To the first state that breaks a rule, which is reported.
  void explore() {
    ++total_.programs;
    {
      world beginning(program_);
      discover(beginning, 0, actions);
    }
    for (std::uint32_t at = 0; at < nodes_.size(); ++at) {
      path_to(at);
      for (unsigned which = 0; which < actions; ++which)
        if ((nodes_[at].enabled >> which & 1) != 0 && !step(at, which)) return;
    }
    total_.states += nodes_.size();
  }

 private:
  struct node {
    std::uint32_t parent = 0;
    std::uint32_t enabled = 0;
    unsigned by = 0;
  };
  using key = std::pair<std::uint64_t, std::uint64_t>;
  struct hash_of_key {
    std::size_t operator()(const key& of) const { return of.first; }
  };

  void path_to(std::uint32_t at) {
    path_.clear();
    for (; at != 0; at = nodes_[at].parent) path_.push_back(nodes_[at].by);
  }

  bool step(std::uint32_t from, unsigned which) {
    ++total_.taken[which];
    try {
      world here(program_);
      for (auto each = path_.rbegin(); each != path_.rend(); ++each) here.act(*each);
      here.act(which);
      if (which < end_of_file) discover(here, from, which);
      return true;
    } catch (const std::exception& error) {
      std::string told;
      for (auto each = path_.rbegin(); each != path_.rend(); ++each) told.append(name_of(action(*each))).append(", ");
      ADD_FAILURE() << error.what() << "\n  " << name_of(program_) << "\n  " << told << name_of(action(which));
      return false;
    }
  }

  // Enters a state where it is new. Losses are tried once for all states that are the same to them.
  void discover(world& here, std::uint32_t from, unsigned by) {
    text_.clear();
    here.client_key(text_);
    const bool new_client = remember();
    here.answers_key(text_);
    const bool new_answers = remember();
    here.server_key(text_);
    if (!remember()) return;
    auto can = here.enabled();
    if (!new_client) can &= ~(1u << end_of_file | 1u << reset);
    if (!new_answers) can &= ~(1u << fatal);
    nodes_.push_back({from, can, by});
    if (!here.finished()) return;
    ++total_.finished;
    here.expect_usable();
  }

  bool remember() {
    const std::hash<std::string_view> hash;
    const auto size = text_.size();
    const auto first = hash(text_);
    text_ += "the other half, or the other key";
    const auto second = hash(text_);
    text_.resize(size);
    return seen_.emplace(first, second).second;
  }

  program program_;
  counts& total_;
  std::vector<node> nodes_;
  std::vector<unsigned> path_;
  std::string text_;
  std::unordered_set<key, hash_of_key> seen_;
};

void report(const std::string& what, const counts& total) {
  std::uint64_t transitions = 0;
  std::cout << what << ": " << total.programs << " programs, " << total.states << " states, " << total.finished
            << " ends;";
  for (unsigned which = 0; which < actions; ++which) {
    transitions += total.taken[which];
    std::cout << ' ' << name_of(action(which)) << ' ' << total.taken[which] << ',';
  }
  std::cout << " transitions " << transitions << std::endl;
}

const char* const usual =
    "fresh,shared,prepare,fail_parse,fail_late,copy,script,copy_script,begin,known,fail_sync,close";
const char* const few = "fresh,known,copy,script";
const char* const transactional =
    "insert,known_insert,stale_insert,dropped_insert,begin,begin_execute,begin_script,commit,rollback,fail_describe";
const char* const all_lasting =
    "stream,fresh_stream,whole_stream,fail_stream,cursor,copy_in,fail_copy_in,refused_copy_in,copy_out,broken_copy_out,"
    "batch,fail_batch";
const char* const lasting = "stream,whole_stream,cursor,copy_in,refused_copy_in,copy_out,batch";
const char* const beside_lasting = "known";
#ifdef __SANITIZE_ADDRESS__
constexpr bool sanitized = true;  // ten times slower: fewer kinds
#else
constexpr bool sanitized = false;
#endif
const char* const combined = sanitized ? "known,copy,script" : usual;
const char* const combined_otherwise = sanitized ? "known,copy" : few;
const char* const combined_lasting = sanitized ? "whole_stream,copy_in,copy_out" : lasting;
const char* const combined_transactions = sanitized ? "stale_insert,begin,rollback" : transactional;

// The kinds to be combined: those that the environment names, or `otherwise`.
std::vector<kind> kinds_of(const char* otherwise) {
  std::vector<kind> out;
  const char* const chosen = std::getenv("PGPOLL_EXPLORED_KINDS");
  const bool all = chosen != nullptr && std::string_view(chosen) == "all";
  const auto list = std::string(",").append(chosen != nullptr ? chosen : otherwise).append(",");
  for (int i = 0; i < static_cast<int>(kind::kinds); ++i) {
    const auto name = std::string(",").append(name_of(kind(i))).append(",");
    if (all || list.find(name) != std::string::npos) out.push_back(kind(i));
  }
  return out;
}

std::size_t requests_of_environment() {
  const char* const chosen = std::getenv("PGPOLL_EXPLORED");
  return chosen == nullptr ? 2 : std::stoul(chosen);
}

// Each program whose first request is of the parameter's kind.
void explore_all(kind first, const std::vector<kind>& kinds, program made) {
  std::vector<std::size_t> others(requests_of_environment() - 1);
  counts total;
  for (bool more = true; more && !testing::Test::HasFailure();) {
    made.kinds = {first};
    for (const auto each : others) made.kinds.push_back(kinds[each]);
    explorer(made, total).explore();
    more = false;
    for (auto& each : others) {  // as an odometer
      more = ++each < kinds.size();
      if (more) break;
      each = 0;
    }
  }
  report(name_of(first), total);
}

class explored : public testing::TestWithParam<kind> {};

TEST_P(explored, every_interleaving) {
  program made;
  made.halves = !sanitized && requests_of_environment() < 4;
  explore_all(GetParam(), kinds_of(combined), made);
}

// The same in other settings, for fewer kinds.
class explored_otherwise : public testing::TestWithParam<kind> {
 protected:
  static void explore(program made) {
    made.halves = false;
    explore_all(GetParam(), kinds_of(combined_otherwise), made);
  }
};

TEST_P(explored_otherwise, one_at_a_time) {
  program made;
  made.max_pipeline = 1;
  explore(made);
}

TEST_P(explored_otherwise, a_cache_of_one_statement) {
  program made;
  made.statement_cache_size = 1;
  explore(made);
}

TEST_P(explored_otherwise, cancelled_by_grace) {
  program made;
  made.grace = true;
  explore(made);
}

// What leaves something behind, and what transactions do to it.
class explored_transactions : public testing::TestWithParam<kind> {};

TEST_P(explored_transactions, every_interleaving) {
  program made;
  made.halves = false;
  explore_all(GetParam(), kinds_of(combined_transactions), made);
}

class explored_alone : public testing::TestWithParam<kind> {};

TEST_P(explored_alone, every_interleaving) {
  program made;
  made.kinds = {GetParam()};
  made.halves = !sanitized;
  counts total;
  explorer(made, total).explore();
  report(name_of(GetParam()), total);
}

// What lasts, beside others. With PGPOLL_EXPLORED_KINDS also beside each other, and what fails.
class explored_lasting : public testing::TestWithParam<kind> {};

TEST_P(explored_lasting, every_interleaving) {
  program made;
  made.halves = false;
  explore_all(GetParam(), kinds_of(beside_lasting), made);
}

TEST_P(explored_lasting, cancelled_by_grace) {
  program made;
  made.halves = false;
  made.grace = true;
  explore_all(GetParam(), kinds_of(beside_lasting), made);
}

// A statement that is stored though its describing was cancelled, and then needed where nothing may run again.
TEST(explored_names, one_that_exists_within_a_transaction) {
  program made;
  made.kinds = {kind::begin, kind::shared, kind::shared};
  made.halves = false;
  counts total;
  explorer(made, total).explore();
  report("a name", total);
}

// Three requests, for the one case that needs them: a cancel strikes an insert in somebody's place, and the beginning
// of a transaction is behind it.
#ifndef __SANITIZE_ADDRESS__
TEST(explored_by_grace, no_second_attempt_inside_of_anothers_transaction) {
  program made;
  made.kinds = {kind::known, kind::known_insert, kind::begin};
  made.halves = false;
  made.grace = true;
  counts total;
  explorer(made, total).explore();
  report("a struck insert", total);
}
#endif

const auto name_of_kind = [](const auto& each) { return std::string(name_of(each.param)); };
INSTANTIATE_TEST_SUITE_P(first, explored, testing::ValuesIn(kinds_of(combined)), name_of_kind);
INSTANTIATE_TEST_SUITE_P(first, explored_otherwise, testing::ValuesIn(kinds_of(combined_otherwise)), name_of_kind);

INSTANTIATE_TEST_SUITE_P(only, explored_alone, testing::ValuesIn(kinds_of(all_lasting)), name_of_kind);
INSTANTIATE_TEST_SUITE_P(first, explored_lasting, testing::ValuesIn(kinds_of(combined_lasting)), name_of_kind);
INSTANTIATE_TEST_SUITE_P(first, explored_transactions, testing::ValuesIn(kinds_of(combined_transactions)),
                         name_of_kind);

}  // namespace
