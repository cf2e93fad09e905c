// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package nomyo shows that this module and programs that share no code with it understand each
// other: the real Python client (nomyo, from PyPI) talks to [sealedchat.Gateway], and the client
// talks to a server that was written in Python from SPEC.md alone (testdata/server.py). It has
// only tests, which need the build tag interop:
//
//	go test -tags interop ./internal/interop/nomyo/
//
// They run in a virtual environment of Python that they make and fill from PyPI, in some seconds,
// or with the Python that SEALEDCHAT_PYTHON names. That Python needs the packages of
// python_test.go. Without either, the tests are skipped and say so;
// SEALEDCHAT_INTEROP=required makes that a failure.
//
// [sealedchat.Gateway]: https://pkg.go.dev/github.com/seed-017344ad/sealedchat#Gateway
package nomyo
