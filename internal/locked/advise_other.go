// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package locked

// advise: what the system can do beyond locking, memcall has done.
func advise([]byte) {}
