# Copyright The sealedchat Authors
# SPDX-License-Identifier: Apache-2.0
"""A server of the protocol in SPEC.md, written from that page on http.server and cryptography.

    server.py [--form separate|appended] [--bits N] [--chain PEM --key PEM]

prints one line of JSON, {"port": …, "fingerprint": …}, and serves until stdin ends. The line "rotate" on stdin gives it
a new key; it prints the new fingerprint. It checks requests against SPEC.md's rules for writers and answers 418 with
what is wrong. The model that a request names says how it is answered, see Handler.answer; otherwise its messages are
echoed.
"""

import argparse
import base64
import gzip
import hashlib
import http.server
import json
import os
import re
import ssl
import sys
import threading
import time
import urllib.parse
import uuid

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
ALGORITHM = "hybrid-aes256-rsa4096"
TIERS = ["standard", "high", "maximum"]
# What a client has to send, and all that this one may (SPEC.md, section 3; the rest is HTTP's own).
HEADERS = {
    "host", "user-agent", "content-length", "content-type", "accept-encoding",
    "x-payload-id", "x-public-key", "authorization", "x-security-tier",
}


class Refusal(Exception):
    def __init__(self, status, detail):
        super().__init__(detail)
        self.status = status


def demand(condition, detail, status=418):
    if not condition:
        raise Refusal(status, detail)


def no_repeats(pairs):
    demand(len(pairs) == len({name for name, _ in pairs}), "a member stands twice")
    return dict(pairs)


def unbase64(text):
    demand(isinstance(text, str), "base64 that is no string")
    data = base64.b64decode(text, validate=True)
    demand(base64.b64encode(data).decode() == text, "base64 is not canonical")
    return data


def spki(public):
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def generate(bits):
    private = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    return private, hashlib.sha256(spki(private.public_key())).hexdigest()


def open_envelope(body, private):
    """Section 4: the members, and the plaintext."""
    package = json.loads(body.decode("utf-8"), object_pairs_hook=no_repeats)
    demand(set(package) == {
        "version", "algorithm", "encrypted_payload", "encrypted_aes_key", "key_algorithm", "payload_algorithm",
    }, "members of the envelope")
    demand(package["version"] == "1.0" and package["algorithm"] == ALGORITHM, "version or algorithm")
    demand(package["key_algorithm"] == "RSA-OAEP-SHA256" and package["payload_algorithm"] == "AES-256-GCM", "algorithms")
    payload = package["encrypted_payload"]
    demand(set(payload) == {"ciphertext", "nonce", "tag"}, "members of encrypted_payload")
    nonce, tag, ciphertext = (unbase64(payload[name]) for name in ("nonce", "tag", "ciphertext"))
    wrapped = unbase64(package["encrypted_aes_key"])
    demand(len(nonce) == 12 and len(tag) == 16 and len(ciphertext) > 0, "lengths")
    try:
        key = private.decrypt(wrapped, OAEP)
        demand(len(key) == 32, "cannot be decrypted", 400)
        return wrapped, nonce, AESGCM(key).decrypt(nonce, ciphertext + tag, None)
    except (ValueError, InvalidTag):
        raise Refusal(400, "cannot be decrypted")


def seal(plaintext, public, form, damage=None):
    key, nonce = os.urandom(32), os.urandom(12)
    sealed = AESGCM(key).encrypt(nonce, plaintext, None)
    if damage == "tag":
        sealed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    if damage == "text":
        sealed = bytes([sealed[0] ^ 1]) + sealed[1:]
    payload = {"nonce": base64.b64encode(nonce).decode()}
    if form == "separate":
        payload["tag"] = base64.b64encode(sealed[-16:]).decode()
        sealed = sealed[:-16]
    payload["ciphertext"] = base64.b64encode(sealed).decode()
    wrapped = public.encrypt(key[:16] if damage == "key" else key, OAEP)
    if damage == "wrapping":
        wrapped = wrapped[:-1] + bytes([wrapped[-1] ^ 1])
    return json.dumps({
        "version": "1.1" if damage == "version" else "1.0",
        "algorithm": ALGORITHM,
        "encrypted_payload": payload,
        "encrypted_aes_key": base64.b64encode(wrapped).decode(),
        "processed_at": time.time(),
        "a member of tomorrow": {"nested": [1, 2, {}]},
    }, indent=1).encode()


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, options):
        super().__init__(("127.0.0.1", 0), Handler)
        self.options = options
        self.lock = threading.Lock()
        self.private, self.fingerprint = generate(options.bits)
        self.seen = set()  # wrapped keys, nonces, payload ids
        self.counts = {}  # requests by their plaintext
        self.last = {}  # the last sealed answer by client key
        if options.chain:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(options.chain, options.key)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):  # a client may hang up
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, detail, **headers):
        self.reply(status, json.dumps({"detail": detail}).encode(), Content_Type="application/json", **headers)

    def do_GET(self):
        if self.path != "/pki/public_key":
            return self.refuse(404, "Not Found")
        with self.server.lock:
            public = self.server.private.public_key()
        pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.reply(200, pem, Content_Type="text/plain")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            demand(self.path == "/v1/chat/secure_completion", "path", 404)
            self.check_headers()
            if self.headers["Authorization"] == "Bearer wrong":
                raise Refusal(401, "Invalid API key")
            with self.server.lock:
                private = self.server.private
            wrapped, nonce, plaintext = open_envelope(body, private)
            with self.server.lock:
                new = {wrapped, nonce, self.headers["X-Payload-ID"]}
                demand(not new & self.server.seen, "sent before", 409)
                self.server.seen |= new
            request = json.loads(plaintext.decode("utf-8"), object_pairs_hook=no_repeats)
            demand(not {"api_key", "base_url", "security_tier"} & set(request), "members that are spoken outside")
            self.answer(request, plaintext)
        except Refusal as e:
            self.refuse(e.status, str(e))

    def check_headers(self):
        demand({name.lower() for name in self.headers} <= HEADERS, "headers: " + " ".join(self.headers))
        demand(self.headers["Content-Type"] == "application/octet-stream", "Content-Type")
        payload_id = self.headers["X-Payload-ID"]
        demand(str(uuid.UUID(payload_id)) == payload_id and uuid.UUID(payload_id).version == 4, "X-Payload-ID")
        escaped = self.headers["X-Public-Key"]
        demand(re.fullmatch("(%[0-9A-F]{2}|[A-Za-z0-9._~/-])+", escaped), "X-Public-Key's escapes")
        text = urllib.parse.unquote(escaped)
        demand(text.startswith("-----BEGIN PUBLIC KEY-----\n"), "X-Public-Key's block")
        self.client = serialization.load_pem_public_key(text.encode())
        demand(isinstance(self.client, rsa.RSAPublicKey) and 2048 <= self.client.key_size <= 8192, "X-Public-Key's key")
        demand(self.headers.get("X-Security-Tier", "standard") in TIERS, "X-Security-Tier")
        demand(self.headers.get("Authorization", "Bearer x").startswith("Bearer "), "Authorization")

    def answer(self, request, plaintext):
        how, _, rest = request["model"].partition(":")
        form, last = self.server.options.form, request["messages"][-1]
        with self.server.lock:
            n = self.server.counts[plaintext] = self.server.counts.get(plaintext, 0) + 1
        metadata = {
            "payload_id": self.headers["X-Payload-ID"], "processed_at": int(time.time()), "response_status": "success",
            "is_encrypted": True, "encryption_algorithm": ALGORITHM,
            "security_tier": self.headers.get("X-Security-Tier", "standard"),
        }
        message, finish = {"role": "assistant", "content": last["content"]}, "stop"
        if request.get("tools") and last["role"] == "user":
            function = {"name": request["tools"][0]["function"]["name"], "arguments": '{"city": "Zürich"}'}
            message = {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
            finish = "tool_calls"
        completion = {
            "id": "chatcmpl-1", "object": "chat.completion", "created": int(time.time()), "model": request["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
            "_metadata": metadata,
            "attempts": n,
        }
        damage, status, headers = None, 200, {}
        if how == "status":
            headers = {"Retry_After": "7"} if rest in ("429", "503") else {}
            return self.refuse(int(rest), "words of the server", **headers)
        if how == "plain":  # a status of 200 that carries no envelope
            return self.reply(200, json.dumps(completion).encode(), Content_Type="application/json")
        if how == "redirect":
            return self.reply(307, b"", Location="/v1/chat/secure_completion?again")
        if how == "flaky" and n <= 2:  # fails twice: with a status, and by hanging up
            if n == 1:
                return self.refuse(502, "not yet")
            self.close_connection = True
            return self.connection.close()
        if how == "damage":
            damage = rest
        if how == "tier":
            metadata["security_tier"] = rest
        if how == "other request":
            metadata["payload_id"] = str(uuid.uuid4())
        if how == "foreign id":
            metadata["payload_id"] = "openai-compat-1"
        if how == "no metadata":
            del completion["_metadata"]
        if how == "no choices":
            del completion["choices"]
        if how == "error":
            completion = {"error": {"message": "words of the model", "type": "overloaded", "code": "busy"}, "_metadata": metadata}
        if how == "ascii":
            body = json.dumps(completion)
        else:
            body = json.dumps(completion, ensure_ascii=False, separators=(",", ":"))
        sealed = seal(body.encode(), self.client, form, damage)
        client = spki(self.client)
        with self.server.lock:
            if how == "last":  # the answer to the request before, sealed for the same client
                sealed = self.server.last[client]
            else:
                self.server.last[client] = sealed
        if how == "withheld":
            return self.refuse(500, "the answer is kept back")
        if how == "cut":
            sealed = sealed[:-10]
        if how == "gzip":
            sealed, headers = gzip.compress(sealed), {"Content_Encoding": "gzip"}
        self.reply(status, sealed, Content_Type="application/octet-stream", **headers)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--form", choices=["separate", "appended"], default="separate")
    parser.add_argument("--bits", type=int, default=4096)
    parser.add_argument("--chain")
    parser.add_argument("--key")
    server = Server(parser.parse_args())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"port": server.server_address[1], "fingerprint": server.fingerprint}), flush=True)
    for line in sys.stdin:  # ends with whoever started this
        if line.strip() == "rotate":
            private, fingerprint = generate(server.options.bits)
            with server.lock:
                server.private, server.fingerprint = private, fingerprint
            print(json.dumps({"fingerprint": fingerprint}), flush=True)


main()
