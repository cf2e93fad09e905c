// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package erase

// RuntimeSecret reports whether this build has runtime/secret.
const RuntimeSecret = false

func do(f func()) { deep(f, false) }
