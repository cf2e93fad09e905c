// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !(linux || darwin || freebsd || netbsd || openbsd || windows)

package locked

// limit is not known here.
func limit() int64 { return -1 }
