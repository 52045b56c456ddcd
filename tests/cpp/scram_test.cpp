// SCRAM-SHA-256 against RFC 7677's example, and a server that says something wrong at every step.
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "core/scram.hpp"

namespace pgpoll::core {
namespace {

// RFC 7677, section 3; the user's name is in it there, and left to the StartupMessage here, so the proof differs.
constexpr auto* nonce = "rOprNGfwEbeRWgbNEkqO";
constexpr auto* server_first = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
constexpr auto* client_final =
    "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
constexpr auto* server_final = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

scram_client rfc_client(std::uint32_t cap = 1'000'000) {
  return {"user", "pencil", cap, nonce};
}

TEST(Scram, ExampleOfTheRfc) {
  auto scram = rfc_client();
  EXPECT_EQ(scram.client_first(), std::string("n,,n=user,r=") + nonce);
  scram.server_first(server_first);
  int slices = 1;
  while (!scram.derive(1000)) ++slices;
  EXPECT_GE(slices, 5);
  EXPECT_EQ(scram.client_final(), client_final);
  EXPECT_FALSE(scram.verified());
  scram.server_final(server_final);
  EXPECT_TRUE(scram.verified());
}

TEST(Scram, WrongServerSignature) {
  auto scram = rfc_client();
  scram.client_first();
  scram.server_first(server_first);
  while (!scram.derive(5000)) {
  }
  scram.client_final();
  EXPECT_THROW(scram.server_final("v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), authentication_error);
  EXPECT_FALSE(scram.verified());
}

TEST(Scram, WhatAServerMustNotSay) {
  for (const auto* message :
       {"", "r=", "r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        "r=rOprNGfwEbeRWgbNEkqO,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=0",
        "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=-1",
        "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=99999999999999999999",
        "r=rOprNGfwEbeRWgbNEkqOx,s=*,i=4096", "r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==",
        "m=x,r=rOprNGfwEbeRWgbNEkqOx,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "e=other-error"}) {
    auto scram = rfc_client();
    scram.client_first();
    EXPECT_THROW(scram.server_first(message), authentication_error) << message;
  }
}

TEST(Scram, IterationsAreCapped) {
  auto scram = rfc_client(4095);
  scram.client_first();
  EXPECT_THROW(scram.server_first(server_first), authentication_error);
}

TEST(Scram, TwoClientsHaveTwoNonces) {
  scram_client one("", "x", 10'000);
  scram_client two("", "x", 10'000);
  EXPECT_NE(one.client_first(), two.client_first());
}

// ---- a hostile server (faults.md S5, S6 name the classes)

const std::string ours(nonce);
const std::string salt_and_count = ",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

std::string refusal_of_server_first(const std::string& message, std::uint32_t cap = 1'000'000) {
  auto scram = rfc_client(cap);
  scram.client_first();
  try {
    scram.server_first(message);
  } catch (const authentication_error& error) {
    EXPECT_THROW(scram.derive(1), authentication_error);  // nothing goes on after a refusal
    EXPECT_THROW(scram.server_first(server_first), authentication_error);
    return error.what();
  }
  return "";
}

TEST(Scram, IterationCounts) {
  const std::string before = "r=" + ours + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=";
  for (const char* accepted : {"1", "4096", "999999", "1000000"})
    EXPECT_EQ(refusal_of_server_first(before + accepted), "") << accepted;
  for (const std::string& refused :
       {std::string(), std::string("0"), std::string("00"), std::string("01"), std::string("+1"), std::string("-1"),
        std::string(" 1"), std::string("1 "), std::string("1e3"), std::string("0x10"), std::string("1000001"),
        std::string("2147483648"), std::string("4294967297"), std::string("18446744073709551617"),
        "1" + std::string(300, '0')})
    EXPECT_NE(refusal_of_server_first(before + refused), "") << refused;
  EXPECT_NE(refusal_of_server_first(before + "1000001").find("limit of 1000000"), std::string::npos);
}

TEST(Scram, OneIteration) {
  auto scram = rfc_client();
  scram.client_first();
  scram.server_first("r=" + ours + "x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1");
  EXPECT_TRUE(scram.derive(1));
  EXPECT_TRUE(scram.derive(1));
}

TEST(Scram, Salts) {
  const auto with = [](const std::string& salt) { return "r=" + ours + "x,s=" + salt + ",i=4096"; };
  EXPECT_EQ(refusal_of_server_first(with("AA==")), "");
  EXPECT_EQ(refusal_of_server_first(with("AAA=")), "");
  EXPECT_EQ(refusal_of_server_first(with("AA+/")), "");
  for (const std::string& refused :
       {std::string(), std::string("="), std::string("===="), std::string("A==="), std::string("AA="),
        std::string("AA"), std::string("AAA"), std::string("AAAA="), std::string("AB=="), std::string("AAB="),
        std::string("AA=A"), std::string("AA==AA=="), std::string("AA-_"), std::string(" AA=="), std::string("AA==\n"),
        std::string("A\0A=", 4), std::string(2'000'000, 'A')})
    EXPECT_NE(refusal_of_server_first(with(refused)), "") << refused.substr(0, 20);
}

TEST(Scram, Nonces) {
  EXPECT_EQ(refusal_of_server_first("r=" + ours + "x" + salt_and_count), "");
  for (const std::string& refused :
       {std::string(), ours, ours.substr(0, ours.size() - 1), "x" + ours, "x" + ours + "x", ours + " ", ours + "\x7f",
        ours + "\xc3\xa4", ours + std::string(1, '\0'), ours + std::string(5000, 'x')})
    EXPECT_NE(refusal_of_server_first("r=" + refused + salt_and_count), "") << refused.substr(0, 40);
}

TEST(Scram, Attributes) {
  const std::string r = "r=" + ours + "x";
  const std::string s = "s=W22ZaJ0SNY7soEsUEjb6gQ==";
  EXPECT_EQ(refusal_of_server_first(r + "," + s + ",i=4096,x=optional,Y=2"), "");
  for (const std::string& refused :
       {s + "," + r + ",i=4096", r + ",i=4096," + s, r + "," + s, r, r + "," + s + ",i=4096,",
        "," + r + "," + s + ",i=4096", r + "," + s + ",i=4096,i=1", r + "," + s + ",i=4096,m=x",
        "m=x," + r + "," + s + ",i=4096", r + ",m=x," + s + ",i=4096", r + "," + s + ",i=4096,x",
        r + "," + s + ",i=4096,x=", r + "," + s + ",i=4096,1=2", r + "," + s + ",i=4096,r=again",
        "R" + r.substr(1) + "," + s + ",i=4096", r + ",," + s + ",i=4096"})
    EXPECT_NE(refusal_of_server_first(refused), "") << refused;
}

TEST(Scram, TheServersReason) {
  EXPECT_NE(refusal_of_server_first("e=other-error").find("other-error"), std::string::npos);
  auto scram = rfc_client();
  scram.client_first();
  scram.server_first(server_first);
  scram.derive(4096);
  scram.client_final();
  try {
    scram.server_final("e=invalid-proof\n\xff");
    ADD_FAILURE() << "accepted";
  } catch (const authentication_error& error) {
    EXPECT_NE(std::string(error.what()).find("invalid-proof??"), std::string::npos) << error.what();
  }
}

TEST(Scram, ServerFinalInAnyOtherForm) {
  const std::string good = server_final;
  const auto refused = [](const std::string& message) {
    auto scram = rfc_client();
    scram.client_first();
    scram.server_first("r=" + ours + "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0" + salt_and_count);
    scram.derive(4096);
    scram.client_final();
    try {
      scram.server_final(message);
    } catch (const authentication_error&) {
      return !scram.verified();
    }
    return false;
  };
  EXPECT_FALSE(refused(good));
  EXPECT_FALSE(refused(good + ",x=optional"));
  for (std::size_t i = 0; i < good.size(); ++i) {
    EXPECT_TRUE(refused(good.substr(0, i))) << i;
    auto changed = good;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    EXPECT_TRUE(refused(changed)) << changed;
  }
  for (const std::string& other : {good + ",", good + ",m=x", good + ",v=" + good.substr(2), good + "=", "m=x," + good,
                                   "v=" + std::string(2'000'000, 'A'), std::string("v=AAAA")})
    EXPECT_TRUE(refused(other)) << other.substr(0, 60);
}

TEST(Scram, EveryStepOnceAndInOrder) {
  auto early = rfc_client();
  EXPECT_THROW(early.server_first(server_first), authentication_error);
  auto twice = rfc_client();
  twice.client_first();
  twice.server_first(server_first);
  EXPECT_THROW(twice.server_first(server_first), authentication_error);
  auto skipped = rfc_client();
  skipped.client_first();
  EXPECT_THROW(skipped.server_final(server_final), authentication_error);
  auto underived = rfc_client();
  underived.client_first();
  underived.server_first(server_first);
  underived.derive(100);
  EXPECT_THROW(underived.client_final(), authentication_error);
  auto again = rfc_client();
  again.client_first();
  again.server_first(server_first);
  again.derive(4096);
  again.client_final();
  again.server_final(server_final);
  EXPECT_THROW(again.server_final(server_final), authentication_error);
  EXPECT_FALSE(again.verified());
}

TEST(Scram, AnyByteChangedOrCutIsARefusalOrAnotherProof) {
  const std::string good = server_first;
  for (std::size_t i = 0; i < good.size(); ++i) {
    EXPECT_NE(refusal_of_server_first(good.substr(0, i)) == "", i < good.find(",i=") + 4) << i;
    for (int change : {0x01, 0x20, 0x80}) {
      auto changed = good;
      changed[i] = static_cast<char>(changed[i] ^ change);
      refusal_of_server_first(changed);  // an authentication_error or nothing; sanitizers watch
    }
  }
}

TEST(Scram, LongPasswordsAndSlicesOfAnySize) {
  for (std::size_t size : {std::size_t{0}, std::size_t{63}, std::size_t{64}, std::size_t{65}, std::size_t{5000}}) {
    std::string first;
    for (std::uint32_t slice : {1u, 7u, 4095u, 4096u, 1'000'000u}) {
      scram_client scram("", std::string(size, 'p'), 10'000, nonce);
      scram.client_first();
      scram.server_first(server_first);
      while (!scram.derive(slice)) continue;
      const auto proof = scram.client_final();
      if (first.empty()) first = proof;
      EXPECT_EQ(proof, first) << size << " " << slice;
    }
  }
}

TEST(Md5, KnownAnswer) {
  const std::array<char, 4> salt{'\x01', '\x02', '\x03', '\x04'};
  EXPECT_EQ(md5_password("user", "secret", salt), "md5fccef98e4f1cf6cbe96b743fad4e8bd0");
}

}  // namespace
}  // namespace pgpoll::core
