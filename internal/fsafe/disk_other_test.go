// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package fsafe

import "errors"

// childFull stands in for the one that mounts a small disk.
func childFull(*Dir) error { return errors.ErrUnsupported }
