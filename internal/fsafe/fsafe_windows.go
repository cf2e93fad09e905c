// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// lockFlag is what flock opens lock files with. It makes none, and opens a link instead of following it.
const lockFlag = os.O_RDWR | windows.O_FILE_FLAG_OPEN_REPARSE_POINT

func openRoot(path string) (*os.Root, error) { return os.OpenRoot(path) }

func baseDir() (string, error) { return os.UserCacheDir() } // %LocalAppData%

// mkdirPrivate makes a folder whose access list is protected from what the parent would pass on, names the
// current user alone, and is inherited by files and folders in it. SYSTEM and the administrators are left
// out: backups read through their privilege, and the access list would not stop either from taking the file.
func mkdirPrivate(path string) error {
	user, err := currentUser()
	if err != nil {
		return err
	}
	sd, err := windows.SecurityDescriptorFromString(fmt.Sprintf("O:%[1]sD:P(A;OICI;FA;;;%[1]s)", user))
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

// openRegular opens a regular file in the folder; of a link it opens the link itself, and refuses it.
func (d *Dir) openRegular(name string, flag int) (*os.File, error) {
	f, err := d.root.OpenFile(name, flag|windows.O_FILE_FLAG_OPEN_REPARSE_POINT, fileMode)
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
// administrators' group, as for what an elevated process makes. The list may let in the user, the
// administrators and SYSTEM; entries of kinds that it does not know count as letting others in.
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
	if owner == nil || !owner.Equals(user) && !owner.IsWellKnown(windows.WinBuiltinAdministratorsSid) {
		return &PermissionError{
			Path:   path,
			Reason: fmt.Sprintf("belongs to %v, want %v", owner, user),
			Mend:   fmt.Sprintf(`icacls "%s" /setowner "*%v"`, path, user),
		}
	}
	rights := "F"
	if fi, err := f.Stat(); err == nil && fi.IsDir() {
		rights = "(OI)(CI)F"
	}
	mend := fmt.Sprintf(`icacls "%s" /inheritance:r /grant:r "*%v:%s"`, path, user, rights)
	dacl, _, err := sd.DACL()
	if err != nil && !errors.Is(err, windows.ERROR_OBJECT_NOT_FOUND) {
		return &fs.PathError{Op: "read access list of", Path: path, Err: err}
	}
	if dacl == nil { // none at all lets everybody in; an empty one, nobody
		return &PermissionError{Path: path, Reason: "has no access list", Mend: mend}
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
				return &PermissionError{
					Path:   path,
					Reason: fmt.Sprintf("its access list lets in %v", sid),
					Mend:   mend + fmt.Sprintf(` /remove:g "*%v"`, sid),
				}
			}
		default:
			return &PermissionError{
				Path:   path,
				Reason: fmt.Sprintf("its access list has an entry of kind %d", ace.Header.AceType),
				Mend:   fmt.Sprintf(`icacls "%s" /reset && `, path) + mend,
			}
		}
	}
	return nil
}

// mayAccess knows who reads the user's files anyway, and the owner's own placeholder.
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
		return nil, cerr
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

// checkCreated has nothing to do: there is no umask, and checkPrivate saw the inherited access list.
func checkCreated(*os.File, fs.FileMode) error { return nil }

// syncDir has nothing to do: NTFS journals its names, and folders cannot be flushed without administrators' rights.
func syncDir(*os.File) error { return nil }
