// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package locked

// advise has nothing to do: memcall has done everything that the system offers.
func advise([]byte) {}
