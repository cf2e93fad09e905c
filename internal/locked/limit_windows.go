// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import "golang.org/x/sys/windows"

// limit returns the minimum working set of the process in bytes. VirtualLock locks a little less
// than that. A negative number means that the limit is unknown.
func limit() int64 {
	var least, most uintptr
	var flags uint32
	windows.GetProcessWorkingSetSizeEx(windows.CurrentProcess(), &least, &most, &flags)
	if least == 0 {
		return -1
	}
	return int64(least)
}
