// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package tsm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/uuid"
)

// kernel stands for configfs-tsm: folders with files, whose generation counts what was written.
type kernel struct {
	provider string
	evidence func(inblob []byte, level string) []byte
	table    []byte // nil: reading it fails
	busy     bool   // somebody else writes into the same folder all the time

	mu      sync.Mutex
	folders map[string]map[string][]byte
	made    int
}

func (k *kernel) MkdirTemp(dir, _ string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.folders == nil {
		k.folders = map[string]map[string][]byte{}
	}
	k.made++
	name := filepath.Join(dir, fmt.Sprint("entry", k.made))
	k.folders[name] = map[string][]byte{"generation": {0}}
	return name, nil
}

func (k *kernel) ReadFile(name string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	files, ok := k.folders[filepath.Dir(name)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	switch attribute := filepath.Base(name); attribute {
	case "provider":
		return []byte(k.provider + "\n"), nil
	case "generation":
		generation := int(files["generation"][0])
		if k.busy && generation > 0 {
			generation++
		}
		return fmt.Appendf(nil, "%d\n", generation), nil
	case "outblob":
		if len(files["inblob"]) != 64 {
			return nil, syscall.EINVAL
		}
		return k.evidence(files["inblob"], string(files["privlevel"])), nil
	case "auxblob":
		if k.table == nil {
			return nil, fs.ErrNotExist
		}
		return k.table, nil
	}
	return nil, fs.ErrNotExist
}

func (k *kernel) WriteFile(name string, contents []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	files := k.folders[filepath.Dir(name)]
	if filepath.Base(name) == "privlevel" && k.provider != "sev_guest" {
		return fs.ErrNotExist
	}
	files[filepath.Base(name)] = bytes.Clone(contents)
	files["generation"][0]++
	return nil
}

func (k *kernel) ReadDir(string) ([]os.DirEntry, error) { return nil, nil }

func (k *kernel) RemoveAll(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.folders, name)
	return nil
}

var _ configfsi.Client = (*kernel)(nil)

// reporting makes evidence with the data, the level and the signer in their places.
func reporting(signer byte) func(inblob []byte, level string) []byte {
	return func(inblob []byte, level string) []byte {
		r := make([]byte, abi.ReportSize)
		copy(r[0x50:], inblob)
		r[0x48] = signer << 2
		if level != "" {
			r[0x30] = level[0] - '0'
		}
		return r
	}
}

// table is the host's table of certificates, as AMD's interface has it.
func table(certs map[string]string) []byte {
	guids := slices.Sorted(func(yield func(string) bool) {
		for g := range certs {
			if !yield(g) {
				return
			}
		}
	})
	at := (len(certs) + 1) * abi.CertTableEntrySize
	head, tail := []byte{}, []byte{}
	for _, g := range guids {
		entry := make([]byte, abi.CertTableEntrySize)
		h := abi.CertTableHeaderEntry{GUID: uuid.MustParse(g), Offset: uint32(at + len(tail)),
			Length: uint32(len(certs[g]))}
		if err := h.Write(entry); err != nil {
			panic(err)
		}
		head, tail = append(head, entry...), append(tail, certs[g]...)
	}
	return append(append(head, make([]byte, abi.CertTableEntrySize)...), tail...)
}

func folder(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("file "+name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDocuments(t *testing.T) {
	sev := func(table []byte) *kernel {
		return &kernel{provider: "sev_guest", evidence: reporting(0), table: table}
	}
	tdx := &kernel{provider: "tdx_guest", evidence: reporting(0)}
	all := []string{"vcek", "ask", "ark"}
	vcek := []string{"vcek.der"}
	full := table(map[string]string{abi.VcekGUID: "vcek", abi.AskGUID: "ask", abi.ArkGUID: "ark",
		abi.VlekGUID: "vlek"})
	for name, test := range map[string]struct {
		kernel *kernel
		files  []string
		vmpl   int
		want   []string // endorsements
		err    string
	}{
		"the host's table": {sev(full), nil, 0, all, ""},
		"a cloud's key": {
			&kernel{provider: "sev_guest", evidence: reporting(1), table: full}, nil, 0,
			[]string{"vlek", "ask", "ark"}, "",
		},
		"at another level": {sev(full), nil, 2, all, ""},
		"with a list": {
			sev(full), []string{"crl.der"}, 0, []string{"vcek", "ask", "ark", "file crl.der"}, "",
		},
		"a table without ASK": {
			sev(table(map[string]string{abi.VcekGUID: "vcek"})), []string{"crl.der"}, 0,
			[]string{"vcek"}, "",
		},
		"files": {
			sev(nil), []string{"vcek.der", "ask.der", "ark.der"}, 0,
			[]string{"file vcek.der", "file ask.der", "file ark.der"}, "",
		},
		"one file":       {sev(make([]byte, 4096)), vcek, 0, prefixed(vcek), ""},
		"an empty table": {sev([]byte{}), vcek, 0, prefixed(vcek), ""},
		"another key's table": {
			sev(table(map[string]string{abi.VlekGUID: "vlek"})), vcek, 0, prefixed(vcek), "",
		},
		"TDX": {tdx, tdxFiles, 0, prefixed(tdxFiles), ""},

		"no certificate":     {sev(nil), nil, 0, nil, "Options.Endorsements"},
		"no file":            {sev(nil), []string{"ask.der"}, 0, nil, "vcek.der"},
		"TDX without a file": {tdx, tdxFiles[:6], 0, nil, "root-crl.der"},
		"TDX without folder": {tdx, nil, 0, nil, "Options.Endorsements"},
		"TDX at a level":     {tdx, tdxFiles, 1, nil, "privlevel"},
		"another kernel's": {
			&kernel{provider: "arm_cca_guest", evidence: reporting(0)}, nil, 0, nil,
			`"arm_cca_guest"`,
		},
		"somebody else writes": {
			&kernel{provider: "sev_guest", evidence: reporting(0), table: full, busy: true}, nil, 0,
			nil, "generation",
		},
		"half a table":                {sev(full[:30]), nil, 0, nil, "table"},
		"a table with a wrong length": {sev(overflow(full)), nil, 0, nil, "table"},
		"short evidence": {
			&kernel{provider: "sev_guest", table: full,
				evidence: func([]byte, string) []byte { return []byte{1} }},
			nil, 0, nil, "too small",
		},
	} {
		o := Options{VMPL: test.vmpl}
		if test.files != nil {
			o.Endorsements = folder(t, test.files...)
		}
		data := [64]byte{1, 2, 3}
		doc, err := (&attester{o, test.kernel}).attest(t.Context(), data)
		if len(test.kernel.folders) != 0 {
			t.Errorf("%s: a folder was left", name)
		}
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) ||
				!strings.HasPrefix(err.Error(), "tsm: ") || doc.Evidence != nil {
				t.Errorf("%s: attest() = %v, %v, want an error with %q", name, doc, err, test.err)
			}
			continue
		}
		var got []string
		for _, e := range doc.Endorsements {
			got = append(got, string(e))
		}
		format := "sev-snp"
		if test.kernel == tdx {
			format = "tdx"
		}
		if err != nil || doc.Format != format || !slices.Equal(got, test.want) ||
			!bytes.Equal(doc.Evidence[0x50:0x90], data[:]) || int(doc.Evidence[0x30]) != test.vmpl {
			t.Errorf("%s: attest() = %q, %q, %v, want %q, %q", name, doc.Format, got, err, format,
				test.want)
		}
	}
}

func prefixed(names []string) (list []string) {
	for _, n := range names {
		list = append(list, "file "+n)
	}
	return list
}

// overflow makes the first entry's offset and length wrap around.
func overflow(table []byte) []byte {
	table = bytes.Clone(table)
	binary.LittleEndian.PutUint32(table[16:], 1<<32-1)
	binary.LittleEndian.PutUint32(table[20:], 2)
	return table
}

func TestEndedContext(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	end()
	k := &kernel{provider: "sev_guest", evidence: reporting(0)}
	_, err := (&attester{Options{}, k}).attest(ctx, [64]byte{})
	if !errors.Is(err, context.Canceled) || k.made != 0 {
		t.Errorf("attest() = %v after %d folders", err, k.made)
	}
}

func TestFiles(t *testing.T) {
	dir := folder(t, "good")
	for name, size := range map[string]int{"empty": 0, "large": maxFile + 1} {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := &attester{Options: Options{Endorsements: dir}}
	for _, name := range []string{"empty", "large", "absent", "."} {
		if list, err := a.files("good", name); err == nil || list != nil {
			t.Errorf("%s: files() = %q, %v, want an error", name, list, err)
		}
	}
}

// Many requests at once have a folder each.
func TestConcurrently(t *testing.T) {
	k := &kernel{provider: "sev_guest", evidence: reporting(0),
		table: table(map[string]string{abi.VcekGUID: "vcek"})}
	a := &attester{Options{}, k}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			data := [64]byte{byte(i)}
			doc, err := a.attest(t.Context(), data)
			if err != nil || !bytes.Equal(doc.Evidence[0x50:0x90], data[:]) {
				t.Errorf("attest() = %v", err)
			}
		})
	}
	wg.Wait()
	if k.made != 50 || len(k.folders) != 0 {
		t.Errorf("%d folders were made, %d are left", k.made, len(k.folders))
	}
}

func TestMachineWithout(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/config/tsm/report"); err == nil {
		t.Skip("this machine makes reports")
	}
	attest, err := Attester(Options{})
	if attest != nil || !errors.Is(err, ErrUnavailable) || !errors.Is(err, fs.ErrNotExist) ||
		!strings.Contains(err.Error(), "confidential VM") {
		t.Errorf("Attester() = %v, want ErrUnavailable and what is needed", err)
	}
	for _, level := range []int{-1, 4} {
		if _, err := Attester(Options{VMPL: level}); err == nil || errors.Is(err, ErrUnavailable) {
			t.Errorf("with VMPL %d: Attester() = %v", level, err)
		}
	}
}

func FuzzTable(f *testing.F) {
	f.Add(table(map[string]string{abi.VcekGUID: "vcek", abi.AskGUID: "ask", abi.ArkGUID: "ark"}))
	evidence := reporting(0)(make([]byte, 64), "")
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := fromTable(evidence, b)
		if err != nil && list != nil {
			t.Error("an error and certificates")
		}
		for _, cert := range list {
			if len(cert) == 0 || !bytes.Contains(b, cert) {
				t.Errorf("a certificate %q that is not in the table", cert)
			}
		}
	})
}
