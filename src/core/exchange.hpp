// The coroutine type of one dialogue, its promise, and the steps a dialogue is made of.
//
// An exchange is written top-down in the order of the protocol manual's page and holds only the happy path. It is
// resumed by session::run alone. While suspended its promise says what it waits for; errors of the server and the
// loss of the connection never resume it: the session completes its operation and destroys its frame.
//
// No co_await within a conditional expression: g++ 12 evaluates and destroys its operands wrongly.
#pragma once

#include <coroutine>
#include <cstdint>
#include <exception>
#include <list>
#include <optional>
#include <string>
#include <utility>

#include "core/result.hpp"

namespace pgpoll::core {

class session;

enum class waiting {
  nothing,
  write_turn,
  reply_turn,
  message,
  rows,
  arguments,
  items,
  computing,
  credit,
  end_of_stream
};

struct exchange {
  using promise_type = exchange_promise;
  std::coroutine_handle<exchange_promise> handle;
};

// The node of an exchange in the session's queues.
struct exchange_promise {
  template <typename... Arguments>
  exchange_promise(session&, const operation_ptr& of, const Arguments&...) : op(of), place(1, of) {}

  operation_ptr op;
  std::list<operation_ptr> place;        // among the completed ones: to end needs no memory
  std::list<operation_ptr> preamble;     // its commands that have not completed yet: their places among those
  std::coroutine_handle<> resume_point;  // the innermost suspended frame
  waiting wait = waiting::nothing;
  std::optional<std::uint64_t> first_byte;  // its place in the stream of bytes, once written
  bool in_replies = false;
  bool had_turn = false;     // to write; it waits for another, having given way
  bool opens = false;        // it has, or had, a preamble
  bool outermost = false;    // its first command is BEGIN
  bool synced = false;       // its ReadyForQuery has been asked for
  bool sync_waits = false;   // for the answer to Execute
  bool describing = false;   // a statement that the cache doesn't have yet
  bool parsed = false;       // that one: the server has it
  bool closing = false;      // statements that the cache doesn't have any more; not answered yet
  bool bound = false;        // BindComplete has come: the statement may have run
  bool draining = false;     // it has its error; what is left is read to ReadyForQuery
  bool copy_failed = false;  // CopyFail was written: only an error can answer it
  failure_ptr error;
  raw_result* sink = nullptr;            // of data_rows
  bool rows_came = false;                // into it, kept or not
  bool answered = false;                 // supply() or refuse() has been called
  std::optional<std::string> arguments;  // empty where refused
  std::exception_ptr thrown;

  // Whose messages come now.
  operation& current() const { return preamble.empty() ? *op : *preamble.front(); }

  std::coroutine_handle<exchange_promise> handle() {
    return std::coroutine_handle<exchange_promise>::from_promise(*this);
  }

  exchange get_return_object() { return {handle()}; }
  std::suspend_always initial_suspend() noexcept {
    resume_point = handle();
    return {};
  }
  std::suspend_always final_suspend() noexcept { return {}; }
  void return_void() noexcept {}
  void unhandled_exception() noexcept { thrown = std::current_exception(); }
};

// A part of a dialogue that several exchanges share; awaited at once by its exchange, and destroyed with it.
template <typename T>
class step {
 public:
  struct promise_type {
    std::coroutine_handle<> continuation;
    std::optional<T> value;
    std::exception_ptr thrown;

    step get_return_object() { return step(std::coroutine_handle<promise_type>::from_promise(*this)); }
    std::suspend_always initial_suspend() noexcept { return {}; }
    auto final_suspend() noexcept {
      struct back {
        bool await_ready() noexcept { return false; }
        std::coroutine_handle<> await_suspend(std::coroutine_handle<promise_type> self) noexcept {
          return self.promise().continuation;
        }
        void await_resume() noexcept {}
      };
      return back{};
    }
    void return_value(T result) { value = std::move(result); }
    void unhandled_exception() noexcept { thrown = std::current_exception(); }
  };

  step(step&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  step& operator=(step&&) = delete;
  ~step() {
    if (handle_) handle_.destroy();
  }

  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> caller) noexcept {
    handle_.promise().continuation = caller;
    return handle_;
  }
  T await_resume() {
    if (handle_.promise().thrown) std::rethrow_exception(handle_.promise().thrown);
    return std::move(*handle_.promise().value);
  }

 private:
  explicit step(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  std::coroutine_handle<promise_type> handle_;
};

}  // namespace pgpoll::core
