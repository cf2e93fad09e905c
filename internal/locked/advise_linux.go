// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import "golang.org/x/sys/unix"

// advise keeps pages out of core dumps, and makes them empty in a forked child, because locks are
// not inherited. (os/exec forks without a copy of the memory; C code in the process may do
// otherwise.) Errors of older kernels are ignored: nobody could act on them.
func advise(b []byte) {
	_ = unix.Madvise(b, unix.MADV_DONTDUMP) // also if memcall did not do it
	_ = unix.Madvise(b, unix.MADV_WIPEONFORK)
}
