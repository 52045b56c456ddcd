#include "core/keyword.hpp"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <new>

namespace pgpoll::core {
namespace {

std::string_view after_comment(std::string_view sql) {
  int depth = 0;
  std::size_t at = 0;
  do {
    if (sql.substr(at, 2) == "/*") {
      ++depth;
      at += 2;
    } else if (sql.substr(at, 2) == "*/") {
      --depth;
      at += 2;
    } else {
      ++at;
    }
  } while (depth > 0 && at < sql.size());
  return sql.substr(std::min(at, sql.size()));
}

std::string_view from_first_keyword(std::string_view sql) {
  for (;;) {
    const auto at = sql.find_first_not_of(" \t\n\r\f\v;(");
    if (at == std::string_view::npos) return {};
    sql.remove_prefix(at);
    if (sql.starts_with("--")) {
      const auto line = sql.find_first_of("\r\n");
      if (line == std::string_view::npos) return {};
      sql.remove_prefix(line);
    } else if (sql.starts_with("/*")) {
      sql = after_comment(sql);
    } else {
      return sql;
    }
  }
}

bool begins_with(std::string_view text, std::string_view keyword) {
  if (text.size() < keyword.size()) return false;
  for (std::size_t i = 0; i < keyword.size(); ++i)
    if ((text[i] | 0x20) != keyword[i]) return false;
  return true;
}

}  // namespace

verb verb_of(std::string_view sql) {
  constexpr std::string_view queries[] = {"select", "insert", "update", "delete", "merge", "with", "values", "table"};
  const auto text = from_first_keyword(sql);
  if (begins_with(text, "copy")) return verb::copy;
  const bool query = std::any_of(std::begin(queries), std::end(queries),
                                 [&](std::string_view keyword) { return begins_with(text, keyword); });
  return query ? verb::query : verb::other;
}

std::string statement_name(std::string_view sql) {
  constexpr std::size_t used = 16;  // bytes
  std::array<unsigned char, EVP_MAX_MD_SIZE> hash{};
  if (EVP_Digest(sql.data(), sql.size(), hash.data(), nullptr, EVP_sha256(), nullptr) != 1) throw std::bad_alloc();
  std::string name = "pgpoll_";
  for (std::size_t i = 0; i < used; ++i) {
    name += "0123456789abcdef"[hash[i] >> 4];
    name += "0123456789abcdef"[hash[i] & 15];
  }
  return name;
}

}  // namespace pgpoll::core
