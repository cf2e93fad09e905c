// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package interop exchanges messages with openpcc's ohttp, another implementation of chunked
// Oblivious HTTP over other cryptography (circl), in both directions. It holds only tests, in a
// module of its own: users of sealedchat must not depend on that. From this folder:
//
//	go test ./...
//
// openpcc takes request chunks of 4 KiB at most unless it is told otherwise, where the draft
// requires 16 KiB, and answers a chunked request with an answer that is not in chunks, where the
// draft forbids it, unless its handler flushes.
package interop
