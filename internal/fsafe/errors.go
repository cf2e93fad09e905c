// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import "errors"

var (
	// ErrInsecurePermissions matches every [*PermissionError].
	ErrInsecurePermissions = errors.New("fsafe: insecure permissions")

	// ErrFileType means that a name has the wrong kind: it must be a regular file (or, for the
	// folder itself, a folder), and not a symbolic link, pipe, socket or device.
	ErrFileType = errors.New("fsafe: wrong kind of file (a link, a pipe, a device, or file and " +
		"folder mixed up)")

	// ErrTooLarge means that a file is larger than the limit of the caller.
	ErrTooLarge = errors.New("fsafe: file too large")

	// ErrChanged means that a file grew or shrank during the read: another program writes to it in
	// place.
	ErrChanged = errors.New("fsafe: file changed while it was read")

	// ErrNotDurable means that a change was made and is visible, but that the fsync of the folder
	// failed: a power cut may undo the change. The caller repeats the operation.
	ErrNotDurable = errors.New("fsafe: changed, but perhaps not yet on the disk")

	// ErrLocked means that another process or goroutine held the lock until the wait ended. The
	// error of the context comes with it.
	ErrLocked = errors.New("fsafe: locked by another process")

	// ErrLockLost means that a lock protects nothing any more: its file was replaced or removed
	// while the lock was held, or the lock was unlocked already.
	ErrLockLost = errors.New("fsafe: lock lost")
)

// PermissionError says that a file or folder is open to others or belongs to another user, and how
// to fix that. It matches [ErrInsecurePermissions].
type PermissionError struct {
	Path   string // absolute
	Reason string // such as "mode is 0644, want 0600"
	// Fix is the command that fixes it, such as "chmod 600 /path/file", quoted for the shell of the
	// system. It is empty if a command would take the file or folder away from others: then Advice
	// says what to do.
	Fix    string
	Advice string // set if there is no Fix
}

func (e *PermissionError) Error() string {
	text := ErrInsecurePermissions.Error() + ": " + e.Path + ": " + e.Reason
	if e.Fix == "" {
		return text + "; " + e.Advice
	}
	return text + "; fix it with: " + e.Fix
}

// Is makes errors.Is(err, ErrInsecurePermissions) true.
func (e *PermissionError) Is(target error) bool { return target == ErrInsecurePermissions }

// Advice for files and folders that others may need. A command would lock the others out.
const (
	adviceFolder = "others may need it as it is: use a folder of its own"
	adviceFile   = "it has other names, which others may need as they are: use a file of its own"
)
