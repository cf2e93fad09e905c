# Copyright The sealedchat Authors
# SPDX-License-Identifier: Apache-2.0

"""Checks testdata/ohttp-profile without any of this package's code.

It knows docs/spec-ohttp-profile.md, RFC 9180, RFC 9458 and draft-ietf-hpke-pq, and takes its
primitives from the package cryptography (48 or later, for ML-KEM).

    python3 internal/interop/profile/check.py testdata/ohttp-profile
"""

import base64
import hashlib
import hmac
import json
import pathlib
import re
import sys

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

XWING, X25519 = 0x647A, 0x0020
SIZES = {XWING: (1216, 1120), X25519: (32, 32)}  # of the public key, and of enc
KEY_SIZE = {1: 16, 2: 32}  # of the AEADs
LARGEST = 16384 + 16  # sealed chunk


class Refused(Exception):
    """Something does not open."""


class Truncated(Exception):
    """Something ended before its final chunk."""


class TooLarge(Exception):
    """A chunk is larger than a reader takes."""


def u16(n):
    return n.to_bytes(2, "big")


def extract(salt, key):
    return hmac.new(salt or bytes(32), key, hashlib.sha256).digest()


def expand(prk, info, n):
    out, block, i = b"", b"", 1
    while len(out) < n:
        block = hmac.new(prk, block + info + bytes([i]), hashlib.sha256).digest()
        out, i = out + block, i + 1
    return out[:n]


def labeled_extract(suite, salt, label, key):
    return extract(salt, b"HPKE-v1" + suite + label + key)


def labeled_expand(suite, prk, label, info, n):
    return expand(prk, u16(n) + b"HPKE-v1" + suite + label + info, n)


class Key:
    """A gateway's key, made of its seed."""

    def __init__(self, v):
        self.id, self.kem, self.aeads = v["id"], v["kem"], v["aeads"]
        seed = bytes.fromhex(v["seed"])
        if self.kem == XWING:
            long = hashlib.shake_256(seed).digest(96)
            self.pq = MLKEM768PrivateKey.from_seed_bytes(long[:64])
            self.own = X25519PrivateKey.from_private_bytes(long[64:])
        else:
            self.own = X25519PrivateKey.from_private_bytes(seed)
        self.own_public = self.own.public_key().public_bytes_raw()
        self.public = self.own_public
        if self.kem == XWING:
            self.public = self.pq.public_key().public_bytes_raw() + self.own_public
        pairs = b"".join(u16(1) + u16(a) for a in self.aeads)
        self.config = bytes([self.id]) + u16(self.kem) + self.public + u16(len(pairs)) + pairs
        same("public key", self.public, v["public_key"])
        same("configuration", self.config, v["config"])
        same("fingerprint", hashlib.sha256(self.config).digest(), v["fingerprint"])

    def decapsulate(self, enc):
        shared = b""
        if self.kem == XWING:
            shared, enc = self.pq.decapsulate(enc[:1088]), enc[1088:]
        try:
            dh = self.own.exchange(X25519PublicKey.from_public_bytes(enc))
        except ValueError as e:
            raise Refused("enc") from e
        if self.kem == XWING:
            return hashlib.sha3_256(shared + dh + enc + self.own_public + b"\\.//^\\").digest()
        suite = b"KEM" + u16(self.kem)
        prk = labeled_extract(suite, b"", b"eae_prk", dh)
        return labeled_expand(suite, prk, b"shared_secret", enc + self.own_public, 32)


class Context:
    """The HPKE context of a request (RFC 9180, section 5.1, mode base), and its answer's keys."""

    def __init__(self, keys, body):
        if len(body) < 7:
            raise Truncated("header")
        self.header, self.aead = body[:7], int.from_bytes(body[5:7], "big")
        kem = int.from_bytes(body[1:3], "big")
        key = [k for k in keys if k.id == body[0] and k.kem == kem]
        if not key or body[3:5] != u16(1) or self.aead not in key[0].aeads:
            raise Refused("unknown key or suite")
        size = SIZES[kem][1]
        if len(body) < 7 + size:
            raise Truncated("enc")
        self.enc, self.rest = body[7 : 7 + size], body[7 + size :]
        self.shared = key[0].decapsulate(self.enc)
        self.info = b"message/bhttp chunked request\0" + self.header
        self.suite = b"HPKE" + self.header[1:]
        context = b"\0" + labeled_extract(self.suite, b"", b"psk_id_hash", b"")
        context += labeled_extract(self.suite, b"", b"info_hash", self.info)
        secret = labeled_extract(self.suite, self.shared, b"secret", b"")
        self.size = KEY_SIZE[self.aead]
        self.key = labeled_expand(self.suite, secret, b"key", context, self.size)
        self.nonce = labeled_expand(self.suite, secret, b"base_nonce", context, 12)
        self.exporter = labeled_expand(self.suite, secret, b"exp", context, 32)
        label = b"message/bhttp chunked response"
        self.secret = labeled_expand(self.suite, self.exporter, b"sec", label, self.size)

    def answer_keys(self, nonce):
        prk = extract(self.enc + nonce, self.secret)
        return prk, expand(prk, b"key", self.size), expand(prk, b"nonce", 12)


def chunks(key, base, body):
    """Yields (plain, final, nonce, sealed), and returns after the final chunk alone."""
    count = 0
    while True:
        if not body:
            raise Truncated("no final chunk")
        size = 1 << (body[0] >> 6)
        if len(body) < size:
            raise Truncated("length")
        n = int.from_bytes(body[:size], "big") & ((1 << (8 * size - 2)) - 1)
        body = body[size:]
        final = n == 0
        if final:
            n = len(body)
            if n < 16:
                raise Truncated("final chunk")
        elif n > LARGEST:
            raise TooLarge()
        elif n == 16:
            raise Truncated("empty chunk")
        if len(body) < n:
            raise Truncated("chunk")
        nonce = (int.from_bytes(base, "big") ^ count).to_bytes(12, "big")
        try:
            plain = AESGCM(key).decrypt(nonce, body[:n], b"final" if final else None)
        except InvalidTag as e:
            raise Refused("chunk") from e
        yield plain, final, nonce, body[:n]
        if final:
            return
        body, count = body[n:], count + 1


failures = 0
checks = 0


def check(what, ok):
    global failures, checks
    checks += 1
    if not ok:
        failures += 1
        print("FAILED:", where, what)


def same(what, got, want):
    check(what, got.hex() == want)


def exchanges(vectors):
    global where
    for v in vectors["exchanges"]:
        where = v["name"] + ":"
        q, a = v["request"], v["answer"]
        c = Context([Key(v["key"])], bytes.fromhex(q["sealed"]))
        same("header", c.header, q["header"])
        same("enc", c.enc, q["enc"])
        ephemeral = X25519PrivateKey.from_private_bytes(bytes.fromhex(q["randomness"])[-32:])
        same("ephemeral key", ephemeral.public_key().public_bytes_raw(), q["enc"][-64:])
        same("shared secret", c.shared, q["shared_secret"])
        same("info", c.info, q["info"])
        same("key", c.key, q["key"])
        same("base nonce", c.nonce, q["base_nonce"])
        same("exporter secret", c.exporter, q["exporter_secret"])
        same("id", hashlib.sha256(c.header + c.enc).digest(), q["id"])
        message(c.key, c.nonce, c.rest, q)
        same("exported secret", c.secret, a["secret"])
        body = bytes.fromhex(a["sealed"])
        same("nonce", body[: c.size], a["nonce"])
        prk, key, base = c.answer_keys(body[: c.size])
        same("prk", prk, a["prk"])
        same("key of the answer", key, a["key"])
        same("base nonce of the answer", base, a["base_nonce"])
        message(key, base, body[c.size :], a)


def message(key, base, body, v):
    got = list(chunks(key, base, body))
    check("number of chunks", len(got) == len(v["chunks"]))
    same("message", b"".join(plain for plain, *_ in got), v["message"])
    for (plain, final, nonce, sealed), c in zip(got, v["chunks"]):
        same("plain", plain, c["plain"])
        check("final", final == c["final"])
        same("nonce", nonce, c["nonce"])
        same("sealed", sealed, c["sealed"])
        again = AESGCM(key).encrypt(nonce, plain, b"final" if final else None)
        same("sealed again", again, c["sealed"])


def answers(vectors, exchanges):
    global where
    contexts = {}
    for v in exchanges["exchanges"]:
        where = v["name"] + ":"
        body = bytes.fromhex(v["request"]["sealed"])
        contexts[v["name"]] = Context([Key(v["key"])], body)
    for v in vectors["cases"]:
        where = v["exchange"] + ", " + v["name"] + ":"
        c, body, opened, verdict = contexts[v["exchange"]], bytes.fromhex(v["sealed"]), b"", ""
        try:
            if len(body) < c.size:
                raise Truncated("nonce")
            _, key, base = c.answer_keys(body[: c.size])
            for plain, *_ in chunks(key, base, body[c.size :]):
                opened += plain
            verdict = "complete"
        except Truncated as e:
            verdict = "refused" if "empty" in str(e) else "truncated"
        except Refused:
            verdict = "refused"
        check(verdict, verdict == v["verdict"])
        same("opened", opened, v["opened"])


def requests(vectors):
    """Checks what the seal alone decides: what opens, and the status where something does not."""
    global where
    where = "requests.json:"
    keys = [Key(k) for k in vectors["keys"]]
    for v in vectors["cases"]:
        for d in v["deliveries"]:
            where = v["name"] + ":"
            opened, verdict = False, "whole"
            try:
                c = Context(keys, bytes.fromhex(d["body"]))
                for _ in chunks(c.key, c.nonce, c.rest):
                    opened = True
            except Truncated:
                verdict = "truncated"
            except Refused:
                verdict = "refused"
            except TooLarge:
                verdict = "large"
            if verdict == "whole":
                check("sealed answer", d["outer"] == 200)
            elif opened:
                check("400 inside", (d["outer"], d["inner"], d["unprocessed"]) == (200, 400, True))
            else:
                want = {"truncated": 400, "refused": 422, "large": 413}[verdict]
                check("status %d" % want, d["outer"] == want)
                check("type", (d.get("problem") == "#ohttp-key") == (want == 422))


MEMBERS = {
    "key": r":([A-Za-z0-9+/]{43}=):",
    "sig": r":([A-Za-z0-9+/]{86}==):",
    "created": r"(\d{1,15})",
    "expires": r"(\d{1,15})",
}


def signer(headers, blob, now):
    if len(headers) != 1:
        return None
    seen = {}
    for member in headers[0].split(","):
        name, _, value = member.strip(" \t").partition("=")
        if name in MEMBERS:
            match = re.fullmatch(MEMBERS[name], value)
            if not match or name in seen:
                return None
            seen[name] = match[1]
    if len(seen) != 4:
        return None
    created, expires = int(seen["created"]), int(seen["expires"])
    if not (now - 7200 <= created <= now + 3600 and now < expires):
        return None
    key = base64.b64decode(seen["key"])
    text = b"sealedchat ohttp keys v1\0" + created.to_bytes(8, "big") + expires.to_bytes(8, "big")
    try:
        signature = base64.b64decode(seen["sig"])
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text + blob)
    except (InvalidSignature, ValueError):
        return None
    return hashlib.sha256(key).hexdigest()


def choose(blob):
    """Returns (fingerprint, AEAD) of the best configuration, or None. ValueError: malformed."""
    best, rank = None, None
    if not blob:
        raise ValueError("empty")
    while blob:
        n = int.from_bytes(blob[:2], "big")
        config, blob = blob[2 : 2 + n], blob[2 + n :]
        if len(config) < n or n < 10:
            raise ValueError("length")
        kem = int.from_bytes(config[1:3], "big")
        if kem not in SIZES:
            continue
        size = SIZES[kem][0]
        pairs = config[3 + size + 2 :]
        if len(pairs) % 4 or not pairs or config[3 + size : 5 + size] != u16(len(pairs)):
            raise ValueError("algorithms")
        if kem == XWING:
            check_mlkem(config[3 : 3 + 1184])
        offered = [pairs[i : i + 4] for i in range(0, len(pairs), 4)]
        for preference, aead in enumerate((2, 1)):
            if u16(1) + u16(aead) in offered:
                this = (kem != XWING, preference)
                if rank is None or this < rank:
                    best, rank = (hashlib.sha256(config).hexdigest(), aead), this
                break
    return best


def check_mlkem(key):
    """FIPS 203, 7.2: the coefficients are below q."""
    for i in range(0, 1152, 3):
        a, b, c = key[i : i + 3]
        if a | (b & 15) << 8 >= 3329 or b >> 4 | c << 4 >= 3329:
            raise ValueError("ML-KEM")


def lists(vectors):
    global where
    where = "lists.json:"
    blob = bytes.fromhex(vectors["list"])
    fingerprint = signer([vectors["header"]], blob, vectors["created"])
    check("the list's signer", fingerprint == vectors["signer_fingerprint"])
    for v in vectors["signatures"]:
        where = "signature, " + v["name"] + ":"
        got = signer(v["headers"], bytes.fromhex(v["list"]), v["now"])
        check("signed: %s" % got, got == (fingerprint if v["signed"] else None))
    for v in vectors["lists"]:
        where = "list, " + v["name"] + ":"
        try:
            got = choose(bytes.fromhex(v["list"]))
            check("malformed", not v.get("malformed"))
            want = (v["chosen"], v["aead"]) if "chosen" in v else None
            check("chosen: %s" % (got,), got == want)
        except ValueError:
            check("not malformed", v.get("malformed"))


def main():
    folder = pathlib.Path(sys.argv[1])
    v = {n: json.loads((folder / (n + ".json")).read_text()) for n in
         ("exchanges", "answers", "requests", "lists")}
    for c in v["requests"]["cases"]:
        for d in c["deliveries"]:
            d.setdefault("inner", 0)
            d.setdefault("unprocessed", False)
    exchanges(v["exchanges"])
    answers(v["answers"], v["exchanges"])
    requests(v["requests"])
    lists(v["lists"])
    print("%d checks, %d failed" % (checks, failures))
    sys.exit(1 if failures or checks < 400 else 0)


where = ""
if __name__ == "__main__":
    main()
