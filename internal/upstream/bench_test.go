// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// BenchmarkExchange compares a pool with the transport that it replaces: one request with content
// at a time.
func BenchmarkExchange(b *testing.B) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = w.Write(bytes.Repeat([]byte("x"), 500))
	})
	plain := httptest.NewServer(handler)
	defer plain.Close()
	secure := httptest.NewUnstartedServer(handler)
	secure.StartTLS()
	defer secure.Close()
	for _, server := range []*httptest.Server{plain, secure} {
		settings := &http.Transport{}
		if server == secure {
			settings = testkit.ClientTransport(server)
			settings.ForceAttemptHTTP2 = false
		}
		pool := New(settings, func(*http.Request) bool { return true })
		defer pool.Close()
		for _, way := range []struct {
			name string
			rt   http.RoundTripper
		}{{"net-http", settings}, {"pool", pool.For("")}} {
			for _, size := range []int{300, 100_000} {
				b.Run(fmt.Sprintf("%.5s/%d/%s", server.URL, size, way.name), func(b *testing.B) {
					content := bytes.Repeat([]byte("x"), size)
					b.ReportAllocs()
					for b.Loop() {
						req, _ := http.NewRequest("POST", server.URL+"/", bytes.NewReader(content))
						req.Body = struct{ io.ReadCloser }{req.Body}
						resp, err := way.rt.RoundTrip(req)
						if err != nil {
							b.Fatal(err)
						}
						_, _ = io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
				})
			}
		}
	}
}
