// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import "golang.org/x/sys/windows"

// limit is the process's minimum working set in bytes, a little less than which VirtualLock locks;
// negative: not known.
func limit() int64 {
	var least, most uintptr
	var flags uint32
	windows.GetProcessWorkingSetSizeEx(windows.CurrentProcess(), &least, &most, &flags)
	if least == 0 {
		return -1
	}
	return int64(least)
}
