// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// fileFault is an error of the file system below one of the module's sentinels.
type fileFault struct{ sentinel, err error }

func (e *fileFault) Error() string {
	text := strings.ReplaceAll(e.err.Error(), "fsafe: ", "")
	for _, repeated := range []string{"insecure permissions: ", "locked by another process: "} {
		text = strings.TrimPrefix(text, repeated)
	}
	return e.sentinel.Error() + ": " + text
}

func (e *fileFault) Unwrap() []error { return []error{e.sentinel, e.err} }

// Fault gives err, an error of this package, the sentinel that users of the module know it by.
// Other errors come back as they are.
func Fault(err error) error {
	for _, m := range []struct{ from, to error }{
		{ErrInsecurePermissions, fault.ErrInsecurePermissions}, {ErrFileType,
			fault.ErrInsecurePermissions},
		{ErrLocked, fault.ErrLocked}, {ErrLockLost, fault.ErrLockLost},
	} {
		if errors.Is(err, m.from) {
			return FaultAs(m.to, err)
		}
	}
	return err
}

// FaultAs gives err the sentinel that the caller's files have for it.
func FaultAs(sentinel, err error) error { return &fileFault{sentinel, err} }
