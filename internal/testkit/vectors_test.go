// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestVectors(t *testing.T) {
	total := int64(0)
	for kind, want := range map[string]struct {
		cases    int
		roles    []string // that every case has
		suggests []string
	}{
		Request: {20, []string{"get_head", "post_head", "post_body", "response_body", "returned",
			"server_private_key", "client_private_key", "client_public_key"}, []string{""}},
		Response: {384, []string{"body", "private_key", "public_key"},
			[]string{Accept, Reject, Policy}},
		HTTPError:  {123, []string{"body"}, []string{Error}},
		ServerKey:  {32, []string{"body"}, []string{Accept, Reject, Policy}},
		PrivateKey: {100, []string{"private_key", "public_key"}, []string{Accept, Reject, Policy}},
	} {
		cases := Vectors(t, kind)
		if len(cases) != want.cases {
			t.Errorf("%s: %d cases, want %d", kind, len(cases), want.cases)
		}
		for _, c := range cases {
			for _, role := range want.roles {
				if !c.Has(role) {
					t.Errorf("%s/%s has no %s", kind, c, role)
				}
			}
			if c.Kind != kind || c.Producer == "" ||
				!slices.Contains(want.suggests, c.Expected.Suggested) {
				t.Errorf("%s/%s: kind %q, producer %q, suggests %q", kind, c, c.Kind, c.Producer,
					c.Expected.Suggested)
			}
			served := kind == Response || kind == HTTPError || kind == ServerKey
			if served != (c.HTTP.Status != 0) ||
				kind == HTTPError && c.Expected.Status != c.HTTP.Status {
				t.Errorf("%s/%s: status %d, expected %d", kind, c, c.HTTP.Status, c.Expected.Status)
			}
			for client, outcome := range c.Observed {
				name, _, _ := strings.Cut(client, "/")
				if !slices.Contains([]string{"python", "python_c48", "js"}, name) ||
					outcome != Accept && outcome != Reject {
					t.Errorf("%s/%s: observed %q: %q", kind, c, client, outcome)
				}
			}
			endless := c.Name == "py-pw-iterations-2e31" // no client was made to try it
			if c.Observed["python"] == "" && c.Observed["js"] == "" && !endless {
				t.Errorf("%s/%s: nothing observed", kind, c)
			}
		}
		info, err := os.Stat(filepath.Join(Dir(t), "testdata", "vectors", kind+".tar.gz"))
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total >= 4e6 {
		t.Errorf("the archives have %d bytes, want less than 4 MB", total)
	}
	mustFail(t, "none.tar.gz", func(tb testing.TB) { Vectors(tb, "none") })
	mustFail(t, "no vector response/none", func(tb testing.TB) { Vector(tb, Response, "none") })
}

func TestVectorFields(t *testing.T) {
	opened := 0
	for _, c := range Vectors(t, Request) {
		if !c.Has("plaintext") {
			continue
		}
		plaintext := c.File("plaintext")
		if sum := sha256.Sum256(
			plaintext); hex.EncodeToString(sum[:]) != c.Expected.PlaintextSHA256 ||
			len(plaintext) != c.Expected.PlaintextLen {
			t.Errorf("%s: plaintext has %d bytes, SHA-256 %x", c, len(plaintext), sum)
		}
		opened++
	}
	if opened != 18 {
		t.Errorf("%d requests have their plaintext, want 18", opened)
	}
	hashed, passwords := 0, 0
	for _, c := range Vectors(t, PrivateKey) {
		if c.Password != nil {
			passwords++
		}
		block, _ := pem.Decode(c.File("public_key"))
		if block == nil || c.Expected.SPKISHA256 == "" {
			continue
		}
		if sum := sha256.Sum256(block.Bytes); hex.EncodeToString(sum[:]) == c.Expected.SPKISHA256 {
			hashed++
		}
	}
	if hashed < 90 || passwords < 50 {
		t.Errorf("%d public keys with the expected hash and %d passwords, want 90 and 50 at least",
			hashed, passwords)
	}
	detail := Vector(t, HTTPError, "err-400-detail").Expected.Detail
	if detail == nil || *detail != "the detail text" ||
		Vector(t, HTTPError, "err-400-openai").Expected.Detail != nil {
		t.Errorf("details %v", detail)
	}
	c := Vector(t, Response, "sep-baseline")
	body := c.File("body")
	clear(body)
	if bytes.Equal(c.File("body"), body) {
		t.Error("File hands out the shared bytes")
	}
	defer func() {
		if recover() == nil {
			t.Error("File of a role that is not there did not panic")
		}
	}()
	c.File("none")
}

func TestLoaderRefuses(t *testing.T) {
	const one = `[{"name":"a","files":{"body":"b"}}]`
	good := pack(t, map[string]string{"cases.json": one, "b": "content"})
	damaged := slices.Clone(good)
	damaged[len(damaged)-6] ^= 1 // in the checksum
	for name, archive := range map[string][]byte{
		"empty":         {},
		"not gzip":      []byte("cases.json"),
		"cut":           good[:len(good)/2],
		"checksum":      damaged,
		"no index":      pack(t, map[string]string{"b": "content"}),
		"no cases":      pack(t, map[string]string{"cases.json": "[]"}),
		"null":          pack(t, map[string]string{"cases.json": "null"}),
		"after the end": pack(t, map[string]string{"cases.json": one + "]", "b": ""}),
		"no file":       pack(t, map[string]string{"cases.json": one}),
		"no files":      pack(t, map[string]string{"cases.json": `[{"name":"a"}]`}),
		"no name": pack(t, map[string]string{"cases.json": `[{"files":{"body":"b"}}]`,
			"b": ""}),
		"twice": pack(t, map[string]string{"cases.json": one[:len(one)-1] + "," + one[1:],
			"b": ""}),
	} {
		file := filepath.Join(t.TempDir(), "x.tar.gz")
		if err := os.WriteFile(file, archive, 0o600); err != nil {
			t.Fatal(err)
		}
		if cases, err := loadVectors(file, "x"); err == nil {
			t.Errorf("%s: %d cases and no error", name, len(cases))
		}
		if err := os.WriteFile(file, good, 0o600); err != nil {
			t.Fatal(err)
		}
		if cases, err := loadVectors(file, "x"); err != nil ||
			string(cases[0].File("body")) != "content" {
			t.Errorf("good archive: %v", err)
		}
	}
}

func pack(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for name, content := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)),
			Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
