// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

// HardenProcess makes it harder for other processes of the same user to read this one's memory. It is for the program,
// not for libraries: it changes the whole process, for good, and nothing in this package calls it. Call it first in main.
//
// On Linux the process becomes undumpable (PR_SET_DUMPABLE), and its core dumps are off (RLIMIT_CORE, which importing this
// package has set to 0 already: memguard does). After that
//
//   - nobody but root can attach a debugger, read /proc/PID/mem, or get a core, and root still can;
//   - the files in /proc/PID belong to root: the program itself can no longer read its own /proc/self/environ or write
//     /proc/self/oom_score_adj, unless it is root, and ps and perf of the same user see less;
//   - programs that this one starts inherit the limit of 0 on cores, not the rest.
//
// On other Unix systems core dumps are switched off, and on Windows nothing is; the error then says so, and is
// errors.ErrUnsupported. Idempotent. [MemoryReport] tells what holds.
func HardenProcess() error { return hardenProcess() }
