"""The server's half of SCRAM-SHA-256 (RFC 5802, RFC 7677), which can misbehave, and of md5."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass

from backend import BodyReader, cstring, sasl_continue, sasl_final


@dataclass
class ScramServer:
    """One SASL exchange. The switches make it misbehave: each replaces one piece by what is given.

    `nonce` replaces client nonce + own; `salt_text`, `iterations_text` and `signature_text` the texts after s=, i=, v=;
    `first_text` the whole server-first and `final_text` the whole server-final message.
    """

    password: str
    iterations: int = 4096
    salt: bytes = b"sixteen bytes !!"
    own_nonce: str = "3rfcNHYJY1ZVvWVs7j"
    nonce: str | None = None
    salt_text: str | None = None
    iterations_text: str | None = None
    signature_text: str | None = None
    first_text: str | None = None
    final_text: str | None = None
    mechanism: str = ""
    client_first_bare: str = ""
    server_first: str = ""
    verified: bool = False

    def first(self, initial_response: bytes) -> bytes:
        """AuthenticationSASLContinue for a SASLInitialResponse's body."""
        body = BodyReader(initial_response)
        self.mechanism = body.text()
        client_first = (body.value() or b"").decode()
        header, bare = client_first[:3], client_first[3:]
        assert header in ("n,,", "y,,"), f"client-first begins with {header!r}"
        self.client_first_bare = bare
        client_nonce = bare.split("r=", 1)[1]
        nonce = client_nonce + self.own_nonce if self.nonce is None else self.nonce
        salt = base64.b64encode(self.salt).decode() if self.salt_text is None else self.salt_text
        iterations = str(self.iterations) if self.iterations_text is None else self.iterations_text
        self.server_first = f"r={nonce},s={salt},i={iterations}" if self.first_text is None else self.first_text
        return sasl_continue(self.server_first.encode())

    def final(self, response: bytes) -> bytes:
        """AuthenticationSASLFinal for a SASLResponse's body; `verified` says whether the client's proof is right."""
        text = response.decode()
        without_proof, proof = text.rsplit(",p=", 1)
        assert without_proof.startswith("c=biws,r="), text
        salted = hashlib.pbkdf2_hmac("sha256", self.password.encode(), self.salt, self.iterations)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        stored_key = hashlib.sha256(client_key).digest()
        auth_message = f"{self.client_first_bare},{self.server_first},{without_proof}".encode()
        signature = hmac.digest(stored_key, auth_message, "sha256")
        self.verified = bytes(a ^ b for a, b in zip(client_key, signature, strict=True)) == base64.b64decode(proof)
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        own = base64.b64encode(hmac.digest(server_key, auth_message, "sha256")).decode()
        signature_text = own if self.signature_text is None else self.signature_text
        final = f"v={signature_text}" if self.final_text is None else self.final_text
        return sasl_final(final.encode())


def md5_password(user: str, password: str, salt: bytes) -> bytes:
    """The body of the PasswordMessage that answers AuthenticationMD5Password."""
    inner = hashlib.md5((password + user).encode()).hexdigest()
    return cstring("md5" + hashlib.md5(inner.encode() + salt).hexdigest())
