// The two byte queues of a session. Inbound does the framing: it hands out whole messages and runs of DataRows as
// views into the buffer, which stay valid until the next prepare(). Memory follows the bytes received, never a
// declared length. Outbound counts every byte that ever left, so that "was anything of it sent?" has an answer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "wire/backend.hpp"

namespace pgpoll::core {

class inbound_bytes {
 public:
  // Room for `size` more bytes behind what is there.
  std::span<char> prepare(std::size_t size) {
    if (begin_ == end_) begin_ = end_ = 0;
    if (capacity_ - end_ < size) make_room(size);
    return {data_.get() + end_, size};
  }
  void commit(std::size_t size) { end_ += size; }

  // The largest message taken; a smaller bound holds until the server has proved who it is.
  void limit(std::size_t size) { limit_ = size; }
  std::size_t buffered() const { return end_ - begin_; }

  // The type of the next message, whole or not, once its header is here.
  std::optional<wire::backend> peek_type() const {
    if (buffered() < header_size) return std::nullopt;
    return static_cast<wire::backend>(data_[begin_]);
  }

  // Takes the next message where it is whole.
  bool next(wire::message& out) {
    const auto size = whole();
    if (size == 0) return false;
    out.type = static_cast<wire::backend>(data_[begin_]);
    out.body = {data_.get() + begin_ + header_size, size - header_size};
    begin_ += size;
    return true;
  }

  // Takes the longest run of whole DataRows, each checked against the number of columns.
  std::string_view take_rows(std::size_t columns) {
    const auto start = begin_;
    while (peek_type() == wire::backend::data_row) {
      const auto size = whole();
      if (size == 0) break;
      wire::check_data_row({data_.get() + begin_ + header_size, size - header_size}, columns);
      begin_ += size;
    }
    return {data_.get() + start, begin_ - start};
  }

 private:
  static constexpr auto header_size = wire::header_size;
  static constexpr std::size_t kept = std::size_t{1} << 20;  // a larger buffer is given back once empty

  // The size of the next message with its type byte, 0 where it is not all here.
  std::size_t whole() const {
    if (buffered() < header_size) return 0;
    const char* p = data_.get() + begin_;
    const auto type = static_cast<wire::backend>(p[0]);
    const std::size_t length = wire::load_uint32(p + 1);
    if (length < 4 || length > limit_ || (length > wire::max_short_message && wire::is_short(type)))
      throw wire::protocol_violation(wire::name_of(type) + ": a length of " + std::to_string(length) + " at byte 1");
    if (!wire::known(p[0])) throw wire::protocol_violation("unknown " + wire::name_of(type) + " at byte 0");
    return buffered() < length + 1 ? 0 : length + 1;
  }

  void make_room(std::size_t size) {
    const auto unread = buffered();
    auto capacity = capacity_ > kept && unread < kept / 2 ? std::size_t{0} : capacity_;
    if (capacity < unread + size) capacity = std::max(unread + size, std::min(unread * 2, unread + 64 * kept));
    if (capacity > capacity_ || capacity_ > kept) {
      auto larger = std::make_unique_for_overwrite<char[]>(capacity);
      if (unread != 0) std::memcpy(larger.get(), data_.get() + begin_, unread);
      data_ = std::move(larger);
      capacity_ = capacity;
    } else if (unread != 0) {
      std::memmove(data_.get(), data_.get() + begin_, unread);
    }
    begin_ = 0;
    end_ = unread;
  }

  std::unique_ptr<char[]> data_;
  std::size_t capacity_ = 0;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::size_t limit_ = wire::max_message;
};

class outbound_bytes {
 public:
  std::string& buffer() { return bytes_; }
  std::string_view unsent() const { return std::string_view(bytes_).substr(sent_); }
  bool empty() const { return sent_ == bytes_.size(); }
  std::size_t size() const { return bytes_.size() - sent_; }

  // Positions in the stream of all bytes since the connection began.
  std::uint64_t written_total() const { return sent_total_ + size(); }
  std::uint64_t sent_total() const { return sent_total_; }

  // Drops what was written from this position on; nothing of it has left.
  void take_back(std::uint64_t from) {
    bytes_.resize(bytes_.size() - static_cast<std::size_t>(written_total() - from));
  }

  void sent(std::size_t size) {
    sent_ += size;
    sent_total_ += size;
    if (sent_ == bytes_.size()) {
      bytes_.clear();
      sent_ = 0;
      if (bytes_.capacity() > kept) bytes_.shrink_to_fit();
    } else if (sent_ > kept) {
      bytes_.erase(0, sent_);
      sent_ = 0;
    }
  }

 private:
  static constexpr std::size_t kept = std::size_t{1} << 20;

  std::string bytes_;
  std::size_t sent_ = 0;
  std::uint64_t sent_total_ = 0;
};

}  // namespace pgpoll::core
