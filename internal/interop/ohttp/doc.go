// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package interop exchanges messages with two other implementations of chunked Oblivious HTTP over
// other cryptography, in both directions: openpcc's ohttp (circl), and the Rust crates ohttp and
// bhttp, by an author of the drafts. It holds only tests, in a module of its own: users of
// sealedchat must not depend on it. From this folder:
//
//	go test ./...
//	cargo build --release --manifest-path rust/Cargo.toml --target-dir /tmp/rust
//	SEALEDCHAT_RUST_PEER=/tmp/rust/release/peer go test ./...
//
// By default openpcc accepts request chunks of at most 4 KiB, where the draft requires 16 KiB. It
// answers a chunked request with an answer that is not in chunks, which the draft forbids, unless
// its handler flushes. Its client sends chunks only for a body whose length it does not know.
//
// The Rust crate has no AES-256-GCM in its default build, so it speaks with gateways that offer
// AES-128-GCM as well; at a configuration without a suite of its own its client panics. Of a list
// of configurations its client takes the last one that it knows, which is the one for X25519 in a
// list of this package: TestRustList. A program that wants X-Wing gives it that configuration
// alone.
package interop
