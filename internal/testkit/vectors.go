// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The kinds of vectors. testdata/vectors/README.md describes each of them.
const (
	Request    = "request"
	Response   = "response"
	HTTPError  = "http_error"
	ServerKey  = "server_key"
	PrivateKey = "private_key"
)

// The values of Expected.Suggested. A request has none: it must open to its plaintext.
const (
	Accept = "accept"
	Reject = "reject"
	Policy = "policy" // the two clients differ or are lenient by accident: SPEC.md decides
	Error  = "error"  // the answer is an error of the server's, with Expected.Status
)

// Case is one vector. Callers share it and must not change its fields. [Case.File] returns copies.
type Case struct {
	Name     string            `json:"name"`
	Kind     string            `json:"-"`
	Producer string            `json:"producer"` // who made its main file, with versions
	Note     string            `json:"note"`
	Password *string           `json:"password"` // nil: none is given
	HTTP     HTTP              `json:"http"`     // response, http_error, server_key
	Expected Expected          `json:"expected"`
	Files    map[string]string `json:"files"` // role -> path inside the archive

	// Observed has "accept" or "reject" for each client ("python", "python_c48", "js") under the
	// case's own conditions, and for "client/condition" under others: "python/direct" (the client's
	// decryption called without HTTP), "js/wrong_password" and so on.
	Observed map[string]string `json:"observed"`

	files map[string][]byte // path -> content; shared by the cases of a kind
}

// HTTP is how a vector is served.
type HTTP struct {
	Status  int         `json:"status"`
	Headers [][2]string `json:"headers"` // "{base}" in a value stands for the server's URL
	Mode    string      `json:"mode"`    // "" (Content-Length), or one of the Mode constants
}

// How a body travels, in HTTP.Mode.
const (
	ModeGzip     = "gzip"     // compressed, with Content-Encoding
	ModeChunked  = "chunked"  // Transfer-Encoding: chunked
	ModeClose    = "close"    // no length, ends with the connection
	ModeTruncate = "truncate" // the connection ends 100 bytes before Content-Length is reached
	ModeReset    = "reset"    // the connection is reset instead of an answer
)

// Expected is the expected result of a vector.
type Expected struct {
	Suggested string `json:"suggested"` // one of Accept, Reject, Policy, Error; "" for requests

	Status int     `json:"status"` // http_error
	Detail *string `json:"detail"` // http_error: the string under "detail", nil if there is none

	// private_key: lower-case hex, of the DER SubjectPublicKeyInfo; "" if unreadable
	SPKISHA256 string `json:"spki_sha256"`
	Bits       int    `json:"bits"` // private_key

	PlaintextSHA256    string   `json:"plaintext_sha256"` // request: lower-case hex
	PlaintextLen       int      `json:"plaintext_len"`    // request: bytes
	PublicKeySHA256    string   `json:"x_public_key_decoded_sha256"`
	PublicKeyNewline   bool     `json:"x_public_key_decoded_ends_with_newline"`
	PublicKeyEscapes   []string `json:"x_public_key_escapes"`
	PublicKeyEqualFile bool     `json:"x_public_key_decoded_equals_file"`
}

// String is the case's name.
func (c Case) String() string { return c.Name }

// Has reports whether the case has a file of this role.
func (c Case) Has(role string) bool {
	_, ok := c.Files[role]
	return ok
}

// File returns a copy of the case's file of this role, and panics if it has none. Roles: request:
// get_head, post_head, post_body, plaintext (not the two of 1 MiB), response_body, returned,
// server_private_key, client_private_key, client_public_key. response: body, private_key,
// public_key, plaintext (if it opens). http_error, server_key: body. private_key: private_key,
// public_key.
func (c Case) File(role string) []byte {
	content, ok := c.files[c.Files[role]]
	if !ok {
		panic(fmt.Sprintf("testkit: vector %s/%s has no file %q", c.Kind, c.Name, role))
	}
	return slices.Clone(content)
}

// loaded caches the archives that were read, by file.
var loaded sync.Map // file name -> func() ([]Case, error)

// Vectors returns every case of a kind, in the stored order. Finding none is fatal.
func Vectors(t testing.TB, kind string) []Case {
	t.Helper()
	file := filepath.Join(Dir(t), "testdata", "vectors", kind+".tar.gz")
	once, _ := loaded.LoadOrStore(file, sync.OnceValues(func() ([]Case, error) {
		return loadVectors(file, kind)
	}))
	cases, err := once.(func() ([]Case, error))()
	if err != nil {
		t.Fatalf("testkit: vectors: %v", err)
	}
	return slices.Clone(cases)
}

// Vector returns the case of this kind and name.
func Vector(t testing.TB, kind, name string) Case {
	t.Helper()
	for _, c := range Vectors(t, kind) {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("testkit: no vector %s/%s", kind, name)
	return Case{}
}

func loadVectors(file, kind string) ([]Case, error) {
	packed, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	files, err := unpack(packed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var cases []Case
	if err := json.Unmarshal(files["cases.json"], &cases); err != nil {
		return nil, fmt.Errorf("%s: cases.json: %w", file, err)
	}
	if len(cases) == 0 {
		return nil, fmt.Errorf("%s: no cases", file)
	}
	seen := make(map[string]bool)
	for i := range cases {
		c := &cases[i]
		c.Kind, c.files = kind, files
		if c.Name == "" || seen[c.Name] || strings.Contains(c.Name, "/") {
			return nil, fmt.Errorf("%s: case %d: name %q is empty, repeated or a path", file, i,
				c.Name)
		}
		seen[c.Name] = true
		if len(c.Files) == 0 {
			return nil, fmt.Errorf("%s: %s: no files", file, c.Name)
		}
		for role, path := range c.Files {
			if _, ok := files[path]; !ok {
				return nil, fmt.Errorf("%s: %s: its %s, %s, is missing", file, c.Name, role, path)
			}
		}
	}
	return cases, nil
}

// unpack reads a gzipped tar file whole.
func unpack(packed []byte) (map[string][]byte, error) {
	zr, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	files := make(map[string][]byte)
	for tr := tar.NewReader(zr); ; {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// Reading on to the end has the gzip checksum verified.
			_, err = io.Copy(io.Discard, zr)
			return files, err
		}
		if err != nil {
			return nil, err
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			return nil, err
		}
		files[header.Name] = content
	}
}
