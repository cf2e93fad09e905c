// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// lockFlag is what flock opens lock files with. It makes none, and opens a link instead of
// following it.
const lockFlag = os.O_RDWR | windows.O_FILE_FLAG_OPEN_REPARSE_POINT

// openRoot tells a file from a missing folder: os.OpenRoot has no error value for a file.
func openRoot(path string) (*os.Root, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		if fi, serr := os.Stat(path); serr == nil && !fi.IsDir() {
			return nil, &fs.PathError{Op: "open", Path: path, Err: ErrFileType}
		}
	}
	return root, err
}

// patience is how long the package waits for a program that opened a file without sharing it (virus
// scanners, backups, Windows before 10.1607 itself). Meanwhile nobody can replace or open the file.
const patience = 2 * time.Second

// patiently repeats f while another program has the file open.
func patiently(f func() error, busy func(error) bool) error {
	deadline := time.Now().Add(patience)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := f()
		if err == nil || !busy(err) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(wait)
	}
}

// inUse reports whether err says that another process has the file open without sharing it.
func inUse(err error) bool {
	return errors.Is(err, windows.ERROR_SHARING_VIOLATION) ||
		errors.Is(err, windows.ERROR_DELETE_PENDING)
}

// renameIn renames within root. Windows reports a target that is open as access denied, like one
// that the user must not touch.
func renameIn(root *os.Root) func(from, to string) error {
	return func(from, to string) error {
		return patiently(func() error { return root.Rename(from, to) },
			func(err error) bool {
				return inUse(err) || errors.Is(err, windows.ERROR_ACCESS_DENIED)
			})
	}
}

func baseDir() (string, error) { return os.UserCacheDir() } // %LocalAppData%

// mkdirPrivate makes a folder for the current user alone. Its access list is protected from the
// parent's, and files and folders in it inherit it. SYSTEM and the administrators are left out:
// backups read through their privilege, and an access list would not keep either from taking the
// file.
func mkdirPrivate(path string) error {
	user, err := currentUser()
	if err != nil {
		return err
	}
	sd, err := windows.SecurityDescriptorFromString(fmt.Sprintf("O:%[1]sD:P(A;OICI;FA;;;%[1]s)",
		user))
	if err != nil {
		return err
	}
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	sa := &windows.SecurityAttributes{SecurityDescriptor: sd}
	sa.Length = uint32(unsafe.Sizeof(*sa))
	if err := windows.CreateDirectory(p, sa); err != nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return nil
}

func rmdir(path string) error {
	p, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	return windows.RemoveDirectory(p)
}

// openRegular opens a regular file in the folder. Of a link it opens the link itself, and refuses
// it.
func (d *Dir) openRegular(name string, flag int) (*os.File, error) {
	var f *os.File
	err := patiently(func() (err error) {
		f, err = d.root.OpenFile(name, flag|windows.O_FILE_FLAG_OPEN_REPARSE_POINT, fileMode)
		return err
	}, inUse)
	if errors.Is(err, syscall.EISDIR) {
		return nil, ErrFileType
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = ErrFileType
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkPrivate checks the owner and the access list of an open file or folder. The owner may be the
// group of the administrators, since an elevated process makes files that belong to it. The list
// may let in the user, the administrators and SYSTEM. Entries of unknown kinds count as letting
// others in.
func checkPrivate(f *os.File, path string) error {
	user, err := currentUser()
	if err != nil {
		return err
	}
	sd, err := securityOf(f)
	if err != nil {
		return &fs.PathError{Op: "read security of", Path: path, Err: err}
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return &fs.PathError{Op: "read owner of", Path: path, Err: err}
	}
	mine := ownedBy(owner, user)
	rights, folder := "F", false
	if fi, err := f.Stat(); err == nil && fi.IsDir() {
		rights, folder = "(OI)(CI)F", true
	}
	refuse := func(reason, fix string) error {
		if folder && !ownFolder(path, mine, func(name string, fi fs.FileInfo) bool {
			return ownEntry(name, fi, user)
		}) {
			return &PermissionError{Path: path, Reason: reason, Advice: adviceFolder}
		}
		return &PermissionError{Path: path, Reason: reason, Fix: fix}
	}
	if !mine {
		return refuse(fmt.Sprintf("belongs to %v, want %v", owner, user),
			fmt.Sprintf(`icacls "%s" /setowner "*%v"`, path, user))
	}
	fix := fmt.Sprintf(`icacls "%s" /inheritance:r /grant:r "*%v:%s"`, path, user, rights)
	dacl, _, err := sd.DACL()
	if err != nil && !errors.Is(err, windows.ERROR_OBJECT_NOT_FOUND) {
		return &fs.PathError{Op: "read access list of", Path: path, Err: err}
	}
	if dacl == nil { // none at all lets everybody in; an empty one, nobody
		return refuse("has no access list", fix)
	}
	for i := range uint32(dacl.AceCount) {
		var ace *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(dacl, i, &ace); err != nil {
			return &fs.PathError{Op: "read access list of", Path: path, Err: err}
		}
		switch ace.Header.AceType {
		case windows.ACCESS_DENIED_ACE_TYPE:
			continue
		case windows.ACCESS_ALLOWED_ACE_TYPE:
			sid := (*windows.SID)(unsafe.Pointer(&ace.SidStart))
			if ace.Mask != 0 && !mayAccess(sid, user) {
				return refuse(fmt.Sprintf("its access list lets in %v", sid),
					fix+fmt.Sprintf(` /remove:g "*%v"`, sid))
			}
		default:
			return refuse(fmt.Sprintf("its access list has an entry of kind %d",
				ace.Header.AceType),
				fmt.Sprintf(`icacls "%s" /reset && `, path)+fix)
		}
	}
	return nil
}

// ownedBy reports whether the owner is the current user or the group of the administrators.
func ownedBy(owner, user *windows.SID) bool {
	return owner != nil && (owner.Equals(user) ||
		owner.IsWellKnown(windows.WinBuiltinAdministratorsSid))
}

// ownEntry reports whether an entry of a folder is a regular file of the current user.
func ownEntry(path string, fi fs.FileInfo, user *windows.SID) bool {
	if !fi.Mode().IsRegular() {
		return false
	}
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return false
	}
	owner, _, err := sd.Owner()
	return err == nil && ownedBy(owner, user)
}

// mayAccess reports whether sid is the user, an account that can read the files of the user anyway,
// or the placeholder for the owner.
func mayAccess(sid, user *windows.SID) bool {
	return sid.Equals(user) ||
		sid.IsWellKnown(windows.WinLocalSystemSid) ||
		sid.IsWellKnown(windows.WinBuiltinAdministratorsSid) ||
		sid.IsWellKnown(windows.WinCreatorOwnerRightsSid)
}

func securityOf(f *os.File) (*windows.SECURITY_DESCRIPTOR, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var sd *windows.SECURITY_DESCRIPTOR
	cerr := conn.Control(func(h uintptr) {
		sd, err = windows.GetSecurityInfo(windows.Handle(h), windows.SE_FILE_OBJECT,
			windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	})
	if cerr != nil {
		// the one reason there is, and not an error value of the os package
		return nil, fs.ErrClosed
	}
	return sd, err
}

func currentUser() (*windows.SID, error) {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("fsafe: who is the current user: %w", err)
	}
	return user.User.Sid, nil
}

// checkCreated has nothing to do: there is no umask, and checkPrivate has checked the inherited
// access list.
func checkCreated(*os.File, fs.FileMode) error { return nil }

// syncDir has nothing to do: NTFS journals its names, and only administrators can flush folders.
func syncDir(*os.File) error { return nil }
