# Copyright The sealedchat Authors
# SPDX-License-Identifier: Apache-2.0
"""Makes and loads key files with the real client as stdin says (a list of steps, see keys_test.go), and prints the
outcomes as JSON. The fingerprints in them are computed here, from what the client would send as its public key."""

import asyncio
import hashlib
import json
import os
import sys
import threading
import uuid

from cryptography.hazmat.primitives import serialization
from nomyo.SecureCompletionClient import SecureCompletionClient


async def step(s):
    url = s.get("base_url", "https://127.0.0.1:1")
    client = SecureCompletionClient(router_url=url, max_retries=0)
    outcome = {}
    try:
        if "generate" in s:
            if "bits" in s:
                client.key_size = s["bits"]
            client.generate_keys(save_to_file=True, key_dir=s["generate"], password=s.get("password"))
        else:
            client.load_keys(s["private"], s.get("public"), s.get("password"))
        public = serialization.load_pem_public_key(client.public_key_pem.encode())
        der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        outcome["fingerprint"] = hashlib.sha256(der).hexdigest()
        outcome["bits"] = client.private_key.key_size
        if "request" in s:
            outcome["response"] = await client.send_secure_request(s["request"], str(uuid.uuid4()))
    except Exception as e:
        outcome["error"] = type(e).__name__
        outcome["message"] = str(e)
        outcome["status"] = getattr(e, "status_code", None) or 0
    return outcome


async def main():
    print(json.dumps([await step(s) for s in json.load(sys.stdin)]))


# Whatever happens to the test, nothing stays behind.
watchdog = threading.Timer(90, os._exit, (3,))
watchdog.daemon = True
watchdog.start()
asyncio.run(main())
