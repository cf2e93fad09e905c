// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import "errors"

var (
	// ErrInsecurePermissions is what every [*PermissionError] matches.
	ErrInsecurePermissions = errors.New("fsafe: insecure permissions")

	// ErrFileType means that a name is not what it has to be: a regular file (or, for the folder
	// itself, a folder), and not a symbolic link, pipe, socket or device.
	ErrFileType = errors.New("fsafe: wrong kind of file (a link, a pipe, a device, or file and " +
		"folder mixed up)")

	// ErrTooLarge means that a file has more bytes than the caller reads at most.
	ErrTooLarge = errors.New("fsafe: file too large")

	// ErrChanged means that a file grew or shrank while it was read: somebody writes to it in
	// place.
	ErrChanged = errors.New("fsafe: file changed while it was read")

	// ErrNotDurable means that a change was made and is visible, but that the folder could not be
	// fsynced: a power cut may undo it. Repeat the operation.
	ErrNotDurable = errors.New("fsafe: changed, but perhaps not yet on the disk")

	// ErrLocked means that somebody else held a lock until the waiting ended. It comes with the
	// context's error.
	ErrLocked = errors.New("fsafe: locked by another process")

	// ErrLockLost means that a lock no longer protects anything: its file was replaced or removed
	// while it was held, or it was unlocked already.
	ErrLockLost = errors.New("fsafe: lock lost")
)

// PermissionError says that a file or folder is open to others or belongs to another user, and how
// to fix that. It matches [ErrInsecurePermissions].
type PermissionError struct {
	Path   string // absolute
	Reason string // such as "mode is 0644, want 0600"
	// Fix is the command that fixes it, such as "chmod 600 /path/file", quoted for the system's
	// shell. It is empty where a command would take the file or folder away from others: see
	// Advice.
	Fix    string
	Advice string // what to do where there is no Fix
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

// What to do with what others may need. A command would lock them out.
const (
	adviceFolder = "others may need it as it is: use a folder of its own"
	adviceFile   = "it has other names, which others may need as they are: use a file of its own"
)
