// What a statement's text says of it before the server has.
#pragma once

#include <string>
#include <string_view>

#include "core/result.hpp"

namespace pgpoll::core {

// By its first keyword, past white space, comments, empty statements and parentheses.
verb verb_of(std::string_view sql);

// pgpoll_ and a hash of the text: whoever prepares the same text takes the same name, so that the backends behind a
// pooler agree on what a name means.
std::string statement_name(std::string_view sql);

}  // namespace pgpoll::core
