// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TLSServer starts an HTTPS server with HTTP/2 on loopback and closes it when the test ends. Its
// log is dropped: tests that break handshakes on purpose would fill it.
func TLSServer(t testing.TB, h http.Handler) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.EnableHTTP2 = true
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv
}

// ClientTransport returns a new transport that trusts srv, a server from [TLSServer], and nothing
// else.
func ClientTransport(srv *httptest.Server) *http.Transport {
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	return &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}
}

// ServerTLS has the certificate of a test server.
func ServerTLS(t testing.TB) *tls.Config {
	t.Helper()
	other := TLSServer(t, http.NotFoundHandler())
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: other.TLS.Certificates}
}
