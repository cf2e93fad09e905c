// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fsafe

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/windows"
)

func TestAccessListOfWhatWeMake(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "x")
	user, err := currentUser()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		d.Path():                     "D:P(A;OICI;FA;;;" + user.String() + ")",
		filepath.Join(d.Path(), "f"): "D:(A;ID;FA;;;" + user.String() + ")",
	} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		sd, err := securityOf(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		got := sd.String() // O:<owner>G:<group>D:<list>
		if i := strings.Index(got, "D:"); i < 0 || got[i:] != want {
			t.Errorf("%s has %s, want %s", path, got, want)
		}
	}
}

func TestAccessListThatLetsOthersIn(t *testing.T) {
	d := newDir(t)
	write(t, d, "f", "x")
	path := filepath.Join(d.Path(), "f")
	icacls := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("icacls", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	// everyone, who is logged in, users
	for _, sid := range []string{"*S-1-1-0", "*S-1-5-11", "*S-1-5-32-545"} {
		icacls(path, "/grant", sid+":R")
		_, err := d.ReadFile("f", 10)
		var pe *PermissionError
		if !errors.As(err, &pe) || !errors.Is(err, ErrInsecurePermissions) || pe.Path != path {
			t.Fatalf("%s: %v", sid, err)
		}
		cmd := exec.Command("cmd")
		// with the quotes as they are
		cmd.SysProcAttr = &syscall.SysProcAttr{CmdLine: `cmd /s /c "` + pe.Fix + `"`}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", pe.Fix, err, out)
		}
		wantFile(t, d, "f", "x")
	}
	// SYSTEM and the administrators may
	icacls(path, "/grant", "*S-1-5-18:F", "/grant", "*S-1-5-32-544:F")
	wantFile(t, d, "f", "x")
	icacls(path, "/deny", "*S-1-1-0:(WD)") // a refusal lets nobody in
	wantFile(t, d, "f", "x")
}

func TestFolderWithoutAccessList(t *testing.T) {
	d := newDir(t)
	if err := windows.SetNamedSecurityInfo(d.Path(), windows.SE_FILE_OBJECT,
		windows.DACL_SECURITY_INFORMATION, nil, nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	_, err := OpenDir(d.Path())
	wantErr(t, err, ErrInsecurePermissions)
}
