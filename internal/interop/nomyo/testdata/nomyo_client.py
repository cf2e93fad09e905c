# Copyright The sealedchat Authors
# SPDX-License-Identifier: Apache-2.0
"""Does with the real client what stdin says (a list of jobs, see python_test.go), and prints the outcomes as JSON."""

import asyncio
import json
import os
import sys
import threading

import nomyo


async def work(job):
    client = nomyo.SecureChatCompletion(
        base_url=job["base_url"],
        allow_http=job["base_url"].startswith("http:"),
        **{name: job[name] for name in ("api_key", "key_dir", "max_retries") if name in job},
    )
    outcomes, last = [], None
    for request in job["requests"]:
        # null among the messages stands for the message of the answer before
        request["messages"] = [last if m is None else m for m in request["messages"]]
        try:
            response = await client.create(**request)
            last = response["choices"][0]["message"]
            outcomes.append({"response": response})
        except Exception as e:
            outcomes.append({
                "error": type(e).__name__,
                "message": str(e),
                "status": getattr(e, "status_code", None) or 0,
                "details": getattr(e, "error_details", None),
            })
    return outcomes


async def main():
    jobs = json.load(sys.stdin)
    print(json.dumps(await asyncio.gather(*(work(job) for job in jobs))))


# Whatever happens to the test, nothing stays behind.
watchdog = threading.Timer(90, os._exit, (3,))
watchdog.daemon = True
watchdog.start()
asyncio.run(main())
