// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix && !solaris && !aix

package fsafe

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// tryLockFile returns false and no error if the caller has to try again.
func tryLockFile(f *os.File) (bool, error) {
	err := flockFile(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return err == nil, err
}

func unlockFile(f *os.File) error { return flockFile(f, unix.LOCK_UN) }

func flockFile(f *os.File, how int) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := conn.Control(func(fd uintptr) { err = unix.Flock(int(fd), how) })
	if cerr != nil {
		return os.ErrClosed // the only error of Control
	}
	return err
}
