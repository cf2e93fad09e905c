// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package interop exchanges messages with openpcc's ohttp, another implementation of chunked
// Oblivious HTTP over other cryptography (circl), in both directions. It holds only tests, in a
// module of its own: users of sealedchat must not depend on it. From this folder:
//
//	go test ./...
//
// By default openpcc accepts request chunks of at most 4 KiB, where the draft requires 16 KiB. It
// answers a chunked request with an answer that is not in chunks, which the draft forbids, unless
// its handler flushes.
package interop
