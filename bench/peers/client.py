# Copyright The sealedchat Authors
# SPDX-License-Identifier: Apache-2.0
"""The real Python client: URL, bytes, concurrency, requests. SSL_CERT_FILE says whom it trusts."""
import asyncio, json, logging, resource, sys, time, warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
from nomyo import SecureChatCompletion

url, size, concurrency, requests = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
text = ("All work and no play makes Jack a dull boy.\n" * (size // 44 + 1))[:size]


def cpu():
    u = resource.getrusage(resource.RUSAGE_SELF)
    return (u.ru_utime + u.ru_stime) * 1000


async def main():
    client = SecureChatCompletion(base_url=url)
    wall = []

    async def chat():
        begin = time.perf_counter()
        answer = await client.create(model="model", messages=[{"role": "user", "content": text}])
        assert answer["choices"][0]["message"]["content"] == text
        wall.append((time.perf_counter() - begin) * 1000)

    await chat()
    wall.clear()
    print("ready", flush=True)
    sys.stdin.readline()
    left = iter(range(requests))
    start = cpu()

    async def run():
        for _ in left:
            await chat()

    await asyncio.gather(*(run() for _ in range(concurrency)))
    used = cpu() - start
    status = open("/proc/self/status").read()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps({"CPU": used / requests, "Wall": wall, "Peak": peak}))


asyncio.run(main())
