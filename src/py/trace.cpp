#include "py/trace.hpp"

#include <fcntl.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "py/errors.hpp"
#include "wire/trace.hpp"

namespace pgpoll::py {
namespace {

bool is_set(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
}

// As PQtrace writes it: local time, microseconds, a tab.
std::string time_stamp() {
  timeval now{};
  gettimeofday(&now, nullptr);
  tm local{};
  localtime_r(&now.tv_sec, &local);
  char date[32];
  const auto size = strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &local);
  char fraction[16];
  std::snprintf(fraction, sizeof fraction, ".%06ld\t", static_cast<long>(now.tv_usec));
  return std::string(date, size) + fraction;
}

// A file that connections and processes may share: each call appends whole lines.
class trace_file : public net::tap {
 public:
  trace_file(int fd, std::string path, bool show_values) : fd_(fd), path_(std::move(path)), tracer_(show_values) {}
  ~trace_file() override { close(); }

  void sent(std::string_view bytes) override { write(tracer_.sent(bytes)); }
  void received(std::string_view bytes) override { write(tracer_.received(bytes)); }

 private:
  void write(std::string_view lines) {
    if (fd_ < 0 || lines.empty()) return;
    const auto stamp = time_stamp();
    std::string out;
    while (!lines.empty()) {
      const auto end = lines.find('\n') + 1;
      out += stamp;
      out += lines.substr(0, end);
      lines.remove_prefix(end);
    }
    for (std::string_view left = out; !left.empty();) {
      const auto size = ::write(fd_, left.data(), left.size());
      if (size < 0 && errno == EINTR) continue;
      if (size < 0) return give_up();
      left.remove_prefix(static_cast<std::size_t>(size));
    }
  }

  // A full disk must not end a connection: it is told once, and the trace ends.
  void give_up() {
    PyErr_SetFromErrnoWithFilename(PyExc_OSError, path_.c_str());
    PyErr_WriteUnraisable(nullptr);
    close();
  }

  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

  int fd_;
  std::string path_;
  wire::tracer tracer_;
};

}  // namespace

PyObject* trace_of(PyObject*, PyObject* args) {
  PyObject* chunks = nullptr;
  int show_values = 0;
  if (!PyArg_ParseTuple(args, "O!p:_trace", &PyList_Type, &chunks, &show_values)) return nullptr;
  return guarded([&]() -> PyObject* {
    wire::tracer tracer(show_values != 0);
    std::string lines;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(chunks); ++i) {
      const char* direction = nullptr;
      const char* data = nullptr;
      Py_ssize_t size = 0;
      if (!PyArg_ParseTuple(PyList_GET_ITEM(chunks, i), "sy#", &direction, &data, &size)) return nullptr;
      const std::string_view bytes(data, static_cast<std::size_t>(size));
      lines += *direction == 'F' ? tracer.sent(bytes) : tracer.received(bytes);
    }
    return decoded(lines).release();
  });
}

bool trace_if_asked(net::client& client) {
  const char* path = std::getenv("PGPOLL_TRACE");
  if (path == nullptr || *path == '\0') return true;
  const int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY, 0600);
  if (fd < 0) {
    raise_interface_error("PGPOLL_TRACE: could not open \"" + std::string(path) + "\": " + net::error_text(errno));
    return false;
  }
  client.tap_with(std::make_unique<trace_file>(fd, path, is_set("PGPOLL_TRACE_VALUES")));
  return true;
}

}  // namespace pgpoll::py
