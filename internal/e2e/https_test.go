// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func zipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(data); err != nil || z.Close() != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestEncodingsAtTheClient has a server compress its key in every way, and damage it.
func TestEncodingsAtTheClient(t *testing.T) {
	data := bytes.Repeat([]byte("some text, "), 500)
	packed := zipped(t, data)
	for _, c := range []struct {
		name, encoding string
		body           []byte
		ok             bool
	}{
		{"none", "", data, true}, {"identity", "identity", data, true},
		{"case", " GZip ", packed, true}, {"x-gzip", "x-gzip", packed, true},
		{"not gzip", "gzip", data, false}, {"empty", "gzip", nil, false},
		{"cut in the head", "gzip", packed[:5], false},
		{"cut in the middle", "gzip", packed[:len(packed)/2], false},
		{"cut in the trailer", "gzip", packed[:len(packed)-1], false},
		{"trailing garbage", "gzip", append(bytes.Clone(packed), "garbage"...), false},
		{"trailing zeros", "gzip", append(bytes.Clone(packed), 0, 0, 0, 0), false},
		{"bad checksum", "gzip", append(bytes.Clone(packed[:len(packed)-8]), 1, 2, 3, 4,
			packed[len(packed)-4], packed[len(packed)-3], 0, 0), false},
		{"br", "br", data, false}, {"deflate", "deflate", data, false},
		{"zstd", "zstd", data, false}, {"twice", "gzip, gzip", packed, false},
		{"list", "identity, gzip", packed, false},
	} {
		for _, length := range []int64{int64(len(c.body)), -1} {
			s := fakes.NewServer(t)
			s.KeyPEM = func() *http.Response {
				r := testkit.Respond(200, string(c.body), "Content-Encoding", c.encoding)
				r.ContentLength = length
				return r
			}
			_, err := sealedClient(t, s, nil).ServerKey(t.Context())
			// it is no key, but it was read
			if want := map[bool]error{true: sealedchat.ErrPublicKey,
				false: sealedchat.ErrConnection}[c.ok]; !errors.Is(err, want) {
				t.Errorf("%s: the client says %v", c.name, err)
			}
		}
	}
}

// TestLongErrors: of an error's body the beginning is enough, and its length no error.
func TestLongErrors(t *testing.T) {
	s := fakes.NewServer(t)
	s.Answer = func(*fakes.Question) *http.Response {
		return testkit.Respond(418, `plain words `+strings.Repeat("x", 10*httpx.MaxErrorBody))
	}
	_, err := sealedClient(t, s, nil).Chat(t.Context(), ask("x"))
	if e, ok := errors.AsType[*sealedchat.APIError](err); !ok || e.StatusCode != 418 ||
		!strings.HasPrefix(e.Detail, "plain words") {
		t.Errorf("a long error: %v", err)
	}
}
