// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// fileFault is an error of the file system under one of the sentinels of the module.
type fileFault struct{ sentinel, err error }

func (e *fileFault) Error() string {
	text := strings.ReplaceAll(e.err.Error(), "fsafe: ", "")
	for _, repeated := range []string{"insecure permissions: ", "locked by another process: "} {
		text = strings.TrimPrefix(text, repeated)
	}
	return e.sentinel.Error() + ": " + text
}

func (e *fileFault) Unwrap() []error { return []error{e.sentinel, e.err} }

// Fault wraps an error of this package in the sentinel that users of the module know it by. It
// returns other errors as they are.
func Fault(err error) error {
	for _, m := range []struct{ from, to error }{
		{ErrInsecurePermissions, fault.ErrInsecurePermissions},
		{ErrFileType, fault.ErrInsecurePermissions},
		{ErrLocked, fault.ErrLocked}, {ErrLockLost, fault.ErrLockLost},
	} {
		if errors.Is(err, m.from) {
			return FaultAs(m.to, err)
		}
	}
	return err
}

// FaultAs wraps err in the sentinel that the caller chooses for its files.
func FaultAs(sentinel, err error) error { return &fileFault{sentinel, err} }
