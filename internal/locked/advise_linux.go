// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import "golang.org/x/sys/unix"

// advise keeps pages out of core dumps, and has a forked child find them empty: locks are not
// inherited. (os/exec forks without a copy of the memory; C code in the process may do otherwise.)
// Kernels that know less are not the better for an error.
func advise(b []byte) {
	_ = unix.Madvise(b, unix.MADV_DONTDUMP) // also where memcall did not come to it
	_ = unix.Madvise(b, unix.MADV_WIPEONFORK)
}
