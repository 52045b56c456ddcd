#include "core/result.hpp"

#include <algorithm>
#include <cstring>

namespace pgpoll::core {

failure_ptr make_failure(enum failure::kind kind, std::string message, std::shared_ptr<const server_message> server,
                         failure_ptr cause) {
  return std::make_shared<const failure>(failure{kind, std::move(message), std::move(server), std::move(cause)});
}

void row_store::append(const char* run, std::size_t size) {
  constexpr std::size_t largest = std::size_t{1} << 20;
  if (chunks_.empty() || chunks_.back().capacity - chunks_.back().used < size) {
    // The first chunk fits exactly: most results have one run. Later ones grow with the result.
    const auto capacity = std::max(size, std::min(bytes_, largest));
    chunk added;
    added.data = std::make_unique_for_overwrite<char[]>(capacity);
    added.capacity = capacity;
    added.first_row = rows_;
    chunks_.push_back(std::move(added));
  }
  auto& last = chunks_.back();
  std::memcpy(last.data.get() + last.used, run, size);
  for (const auto end = last.used + size; last.used < end;) {  // what memory runs out for is not counted
    if (last.rows % stride == 0) last.offsets.push_back(static_cast<std::uint32_t>(last.used));
    const auto length = row_length(last.data.get() + last.used);
    last.used += length;
    bytes_ += length;
    ++last.rows;
    ++rows_;
  }
}

const char* row_store::row(std::size_t index) const {
  const auto after = std::upper_bound(chunks_.begin(), chunks_.end(), index,
                                      [](std::size_t i, const chunk& each) { return i < each.first_row; });
  const auto& found = *std::prev(after);
  const auto within = index - found.first_row;
  const char* p = found.data.get() + found.offsets[within / stride];
  for (auto left = within % stride; left > 0; --left) p += row_length(p);
  return p;
}

}  // namespace pgpoll::core
