// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build solaris || aix

package fsafe

import (
	"errors"
	"os"
)

func tryLockFile(*os.File) (bool, error) { return false, errors.ErrUnsupported }
func unlockFile(*os.File) error          { return errors.ErrUnsupported }
