// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"fmt"
)

func hardenProcess() error {
	return fmt.Errorf("sealedchat: nothing was done to harden the process, on Windows: %w", errors.ErrUnsupported)
}

func dumpable() bool     { return true }
func coreDumpsOff() bool { return false }
