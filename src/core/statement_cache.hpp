// The prepared statements of one connection, least recently used first to go. A statement that somebody else
// holds (a request on its way, a user's handle) is pinned by its use count and never evicted.
#pragma once

#include <list>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/result.hpp"

namespace pgpoll::core {

class statement_cache {
 public:
  // Bounds on their number and on the bytes of their texts.
  statement_cache(std::size_t capacity, std::size_t max_bytes) : capacity_(capacity), max_bytes_(max_bytes) {}

  statement_ptr find(std::string_view sql) {
    const auto found = index_.find(sql);
    if (found == index_.end()) return nullptr;
    order_.splice(order_.begin(), order_, found->second);
    return *found->second;
  }

  void insert(statement_ptr added) {
    erase(added->sql);
    bytes_ += added->sql.size();
    order_.push_front(std::move(added));
    index_.emplace(order_.front()->sql, order_.begin());
  }

  void erase(std::string_view sql) {
    if (const auto found = index_.find(sql); found != index_.end()) take(found->second);
  }

  // Where there is no room for another text of `size` bytes: takes out the least recently used statement that nobody
  // holds; else null.
  statement_ptr evict(std::size_t size) {
    if (order_.size() < capacity_ && bytes_ + size <= max_bytes_) return nullptr;
    for (auto at = order_.end(); at != order_.begin();)
      if ((--at)->use_count() == 1) return take(at);
    return nullptr;
  }

  // Whether there are more than the bounds allow beside those that a face's handles keep: who held them has let go.
  bool crowded(const statement_handles& held) const {
    return order_.size() > capacity_ + held.count || bytes_ > max_bytes_ + held.bytes;
  }

  // The server has dropped them all.
  void forget() {
    for (const auto& each : order_) each->stale = true;
    index_.clear();
    order_.clear();
    bytes_ = 0;
  }

 private:
  statement_ptr take(std::list<statement_ptr>::iterator at) {
    auto taken = std::move(*at);
    index_.erase(taken->sql);
    order_.erase(at);
    bytes_ -= taken->sql.size();
    return taken;
  }

  std::size_t capacity_;
  std::size_t max_bytes_;
  std::size_t bytes_ = 0;
  std::list<statement_ptr> order_;
  std::unordered_map<std::string_view, std::list<statement_ptr>::iterator> index_;
};

}  // namespace pgpoll::core
