// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stubClient neither follows redirects nor undoes gzip.
func stubClient(t *testing.T) *http.Client {
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{
		Transport: transport,
		Timeout:   10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
}

// call does the request that c answers.
func call(client *http.Client, c Case, url string) (*http.Response, error) {
	if c.Kind == ServerKey {
		return client.Get(url + "/pki/public_key")
	}
	return client.Post(url+"/v1/chat/secure_completion", "application/octet-stream",
		strings.NewReader("sealed"))
}

func TestStubServesEveryVector(t *testing.T) {
	NoLeaks(t)
	client := stubClient(t)
	modes := map[string]int{}
	for _, kind := range []string{Response, HTTPError, ServerKey} {
		for _, c := range Vectors(t, kind) {
			t.Run(kind+"/"+c.Name, func(t *testing.T) {
				stub := Stub(t, c, nil)
				res, err := call(client, c, stub.URL)
				modes[c.HTTP.Mode]++
				if c.HTTP.Mode == ModeReset {
					if !errors.Is(err, syscall.ECONNRESET) {
						t.Fatalf("error %v, want a reset", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				body, err := io.ReadAll(res.Body)
				checkServed(t, c, stub, res, body, err)
			})
		}
	}
	for mode, min := range map[string]int{"": 500, ModeGzip: 3, ModeChunked: 3, ModeClose: 2,
		ModeTruncate: 2, ModeReset: 3} {
		if modes[mode] < min {
			t.Errorf("%d vectors in mode %q, want %d at least", modes[mode], mode, min)
		}
	}
}

func checkServed(t *testing.T, c Case, stub *StubServer, res *http.Response, body []byte,
	bodyErr error) {
	t.Helper()
	want := c.File("body")
	if c.HTTP.Mode == ModeTruncate {
		want = want[:len(want)-100]
	}
	if truncated := errors.Is(bodyErr,
		io.ErrUnexpectedEOF); truncated != (c.HTTP.Mode == ModeTruncate) ||
		!truncated && bodyErr != nil {
		t.Errorf("reading the body: %v", bodyErr)
	}
	wantLength := int64(-1) // unknown
	switch c.HTTP.Mode {
	case "":
		wantLength = int64(len(want))
	case ModeTruncate:
		wantLength = int64(len(want)) + 100
	case ModeGzip:
		wantLength = int64(len(body))
		zr, err := gzip.NewReader(bytes.NewReader(body))
		if err != nil || res.Header.Get("Content-Encoding") != "gzip" {
			t.Fatalf("Content-Encoding %q, %v", res.Header.Get("Content-Encoding"), err)
		}
		if body, err = io.ReadAll(zr); err != nil {
			t.Error(err)
		}
	case ModeChunked:
		if !slices.Equal(res.TransferEncoding, []string{"chunked"}) {
			t.Errorf("Transfer-Encoding %q", res.TransferEncoding)
		}
	}
	if res.StatusCode != c.HTTP.Status || res.ContentLength != wantLength ||
		!bytes.Equal(body, want) {
		t.Errorf("status %d, length %d, body of %d bytes; want %d, %d, the vector's %d bytes",
			res.StatusCode, res.ContentLength, len(body), c.HTTP.Status, wantLength, len(want))
	}
	for _, header := range c.HTTP.Headers {
		if got := res.Header.Get(header[0]); got != strings.ReplaceAll(header[1], "{base}",
			stub.URL) {
			t.Errorf("%s: %q, want %q", header[0], got, header[1])
		}
	}
	if len(c.HTTP.Headers) == 0 && res.Header.Get("Content-Type") != "" {
		t.Errorf("Content-Type %q was added", res.Header.Get("Content-Type"))
	}
	if n := len(stub.Requests()); n != 1 {
		t.Errorf("%d requests recorded, want 1", n)
	}
}

func TestStubOtherAnswers(t *testing.T) {
	client := stubClient(t)
	get := func(url string) (int, string) {
		t.Helper()
		res, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, string(body)
	}

	redirect := Vector(t, Response, "sep-http-redirect-307")
	stub := Stub(t, redirect, nil)
	if status, body := get(stub.URL + "/pki/public_key"); status != 200 ||
		body != string(PublicPEM(t, "server-4096")) {
		t.Errorf("public key: %d, %q", status, body)
	}
	if status, _ := get(stub.URL + "/else"); status != 404 {
		t.Errorf("unknown path: %d", status)
	}
	res, err := call(client, redirect, stub.URL)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	location := res.Header.Get("Location")
	if status, body := get(location); status != 200 ||
		body != string(Vector(t, Response, "sep-baseline").File("body")) {
		t.Errorf("%s: %d, %d bytes", location, status, len(body))
	}
	got := stub.Requests()
	if len(got) != 4 || got[2].Method != "POST" || got[2].Path != "/v1/chat/secure_completion" ||
		string(got[2].Body) != "sealed" ||
		got[2].Header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("recorded %+v", got)
	}

	other := PublicPEM(t, "other-4096")
	if _, body := get(Stub(t, redirect, other).URL + "/pki/public_key"); body != string(other) {
		t.Errorf("chosen public key: %q", body)
	}
	key := Stub(t, Vector(t, ServerKey, "key-ok"), nil)
	res, err = client.Post(key.URL+"/v1/chat/secure_completion", "", nil)
	if err != nil || res.StatusCode != 503 {
		t.Fatalf("POST beside a server key: %v, %v", res, err)
	}
	res.Body.Close()
	mustFail(t, "cannot be served", func(tb testing.TB) {
		Stub(tb, Vector(t, Request, "js-simple"), nil)
	})
}

func TestStubStops(t *testing.T) {
	var addr string
	mustPass(t, func(tb testing.TB) {
		stub := Stub(tb, Vector(t, Response, "sep-baseline"), nil)
		addr = strings.TrimPrefix(stub.URL, "http://")
		conn, err := net.Dial("tcp", addr) // idle: the stub must not wait for it
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { conn.Close() })
	})
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("the stub still listens")
	}
}
