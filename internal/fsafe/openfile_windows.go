// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"os"

	"golang.org/x/sys/windows"
)

// lockedByte is the high half of the offset of the locked byte. No file is that large: on Windows
// others can neither read nor write the bytes that are locked.
const lockedByte = 1 << 30 // times 2^32

// tryLockFile returns false and no error if the caller has to try again.
func tryLockFile(f *os.File) (bool, error) {
	err := withHandle(f, func(h windows.Handle, at *windows.Overlapped) error {
		const now = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
		return windows.LockFileEx(h, now, 0, 1, 0, at)
	})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING) {
		return false, nil
	}
	return err == nil, err
}

func unlockFile(f *os.File) error {
	return withHandle(f, func(h windows.Handle, at *windows.Overlapped) error {
		return windows.UnlockFileEx(h, 0, 1, 0, at)
	})
}

func withHandle(f *os.File, do func(windows.Handle, *windows.Overlapped) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := conn.Control(func(fd uintptr) {
		err = do(windows.Handle(fd), &windows.Overlapped{OffsetHigh: lockedByte})
	})
	if cerr != nil {
		return os.ErrClosed // the only error of Control
	}
	return err
}
