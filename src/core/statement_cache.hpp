// The prepared statements of one connection, least recently used first to go. A statement that somebody else
// holds (a request on its way, a user's handle) is pinned by its use count and never evicted.
#pragma once

#include <list>
#include <string_view>
#include <unordered_map>

#include "core/result.hpp"

namespace pgpoll::core {

class statement_cache {
 public:
  explicit statement_cache(std::size_t capacity) : capacity_(capacity == 0 ? 1 : capacity) {}

  statement_ptr find(std::string_view sql) {
    const auto found = index_.find(sql);
    if (found == index_.end()) return nullptr;
    order_.splice(order_.begin(), order_, found->second);
    return *found->second;
  }

  void insert(statement_ptr added) {
    erase(added->sql);
    order_.push_front(std::move(added));
    index_.emplace(order_.front()->sql, order_.begin());
  }

  void erase(std::string_view sql) {
    const auto found = index_.find(sql);
    if (found == index_.end()) return;
    const auto at = found->second;
    index_.erase(found);
    order_.erase(at);
  }

  // Where the cache is full: takes out the least recently used statement that nobody holds; else null.
  statement_ptr evict() {
    if (order_.size() < capacity_) return nullptr;
    for (auto at = order_.end(); at != order_.begin();) {
      --at;
      if (at->use_count() > 1) continue;
      auto victim = *at;
      index_.erase(victim->sql);
      order_.erase(at);
      return victim;
    }
    return nullptr;
  }

 private:
  std::size_t capacity_;
  std::list<statement_ptr> order_;
  std::unordered_map<std::string_view, std::list<statement_ptr>::iterator> index_;
};

}  // namespace pgpoll::core
