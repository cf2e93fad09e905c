// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"context"
	"crypto/rsa"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

const (
	childVar    = "SEALEDCHAT_TEST_CHILD" // which of keyStoreChildren this process is to be
	childDirVar = "SEALEDCHAT_TEST_DIR"
	childArgVar = "SEALEDCHAT_TEST_ARG"
	longVar     = "SEALEDCHAT_LONG" // "1": tests with real time take longer
)

// keyStoreChildren are what the test binary does when it runs itself again.
var keyStoreChildren = map[string]func(t *testing.T, dir, arg string){
	"saver":  childSaver,
	"sharer": childSharer,
	"full":   childFullDisk,
}

// TestKeyStoreChild is what the other tests of this file run in processes of their own.
func TestKeyStoreChild(t *testing.T) {
	name := os.Getenv(childVar)
	if name == "" {
		t.Skip("it is for the tests that start processes")
	}
	keyStoreChildren[name](t, os.Getenv(childDirVar), os.Getenv(childArgVar))
}

// child is a process that is not started yet. It is killed when the test ends.
func child(t testing.TB, name, dir, arg string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, exe, "-test.run=^TestKeyStoreChild$", "-test.v=false",
		"-test.count=1")
	cmd.Env = append(os.Environ(), childVar+"="+name, childDirVar+"="+dir, childArgVar+"="+arg)
	cmd.Stderr = os.Stderr
	return cmd
}

const (
	shareEvery     = 150 * time.Millisecond
	sharers        = 8
	generationsLog = "generations"
)

// TestSharedKeyStore has 8 processes open, rotate and use one store: they seal to the key that they
// know, and open what the others sealed.
func TestSharedKeyStore(t *testing.T) {
	t.Parallel()
	dir, work := storeDir(t), t.TempDir()
	s, m := weakStore(t, nil)
	m.Use(func(int) (*rsa.PrivateKey, error) { return testkit.PairedKey(0) })
	if err := s.create(t.Context(), dir, secret(t, passphrase)); err != nil {
		t.Fatal(err)
	}
	first := fingerprints(s)[0]
	s.Close()
	rotations := 6 // however long they take
	switch {
	case os.Getenv(longVar) == "1":
		rotations = 60
	case testing.Short():
		rotations = 3
	}
	var running []*exec.Cmd
	var said []*bytes.Buffer
	for i := range sharers {
		cmd := child(t, "sharer", dir, fmt.Sprintf("%d\n%d\n%s", i, rotations, work))
		out := new(bytes.Buffer)
		cmd.Stdout = out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		running, said = append(running, cmd), append(said, out)
	}
	for i, cmd := range running {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process %d: %v\n%s", i, err, said[i])
		}
	}
	text, err := os.ReadFile(filepath.Join(work, generationsLog))
	if err != nil {
		t.Fatal(err)
	}
	made := strings.Fields(string(text))
	body, _ := bodyOnDisk(t, dir, passphrase)
	var have []string
	for _, k := range body.Keys {
		fp := k.Key.Fingerprint()
		have = append(have, hex.EncodeToString(fp[:]))
	}
	if body.Rotations != uint64(len(made)) || len(have) != len(made)+1 || len(made) < rotations {
		t.Errorf("%d keys were made, %d rotations, %d keys", len(made), body.Rotations, len(have))
	}
	for _, fp := range append(made, first) {
		if !slices.Contains(have, fp) {
			t.Errorf("key %s is lost", fp)
		}
	}
	slices.SortFunc(body.Keys, func(a, b keyfile.Entry) int {
		return a.Activated.Compare(b.Activated)
	})
	for i := 2; i < len(body.Keys); i++ {
		if d := body.Keys[i].Activated.Sub(body.Keys[i-1].Activated); d < shareEvery {
			t.Errorf("keys %d and %d were made within %v: two generations of one rotation", i-1, i,
				d)
		}
	}
	t.Logf("%d rotations; opened: %s", len(made), openedBy(said))
}

func openedBy(said []*bytes.Buffer) string {
	var all []string
	for _, out := range said {
		for line := range strings.Lines(out.String()) {
			if n, ok := strings.CutPrefix(line, "opened "); ok {
				all = append(all, strings.TrimSpace(n))
			}
		}
	}
	return strings.Join(all, " ")
}

func childSharer(t *testing.T, dir, arg string) {
	args := strings.Split(arg, "\n")
	me, _ := strconv.Atoi(args[0])
	rotations, _ := strconv.Atoi(args[1])
	work := args[2]
	s, m := weakStore(t, &Options{Rotation: Rotation{Every: shareEvery, Grace: time.Hour}})
	m.Use(func(int) (*rsa.PrivateKey, error) {
		return loggedKey(filepath.Join(work, generationsLog))
	})
	if err := s.open(t.Context(), dir, secret(t, passphrase)); err != nil {
		t.Fatal(err)
	}
	s.startWorker()
	count := 0
	for n := 0; n < 3 || generations(t, work) < rotations; n++ {
		if err := publish(s, work, me, fmt.Sprintf("message %d of %d", n, me)); err != nil {
			t.Fatal(err)
		}
		for other := range sharers {
			text, e, err := published(work, other)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it has not begun
			}
			if err != nil {
				t.Fatal(err)
			}
			plain, err := s.OpenEnvelope(t.Context(), e)
			if err != nil || string(plain) != text {
				t.Fatalf("%q of process %d: %q, %v", text, other, plain, err)
			}
			count++
		}
		sealed, err := s.Seal("label", []byte("data"))
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := s.Open("label", sealed); err != nil || string(plain) != "data" {
			t.Fatalf("%q, %v", plain, err)
		}
		if err := s.RotationError(); err != nil {
			t.Fatal(err)
		}
	}
	// A store that is closed drops the key that it is making: never used, but in the log. So it is
	// closed while it makes none.
	lock, err := s.dir.Lock(t.Context(), rotationLock)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	s.Close()
	fmt.Println("opened", count)
}

// generations is how many keys were made by now.
func generations(t *testing.T, work string) int {
	text, err := os.ReadFile(filepath.Join(work, generationsLog))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return bytes.Count(text, []byte("\n"))
}

// loggedKey makes a key, and adds its fingerprint to a file. Whoever makes keys holds a lock
// meanwhile.
func loggedKey(log string) (*rsa.PrivateKey, error) {
	text, err := os.ReadFile(log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	key, err := testkit.PairedKey(1 + bytes.Count(text, []byte("\n")))
	if err != nil {
		return nil, err
	}
	public, err := hybrid.NewPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintln(f, public.Fingerprint())
	return key, errors.Join(err, f.Close())
}

// publish seals text to the store's key, and leaves it where the others find it.
func publish(s *Store, work string, me int, text string) error {
	k, err := s.Public(context.Background())
	if err != nil {
		return err
	}
	e, err := sealEnvelope(k, []byte(text))
	if err != nil {
		return err
	}
	temp := filepath.Join(work, fmt.Sprint("next-", me))
	if err := os.WriteFile(temp, envelope.Append([]byte(text+"\n"), e), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(work, fmt.Sprint("from-", me)))
}

func published(work string, other int) (string, *envelope.Envelope, error) {
	b, err := os.ReadFile(filepath.Join(work, fmt.Sprint("from-", other)))
	if err != nil {
		return "", nil, err
	}
	text, sealed, _ := bytes.Cut(b, []byte("\n"))
	e, err := envelope.Parse(sealed, 1<<20)
	return string(text), &e, err
}
