// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package httpx

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

func TestParseBaseURL(t *testing.T) {
	for text, want := range map[string]string{
		"https://h":                       "https://h",
		"HTTPS://h":                       "https://h",
		"https://h/":                      "https://h",
		"https://h///":                    "https://h",
		"https://h/a/b":                   "https://h/a/b",
		"https://h/a/b//":                 "https://h/a/b",
		"https://h/a/./b/../c":            "https://h/a/c",
		"https://h/../..":                 "https://h",
		"https://h:8443/x":                "https://h:8443/x",
		"https://h:1":                     "https://h:1",
		"https://h:65535":                 "https://h:65535",
		"https://[::1]:443/p":             "https://[::1]:443/p",
		"https://[fe80::1%25eth0]/":       "https://[fe80::1%25eth0]",
		"https://192.0.2.1":               "https://192.0.2.1",
		"https://h/a%23b":                 "https://h/a%23b",
		"https://h/a%3Fb":                 "https://h/a%3Fb",
		"http://127.0.0.1:1":              "http://127.0.0.1:1",
		"http://localhost/x/":             "http://localhost/x",
		"https://api.example.com/v1%2Fx/": "https://api.example.com/v1%2Fx",
		"https://api.example.com/%2F(%2F": "https://api.example.com/%2F(%2F",
	} {
		u, err := ParseBaseURL(text, true)
		if err != nil || u.String() != want {
			t.Errorf("%q: %v, %v; want %q", text, u, err, want)
		}
		if u, err := ParseBaseURL(text, false); strings.HasPrefix(want, "http:") &&
			!errors.Is(err, fault.ErrInsecureURL) {
			t.Errorf("%q: %v, %v", text, u, err)
		}
	}
}

func TestParseBaseURLRefuses(t *testing.T) {
	insecure := []string{
		"", "h", "h/path", "//h", "/path", "ftp://h", "ws://h", "wss://h", "httpss://h",
		"file:///etc/passwd", "localhost:8080",
		"javascript:alert(1)", "data:text/plain,x", "unix:///x",
	}
	malformed := []string{
		"https://", "https:///path", "https:h", "https:/h", "https://:443", "https://?",
		"https://u@h", "https://u:marker@h", "https://@h",
		"https://:@h", "https://h?", "https://h/?", "https://h?marker=1", "https://h#",
		"https://h/#", "https://h/#f", "https://h/p#marker",
		"https://h:", "https://h:0", "https://h:00", "https://h:65536", "https://h:99999",
		"https://h:x", "https://h:-1", "https://h:+1",
		"https://h:1:2", "https://h\n", "https://h/\x00", "https://h/\x7f", "https://h\r\nX: y",
		" https://h", "https://h h", "https://[::1",
		"https://[::1]x", "https://[marker]:1", "https://h/%zz", "https://%zz", "127.0.0.1:80", ":",
		"https://h/%",
	}
	for _, text := range append(insecure, malformed...) {
		u, err := ParseBaseURL(text, true)
		if err == nil {
			t.Errorf("%q is taken as %q", text, u)
			continue
		}
		if strings.Contains(err.Error(), "marker") || strings.ContainsAny(err.Error(), "\r\n\x00") {
			t.Errorf("%q: the error repeats it: %v", text, err)
		}
	}
	for _, text := range insecure {
		if _, err := ParseBaseURL(text, true); !errors.Is(err, fault.ErrInsecureURL) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseBaseURL(f *testing.F) {
	for _, s := range []string{"https://h/a/", "http://[::1]:80/../x", "https://u@h?q#f",
		"https://h/%2F/", "https://h:0", "HTTPS://H"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := ParseBaseURL(text, false)
		if err != nil {
			return
		}
		if u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" ||
			u.ForceQuery || u.Fragment != "" ||
			strings.HasSuffix(u.EscapedPath(), "/") {
			t.Fatalf("%q became %#v", text, u)
		}
		again, err := ParseBaseURL(u.String(), false)
		if err != nil || again.String() != u.String() {
			t.Fatalf("%q became %q, and that %v, %v", text, u, again, err)
		}
		if _, err := http.NewRequest(http.MethodGet, u.String()+"/pki/public_key",
			nil); err != nil {
			t.Fatalf("%q became %q: %v", text, u, err)
		}
	})
}

func TestDefaultTransport(t *testing.T) {
	a, b := DefaultTransport(), DefaultTransport()
	if a == b || a.TLSClientConfig == b.TLSClientConfig {
		t.Error("transports are shared")
	}
	if a.TLSClientConfig.MinVersion != tls.VersionTLS12 || a.TLSClientConfig.InsecureSkipVerify ||
		!a.ForceAttemptHTTP2 || a.Proxy == nil ||
		!a.DisableCompression || a.MaxIdleConnsPerHost < 100 || a.IdleConnTimeout <= 0 ||
		a.TLSHandshakeTimeout <= 0 || a.HTTP2 == nil ||
		a.HTTP2.SendPingTimeout <= 0 {
		t.Errorf("got %+v", a)
	}
}

func TestIsLoopbackLiteral(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.255.0.9": true, "::1": true, "::ffff:127.0.0.1": true,
		"localhost": false, "": false, "0.0.0.0": false, "::": false,
		"128.0.0.1": false, "192.0.2.1": false, "127.1": false, "0177.0.0.1": false,
		"2130706433": false, "127.0.0.1.example.com": false, "::1%lo": true,
	} {
		if IsLoopbackLiteral(host) != want {
			t.Errorf("%q: %v", host, !want)
		}
	}
}

// TestOriginsHaveOneSpelling: nothing that FirstUse remembers is forgotten over another spelling of
// the base URL.
func TestOriginsHaveOneSpelling(t *testing.T) {
	for spelling, want := range map[string]string{
		"https://API.example":         "https://api.example",
		"HTTPS://api.example:443/":    "https://api.example",
		"https://api.example:8443":    "https://api.example:8443",
		"http://LOCALHOST:80/Prefix/": "http://localhost/Prefix",
		"https://[::1]:443/a":         "https://[::1]/a",
		"https://api.example:4430":    "https://api.example:4430",
	} {
		u, err := ParseBaseURL(spelling, true)
		if err != nil {
			t.Fatal(err)
		}
		if got := OriginOf(u); got != want {
			t.Errorf("%s is %s, want %s", spelling, got, want)
		}
	}
	if got := OriginOf(&url.URL{Scheme: "https", Host: "a:443"}); got != "https://a" {
		t.Error(got)
	}
}
